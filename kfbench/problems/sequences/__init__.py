"""What is trained on sequences: text as characters, and a model that reads it."""
