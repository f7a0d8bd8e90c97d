"""One HTML file that shows neurons to people: words, pictures, where they fire, and numbers.

The file holds everything it shows and fetches nothing. Each picture is in it once, however many
cards show it. Where a neuron fired is a small image whose opacity is the activation at each patch;
the page lays it over the picture.
"""

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from rich.progress import track
from torch import Tensor

from .capture import Capture
from .errors import SecondLensError
from .images import ImageSource, Reader
from .lens import Codes, LayerLens, Lens
from .statistics import HISTOGRAM_EDGES
from .summary import Neuron
from .view import Clip

PICTURES = 8
"""Of each kind on a card: the strongest, and random ones."""

THUMBNAIL = 160
"""Pixels on the longer side of a picture, at most."""

BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A number at the top of a report, beside what chance alone would show."""

    label: str
    value: float | int | str
    null: float | int | str | None = None
    explanation: str
    """How it is computed, and what `null` is."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A picture on a card."""

    position: int
    """In `Lens.image_ids`."""
    id: str
    norm: float | None
    """Of the neuron's centred effect, where the lens has kept it."""
    peak: float
    """The largest activation at a patch."""
    heat: str
    """Data URI of `heat_map`."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Centred norms of all images, over their root mean square, as SVG paths one unit a bin."""

    counts: list[int]
    threshold: float
    """In bins."""
    below: str
    above: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the page shows of a neuron."""

    neuron: Neuron
    strongest: list[Shot]
    random: list[Shot]
    histogram: Histogram
    fitted: dict[str, float]
    """The neuron's scalars in its `LayerLens`, and the `cosine` of its code."""


