"""Training data: where images lie, how they are read, and in which order a model sees them."""
