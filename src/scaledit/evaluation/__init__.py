"""Evaluation of samples: features, metrics, and results with their protocol."""
