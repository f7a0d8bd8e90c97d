"""Models of transformers: a file for each family."""
