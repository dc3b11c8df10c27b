"""One module per command: `arguments` defines its options, `run` executes it and does the heavy imports."""
