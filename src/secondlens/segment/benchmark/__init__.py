"""Measuring segmentation: images with masks, metrics, and one protocol for all methods."""
