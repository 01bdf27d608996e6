"""What one batch says about each layer: rows of inputs and of output gradients, and their factors."""
