"""Training: state, one step, and the loop as a stream of events."""
