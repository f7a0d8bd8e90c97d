"""Graphs of neurons that explain a score or an activation, and connections between neurons."""
