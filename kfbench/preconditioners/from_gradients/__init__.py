"""Methods that learn from mean gradients alone: no single rows, no labels, no Fisher."""