def write_report(
    path: str | Path,
    clip: Clip,
    lens: Lens,
    codes: Codes,
    source: ImageSource,
    neurons: Sequence[Neuron],
    *,
    title: str,
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
        What to show.
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
    neurons = list({(each.layer, each.neuron): each for each in neurons}.values())
    if not neurons:
        raise SecondLensError("there are no neurons to report: give at least one")
    shown = {each: _choose(lens, each, seed) for each in neurons}
    pictures, activations = _look(clip, lens, source, shown, progress)
    cards = [_card(lens, codes, each, shown[each], activations) for each in neurons]
    page = (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            facts=facts,
            cards=sorted(cards, key=lambda card: -card.neuron.clarity),
            pictures=pictures,
            aspect=clip.image_size[1] / clip.image_size[0],
            bins=1 + max(i for card in cards for i, n in enumerate(card.histogram.counts) if n),
            bin_width=HISTOGRAM_EDGES[1].item(),
            all_bins=len(HISTOGRAM_EDGES) - 1,
            clip=clip,
            lens=lens,
            version=version("secondlens"),
        )
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8", newline="\n")
    partial.replace(path)


def _choose(lens: Lens, neuron: Neuron, seed: int) -> tuple[list[int], list[int]]:
    """Positions of a neuron's strongest images, and of as many random others."""
    strongest = lens[neuron.layer].top_images[neuron.neuron, :PICTURES].tolist()
    order = np.random.default_rng((seed, neuron.layer, neuron.neuron)).permutation(
        len(lens.image_ids)
    )
    others = (position for position in order.tolist() if position not in strongest)
    return strongest, [position for position, _ in zip(others, strongest, strict=False)]


@dataclass(frozen=True)
class _Subset:
    """Some pictures of a source, as a source."""

    source: ImageSource
    positions: list[int]

    @property
    def ids(self) -> list[str]:
        return [self.source.ids[position] for position in self.positions]

    def load(self, index: int) -> Any:
        return self.source.load(self.positions[index])


def _look(
    clip: Clip,
    lens: Lens,
    source: ImageSource,
    shown: dict[Neuron, tuple[list[int], list[int]]],
    progress: bool,
) -> tuple[dict[int, str], dict[tuple[Neuron, int], Float[Tensor, "rows columns"]]]:
    """Every picture that is shown, read once: as data URIs by position in `lens.image_ids`, and
    the activations of the neurons that show it."""
    viewers: dict[int, list[Neuron]] = {}
    for neuron, positions in shown.items():
        for position in sum(positions, []):
            viewers.setdefault(position, []).append(neuron)
    wanted = sorted(viewers)
    place = {each: i for i, each in enumerate(source.ids)}
    for position in wanted:
        if lens.image_ids[position] not in place:
            raise SecondLensError(
                f"the images have no {lens.image_ids[position]!r}, which the lens was fitted on: "
                "give the images of the fit"
            )
    subset = _Subset(source, [place[lens.image_ids[position]] for position in wanted])
    reader = Reader(source=subset, clip=clip, batch_size=BATCH_SIZE)
    batches = track(reader, "pictures", len(reader)) if progress else reader
    view = model_view(clip)
    pictures: dict[int, str] = {}
    activations: dict[tuple[Neuron, int], Tensor] = {}
    with Capture(clip, {each.layer for each in shown}, keep_activations=True) as capture:
        for batch in batches:
            pooled = capture.pool(clip.encode_image(batch.pixels))
            for row, index in enumerate(batch.positions):
                position = wanted[index]
                pictures[position] = _picture(view(batch.pixels[row]))
                for neuron in viewers[position]:
                    patches = pooled.activations[neuron.layer][row, 1:, neuron.neuron]
                    activations[neuron, position] = patches.float().cpu().reshape(clip.grid)
    for id_, reason in reader.skipped.items():
        raise SecondLensError(f"picture {id_!r} cannot be read any more: {reason}")
    return pictures, activations


def model_view(clip: Clip) -> Callable[[Float[Tensor, "3 height width"]], Image.Image]:
    """What turns the image tower's input back into a picture: exactly the view the model had.

    It undoes the normalisation, which it learns from what the preprocessing makes of black and of
    white, so that cropping, squashing or padding show as they were and heat maps lie where they
    belong. It takes for granted that normalisation acts on each pixel alone and is affine. Without
    preprocessing, or where that cannot be so, each picture's values are stretched over its range.
    """
    black = white = torch.zeros(())
    if clip.preprocess is not None:
        height, width = clip.image_size
        black, white = (
            clip.preprocess(Image.new("RGB", (width, height), colour))
            for colour in ("black", "white")
        )
    known = bool((white != black).all())

    def view(pixels: Tensor) -> Image.Image:
        pixels = pixels.float().cpu()
        low, high = (black, white) if known else (pixels.amin(), pixels.amax())
        values = (pixels - low) / (high - low).clamp(min=1e-12)
        array = (values.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        return Image.fromarray(array)

    return view


def _picture(image: Image.Image) -> str:
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return _data_uri(image, "webp", quality=80, method=6)


def heat_map(activation: Float[Tensor, "rows columns"], scale: float) -> Image.Image:
    """One pixel a patch, whose opacity goes from 0 where the neuron is at or below zero to full
    where it reaches `scale`."""
    share = (activation / scale).clamp(0, 1) if scale > 0 else torch.zeros_like(activation)
    opacity = Image.fromarray((share * 255).round().byte().numpy())
    return Image.merge("LA", (Image.new("L", opacity.size), opacity))


def _data_uri(image: Image.Image, form: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _card(
    lens: Lens,
    codes: Codes,
    neuron: Neuron,
    shown: tuple[list[int], list[int]],
    activations: dict[tuple[Neuron, int], Tensor],
) -> Card:
    layer, n = lens[neuron.layer], neuron.neuron
    strongest, random = shown
    norms = dict(zip(strongest, layer.top_norms[n].tolist(), strict=False))
    scale = max(float(activations[neuron, position].max()) for position in strongest)

    def shot(position: int) -> Shot:
        activation = activations[neuron, position]
        return Shot(
            position=position,
            id=lens.image_ids[position],
            norm=norms.get(position),
            peak=float(activation.max()),
            heat=_data_uri(heat_map(activation, scale), "png"),
        )

    names = ("explained", "explained_null", "explained_all", "selectivity", "selectivity_null")
    return Card(
        neuron=neuron,
        strongest=[shot(position) for position in strongest],
        random=[shot(position) for position in random],
        histogram=_histogram(layer, n),
        fitted={name: float(getattr(layer, name)[n]) for name in (*names, "threshold")}
        | {"cosine": float(codes.cosine[neuron.layer][n])},
    )


def _histogram(layer: LayerLens, neuron: int) -> Histogram:
    counts = layer.histogram[neuron].tolist()
    rms = float(layer.energy[neuron]) ** 0.5
    width = HISTOGRAM_EDGES[1].item()
    threshold = min(float(layer.threshold[neuron]) / rms / width, len(counts)) if rms > 0 else 0.0
    # the few images above the threshold would be invisible beside the rest on a linear scale
    heights = [math.log1p(count) / math.log1p(max(counts)) for count in counts]
    return Histogram(
        counts=counts,
        threshold=threshold,
        below=_bars(heights, 0, threshold),
        above=_bars(heights, threshold, len(counts)),
    )


def _bars(heights: Iterable[float], start: float, end: float) -> str:
    """An SVG path of bars one unit wide and at most one high, cut off at `start` and `end`."""
    bars = ((max(i, start), min(i + 1, end), height) for i, height in enumerate(heights))
    return "".join(
        f"M{left:.3g} 1v{-height:.3g}H{right:.3g}V1z"
        for left, right, height in bars
        if left < right and height > 0
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("secondlens"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment


def number(value: float | int | str) -> str:
    """As people read it: whole numbers in full, others with two significant digits.

    >>> number(0.4999), number(0.00123), number(12.3), number(1536), number("ViT-B/32")
    ('0.50', '0.0012', '12', '1,536', 'ViT-B/32')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "–"
    size = math.floor(math.log10(abs(float(f"{value:.1e}")))) if value else 0
    return f"{value:,.{max(0, 1 - size)}f}"
