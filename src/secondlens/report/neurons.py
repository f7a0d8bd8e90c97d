"""One HTML file that shows neurons to people: words, pictures, where they fire, and numbers.

The file holds everything it shows and fetches nothing. Each picture is in it once, however many
cards show it. Where a neuron fired is a small image whose opacity is the activation at each patch;
the page lays it over the picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..data.reader import FEW_IMAGES, Reader
from ..data.sources import ImageSource
from ..effects.streaming import stream
from ..errors import SecondLensError
from ..lens.codes import Codes
from ..lens.lens import Lens
from ..lens.moments import HISTOGRAM_EDGES
from ..lens.names import Name
from ..lens.pictures import pictures_at
from ..models.view import Clip
from ..words.connections import Connections, connections
from ..words.summary import NeuronSummary
from .page import data_uri, heat_map, model_view, write_page

PICTURES = 8
"""Of each kind on a card: the strongest, and random ones."""

PER_NAME = 4
"""Pictures under each name."""

CONNECTED = 3
"""Neurons that a card names as read from, and as many as written to."""

BIN_WIDTH = HISTOGRAM_EDGES[1].item()
"""Of `LayerLens.histogram`, in root mean squares of the neuron's norms."""

Seen = dict[tuple[NeuronSummary, int], Tensor]
"""Activations [rows, columns] at the patches of each image that a neuron shows, by position."""


@dataclass(frozen=True, kw_only=True)
class ShownImages:
    """The images that a card shows, as positions in `Lens.picture_ids`."""

    strongest: list[int]
    random: list[int]
    named: list[list[int]]
    """That hold each name, strongest first."""

    @property
    def all(self) -> set[int]:
        """All of them."""
        return {*self.strongest, *self.random, *(i for images in self.named for i in images)}


@dataclass(frozen=True, kw_only=True)
class Exemplar:
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
class ShownName:
    """A name and images that hold it."""

    name: Name
    shots: list[Exemplar]


@dataclass(frozen=True, kw_only=True)
class NeuronCard:
    """What the page shows of a neuron."""

    neuron: NeuronSummary
    strongest: list[Exemplar]
    random: list[Exemplar]
    names: list[ShownName]
    numbers: dict[str, float]
    """By their names in `LayerLens`, and the `cosine` of the neuron's code."""
    counts: list[int]
    """Images by norm, as in `LayerLens.histogram`."""
    threshold: float
    """In bins of the histogram."""
    bars: tuple[str, str]
    """The histogram as SVG paths, below and above the threshold."""
    connections: Connections | None
    """Other neurons that it reads from and writes to; None for a model without such weights."""


def choose(lens: Lens, neuron: NeuronSummary, with_names: bool, seed: int) -> ShownImages:
    """A neuron's strongest images, as many random others, and those that hold its names."""
    strongest = lens[neuron.layer].top_images[neuron.neuron, :PICTURES].tolist()
    generator = np.random.default_rng((seed, neuron.layer, neuron.neuron))
    order = generator.permutation(len(lens.image_ids)).tolist()
    others = [position for position in order if position not in strongest]
    return ShownImages(
        strongest=strongest,
        random=others[: len(strongest)],
        named=_holding(lens, neuron) if with_names else [[] for _ in neuron.names],
    )


def _holding(lens: Lens, neuron: NeuronSummary) -> list[list[int]]:
    names = lens.first_names
    if names is None:
        return []
    pictures = names.pictures[neuron.layer][neuron.neuron, : len(neuron.names), :PER_NAME]
    beyond = len(lens.image_ids)
    return [[beyond + place for place in row if place >= 0] for row in pictures.tolist()]


