"""The cards of a report: which images one shows of its neuron, and what it says."""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..describe.concepts import Concept
from ..describe.proof import Proof
from ..describe.summary import Neuron
from ..lens import Codes, Lens
from ..statistics import HISTOGRAM_EDGES
from .page import data_uri
from .view import heat_map

PICTURES = 8
"""Of each kind on a card: the strongest, and random ones."""

PROVEN = 3
"""Concepts of a neuron that are shown with images."""

PROOFS = 4
"""Images of each."""

BIN_WIDTH = HISTOGRAM_EDGES[1].item()
"""Of `LayerLens.histogram`, in root mean squares of the neuron's norms."""

Seen = dict[tuple[Neuron, int], Tensor]
"""Activations [rows, columns] at the patches of each image that a neuron shows, by position."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The images that a card shows, as positions in `Lens.image_ids`."""

    strongest: list[int]
    random: list[int]
    proofs: list[tuple[int, list[int]]]
    """(position among the neuron's concepts, images that show it)."""

    @property
    def all(self) -> set[int]:
        """All of them."""
        return {*self.strongest, *self.random, *(i for _, images in self.proofs for i in images)}


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A picture on a card."""

    position: int
    id: str
    norm: float | None
    """Of the neuron's centred effect; a lens knows those of top images only."""
    peak: float
    """The largest activation at a patch."""
    heat: str
    """Data URI of `heat_map`."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A concept and images that show it."""

    concept: Concept
    count: int
    """Top images that show it, whether or not they are on the card."""
    shots: list[Shot]


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the page shows of a neuron."""

    neuron: Neuron
    strongest: list[Shot]
    random: list[Shot]
    concepts: list[Shown]
    """The proven ones."""
    unexplained: int
    """Top images that show none of the neuron's concepts."""
    polysemy: float
    """Of the proof."""
    numbers: dict[str, float]
    """By their names in `LayerLens`, and the `cosine` of the neuron's code."""
    counts: list[int]
    """Images by norm, as in `LayerLens.histogram`."""
    threshold: float
    """In bins of the histogram."""
    bars: tuple[str, str]
    """The histogram as SVG paths, below and above the threshold."""


def choose(lens: Lens, neuron: Neuron, proof: Proof, seed: int) -> Choice:
    """A neuron's strongest images, as many random others, and those that prove its concepts."""
    strongest = lens[neuron.layer].top_images[neuron.neuron, :PICTURES].tolist()
    generator = np.random.default_rng((seed, neuron.layer, neuron.neuron))
    order = generator.permutation(len(lens.image_ids)).tolist()
    others = [position for position in order if position not in strongest]
    return Choice(
        strongest=strongest,
        random=others[: len(strongest)],
        proofs=[(each, proof.showing(each)[:PROOFS]) for each in proof.proven[:PROVEN]],
    )


def card(
    lens: Lens, codes: Codes, neuron: Neuron, choice: Choice, proof: Proof, seen: Seen
) -> Card:
    """Everything that is known of a neuron, and what was seen on its images."""
    layer, n = lens[neuron.layer], neuron.neuron
    norms = dict(zip(layer.top_images[n].tolist(), layer.top_norms[n].tolist(), strict=True))
    scale = max(float(seen[neuron, position].max()) for position in choice.strongest)

    def shot(position: int) -> Shot:
        activation = seen[neuron, position]
        return Shot(
            position=position,
            id=lens.image_ids[position],
            norm=norms.get(position),
            peak=float(activation.max()),
            heat=data_uri(heat_map(activation, scale), "png"),
        )

    numbers = {name: float(values[n]) for name, values in vars(layer).items() if values.dim() == 1}
    numbers["threshold"] = float(layer.threshold[n])
    numbers["cosine"] = float(codes.cosine[neuron.layer][n])
    counts = layer.histogram[n].tolist()
    bin_width = BIN_WIDTH * numbers["energy"] ** 0.5
    end = float(len(counts))
    threshold = min(numbers["threshold"] / bin_width, end) if bin_width else 0.0
    return Card(
        neuron=neuron,
        strongest=[shot(position) for position in choice.strongest],
        random=[shot(position) for position in choice.random],
        concepts=[
            Shown(
                concept=neuron.concepts[each],
                count=len(proof.showing(each)),
                shots=[shot(position) for position in images],
            )
            for each, images in choice.proofs
        ],
        unexplained=len(proof.showing(-1)),
        polysemy=proof.polysemy,
        numbers=numbers,
        counts=counts,
        threshold=threshold,
        bars=(_bars(counts, 0.0, threshold), _bars(counts, threshold, end)),
    )


def _bars(counts: list[int], start: float, end: float) -> str:
    """An SVG path of bars one unit wide and up to one high, cut off at `start` and `end`."""
    path = ""
    for i, count in enumerate(counts):
        left, right = max(i, start), min(i + 1, end)
        # the few images above the threshold would be invisible on a linear scale
        height = math.log1p(count) / math.log1p(max(counts))
        if left < right and count:
            path += f"M{left:.4g} 1v{-height:.3g}H{right:.4g}V1z"
    return path
