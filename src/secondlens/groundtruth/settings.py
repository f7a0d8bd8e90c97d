"""How many pictures an exam has; nothing here needs torch."""

FITTED, NAMED, TESTED = 256, 1000, 96
"""Pictures that lenses and means come from, that names are looked for in, and of the questions."""
LEAST_NAMED = 100
"""Pictures from which on rare marks can be tested at all."""
