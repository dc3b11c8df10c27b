"""Reports on the quality of a model and how to reproduce it: one HTML file with its images inside."""
