"""Every figure of a study, after the paper's: numbers as the paper numbers them."""
