"""Neurons in words: sparse signed texts, what they are worth, and how to find neurons by them."""
