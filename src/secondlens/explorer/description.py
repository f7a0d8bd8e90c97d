"""A description of the neurons of a lens, ready to be read neuron by neuron."""

from typing import Any

import numpy as np

from ..lens import Lens
from .language import SIZES
from .numbers import short, shortened

NAMING = 3
"""Words in a neuron's name."""


class Description:
    """The codes of one vocabulary."""

    def __init__(self, lens: Lens, name: str) -> None:
        codes = lens.codes[name]
        self.labels, self.size = codes.labels, codes.indices[lens.layers[0]].shape[1]
        self.cosine = {layer: codes.cosine[layer].numpy() for layer in lens.layers}
        self.texts = {n: codes.indices[n][:, :SIZES].int().numpy() for n in lens.layers}
        self.brief = {layer: codes.brief[layer].float().numpy() for layer in lens.layers}

    def name(self, layer: int, neuron: int) -> str:
        """The strongest words with their signs, those it speaks for first."""
        text = ""
        strongest = self.words(layer, neuron)[:NAMING]
        for word, weight in sorted(strongest, key=lambda pair: pair[1] < 0):
            sign = "− " if weight < 0 else "+ " if text else ""
            text += f"{' ' if text else ''}{sign}{word}"
        return text

    def words(self, layer: int, neuron: int) -> list[tuple[str, float]]:
        """(text, coefficient) of the brief code, strongest first."""
        weights = self.brief[layer][neuron].tolist()
        texts = self.texts[layer][neuron].tolist()
        found = [(self.labels[i], w) for i, w in zip(texts, weights, strict=False) if i >= 0]
        return sorted(found, key=lambda pair: -abs(pair[1]))

    def of(self, layer: int, neuron: int, triangle: np.ndarray | None) -> dict[str, Any]:
        """Texts in the order of the pursuit, the brief code, and what codes of other sizes need."""
        texts = [i for i in self.texts[layer][neuron].tolist() if i >= 0]
        return {
            "texts": [self.labels[i] for i in texts],
            "brief": shortened(self.brief[layer][neuron]),
            "cosine": short(self.cosine[layer][neuron]),
            "size": self.size,
            "triangle": None if triangle is None else shortened(triangle, 4),
        }
