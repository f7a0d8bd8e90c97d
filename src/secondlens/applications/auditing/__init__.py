"""Spurious cues: which push a classifier, by causal effect, and how to cut them out of it."""
