"""torch's side of the optimizers that are not torch's own."""
