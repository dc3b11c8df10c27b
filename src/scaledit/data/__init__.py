"""Training data: where images are, how they are read, and in which order a model sees them."""
