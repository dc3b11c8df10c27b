"""Which images to draw from a model, the files they go into, and drawing very many of them."""
