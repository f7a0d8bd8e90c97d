"""What effects are good for: each package answers one question about a model or its pictures."""
