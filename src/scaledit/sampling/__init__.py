"""Requests for images from a model, the files they are written to, and generating them in parts."""
