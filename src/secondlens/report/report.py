"""One HTML file that shows neurons to people: words, pictures, where they fire, and numbers.

The file holds everything it shows and fetches nothing. Each picture is in it once, however many
cards show it. Where a neuron fired is a small image whose opacity is the activation at each patch;
the page lays it over the picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from rich.progress import track

from ..capture import Capture
from ..clip.view import Clip
from ..describe.proof import prove
from ..describe.summary import Neuron
from ..errors import SecondLensError
from ..images import ImageSource, Reader
from ..images.subset import with_ids
from ..lens import Codes, Lens
from .cards import BIN_WIDTH, PROOFS, Choice, Seen, card, choose
from .page import data_uri, write_page
from .view import model_view

THUMBNAIL = 160
"""Pixels on the longer side of a picture, at most."""

BATCH_SIZE = 16


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
        What to show, in this order.
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
    proofs = prove(
        clip,
        lens,
        source,
        {(each.layer, each.neuron): each.concepts for each in neurons},
        progress=progress,
    )
    shown = {each: choose(lens, each, proofs[each.layer, each.neuron], seed) for each in neurons}
    pictures, seen = _look(clip, lens, source, shown, progress)
    cards = [
        card(lens, codes, each, choice, proofs[each.layer, each.neuron], seen)
        for each, choice in shown.items()
    ]
    write_page(
        path,
        "report.html",
        title=title,
        facts=facts,
        cards=cards,
        pictures=pictures,
        bins=1 + max(i for each in cards for i, count in enumerate(each.counts) if count),
        bin_width=BIN_WIDTH,
        proofs=PROOFS,
        scored=any(math.isfinite(each.neuron.score) for each in cards),
        clip=clip,
        lens=lens,
    )


def _look(
    clip: Clip, lens: Lens, source: ImageSource, shown: dict[Neuron, Choice], progress: bool
) -> tuple[dict[int, str], Seen]:
    """Data URIs of all pictures that are shown, by position, and the activations on them.

    Each picture is read once and passes the model once, for all neurons that show it.
    """
    viewers: dict[int, list[Neuron]] = {}
    for neuron, choice in shown.items():
        for position in choice.all:
            viewers.setdefault(position, []).append(neuron)
    wanted = sorted(viewers)
    subset = with_ids(source, [lens.image_ids[position] for position in wanted])
    reader = Reader(source=subset, clip=clip, batch_size=BATCH_SIZE)
    view = model_view(clip)
    pictures: dict[int, str] = {}
    seen: Seen = {}
    with Capture(clip, {each.layer for each in shown}, keep_activations=True) as capture:
        for batch in track(reader, "pictures", len(reader)) if progress else reader:
            pooled = capture.pool(clip.encode_image(batch.pixels))
            for row, index in enumerate(batch.positions):
                position = wanted[index]
                pictures[position] = _picture(view(batch.pixels[row]))
                for neuron in viewers[position]:
                    patches = pooled.activations[neuron.layer][row, 1:, neuron.neuron]
                    seen[neuron, position] = patches.float().cpu().reshape(clip.grid)
    reader.check_read()
    return pictures, seen


def _picture(image: Image.Image) -> str:
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return data_uri(image, "webp", quality=80)
