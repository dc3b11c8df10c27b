"""One module a command: what it is called with (`arguments`) and what it does (`run`). Importing one imports
nothing heavy; `run` does."""