def card(
    clip: Clip,
    lens: Lens,
    codes: Codes,
    neuron: NeuronSummary,
    choice: ShownImages,
    seen: Seen,
) -> NeuronCard:
    """Everything that is known of a neuron, and what was seen on its images."""
    layer, n = lens[neuron.layer], neuron.neuron
    ids = lens.picture_ids
    norms = dict(zip(layer.top_images[n].tolist(), layer.top_norms[n].tolist(), strict=True))
    scale = max(float(seen[neuron, position].max()) for position in choice.strongest)

    def shot(position: int) -> Exemplar:
        activation = seen[neuron, position]
        return Exemplar(
            position=position,
            id=ids[position],
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
    return NeuronCard(
        neuron=neuron,
        strongest=[shot(position) for position in choice.strongest],
        random=[shot(position) for position in choice.random],
        names=[
            ShownName(name=name, shots=[shot(position) for position in images])
            for name, images in zip(neuron.names, choice.named, strict=True)
        ],
        numbers=numbers,
        counts=counts,
        threshold=threshold,
        bars=(_bars(counts, 0.0, threshold), _bars(counts, threshold, end)),
        connections=_connections(clip, lens, neuron),
    )


def _connections(clip: Clip, lens: Lens, neuron: NeuronSummary) -> Connections | None:
    try:
        return connections(clip, lens, neuron.layer, neuron.neuron, top=CONNECTED)
    except SecondLensError:  # of a model whose edges are not known: all else on the card is
        return None


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


THUMBNAIL = 160
"""Pixels on the longer side of a picture, at most."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A number at the top of a report."""

    label: str
    value: float | int | str
    null: float | int | str | None = None
    """What chance alone would show."""
    explanation: str
    """How the value is computed, and the null."""


def write_report(
    path: str | Path,
    clip: Clip,
    lens: Lens,
    codes: Codes,
    source: ImageSource,
    neurons: Sequence[NeuronSummary],
    *,
    title: str,
    named_on: ImageSource | None = None,
    facts: Sequence[Fact] = (),
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Write one self-contained HTML file with a card for each neuron.

    Parameters
    ----------
    path
        The file; one that exists is replaced once the new one is complete.
    clip, lens
        A model and a lens fitted on it.
    codes
        The description of the lens that the neurons' words come from.
    source
        The pictures the lens was fitted on.
    neurons
        What to show, in this order.
    named_on
        The pictures that the neurons were named on; without them, no pictures stand under names.
    facts
        Numbers for the top of the page.
    seed
        Of the random images; a neuron's do not depend on which other neurons are shown.
    progress
        Show a progress bar.

    Raises
    ------
    SecondLensError
        Another model's lens, no neurons, or a picture that the source lacks or cannot read.
    """
    lens.check_model(clip)
    if not neurons:
        raise SecondLensError("there are no neurons to report: give at least one")
    shown = {each: choose(lens, each, named_on is not None, seed) for each in neurons}
    pictures, seen = _look(clip, lens, source, named_on, shown, progress)
    cards = [card(clip, lens, codes, each, choice, seen) for each, choice in shown.items()]
    write_page(
        path,
        "report.html",
        title=title,
        facts=facts,
        cards=cards,
        pictures=pictures,
        bins=1 + max(i for each in cards for i, count in enumerate(each.counts) if count),
        bin_width=BIN_WIDTH,
        names=lens.first_names,
        per_name=PER_NAME,
        scored=any(math.isfinite(each.neuron.score) for each in cards),
        clip=clip,
        lens=lens,
    )


def _look(
    clip: Clip,
    lens: Lens,
    source: ImageSource,
    named_on: ImageSource | None,
    shown: dict[NeuronSummary, ShownImages],
    progress: bool,
) -> tuple[dict[int, str], Seen]:
    """Data URIs of all pictures that are shown, by position, and the activations on them.

    Each picture is read once and passes the model once, for all neurons that show it.
    """
    viewers: dict[int, list[NeuronSummary]] = {}
    for neuron, choice in shown.items():
        for position in choice.all:
            viewers.setdefault(position, []).append(neuron)
    view = model_view(clip)
    pictures: dict[int, str] = {}
    seen: Seen = {}
    layers = {each.layer for each in shown}
    for some, wanted in pictures_at(lens, source, named_on, viewers):
        reader = Reader(source=some, clip=clip, batch_size=FEW_IMAGES)
        for batch in stream(
            clip, reader, layers, keep_activations=True, what="pictures", progress=progress
        ):
            for row, index in enumerate(batch.positions):
                position = wanted[index]
                pictures[position] = _picture(view(batch.pixels[row]))
                for neuron in viewers[position]:
                    patches = batch.pooled.activations[neuron.layer][row, 1:, neuron.neuron]
                    seen[neuron, position] = patches.float().cpu().reshape(clip.grid)
        reader.check_read()
    return pictures, seen


def _picture(image: Image.Image) -> str:
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return data_uri(image, "webp", quality=80)
