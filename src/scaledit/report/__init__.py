"""Pages that say how good something is and how to make it again: one HTML file, pictures inside."""
