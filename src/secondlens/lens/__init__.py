"""The fitted object: what a set of images shows about every neuron of some layers.

A `Lens` has a `LayerLens` for each layer, `Codes` for each vocabulary it was described with, and
the evidence for these. It saves to a folder, or to a repository of the Hugging Face hub.
"""

from .codes import Codes
from .layer import Coordinates, LayerLens
from .lens import Lens

__all__ = ["Codes", "Coordinates", "LayerLens", "Lens"]
