"""What a run costs and how quality scales with it: compute plans and the paper's tables as data."""
