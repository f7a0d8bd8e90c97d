"""A page on which a person says whether pictures hold the names that they stand under."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.reader import FEW_IMAGES, Reader
from ..data.sources import ImageSource, with_ids
from ..errors import SecondLensError
from ..lens.names import Names
from ..lens.pictures import NAMED_ON
from ..models.view import Clip
from .page import data_uri, model_view, write_page

CHECKED = 50
"""Pictures. Where all are right, the 95 % interval of the share begins at 93 %."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A picture under a name."""

    layer: int
    neuron: int
    text: str
    picture: str
    shown: str
    """Data URI of the picture as the model saw it."""


def write_check(
    path: str | Path,
    clip: Clip,
    names: Names,
    named_on: ImageSource,
    *,
    count: int = CHECKED,
    seed: int = 0,
) -> int:
    """Write one self-contained HTML file that asks of pictures whether they hold their names.

    The pictures are drawn evenly from all that stand under all names; no picture is asked twice for
    one word. Keys y and n answer; the share of right ones stands with Wilson's interval.

    Parameters
    ----------
    path
        The file; one that exists is replaced once the new one is complete.
    names
        Of a lens on the model.
    named_on
        The pictures that the neurons were named on.
    count
        Pictures, at most.
    seed
        Of the draw.

    Returns
    -------
    How many pictures it asks of.

    Raises
    ------
    SecondLensError
        No picture stands under any name, or one that the source lacks or cannot read.
    """
    chosen = _draw(names, count, seed)
    if not chosen:
        raise SecondLensError("no neuron has a name, so that there is nothing to check")
    wanted = sorted({position for *_, position in chosen})
    ids = [names.image_ids[position] for position in wanted]
    reader = Reader(
        source=with_ids(named_on, ids, these=NAMED_ON), clip=clip, batch_size=FEW_IMAGES
    )
    view, shown = model_view(clip), {}
    for batch in reader:
        for position, pixels in zip(batch.positions, batch.pixels, strict=True):
            shown[wanted[position]] = data_uri(view(pixels), "webp", quality=90)
    reader.check_read()
    pairs = [
        Asked(
            layer=layer,
            neuron=neuron,
            text=names.labels[text],
            picture=names.image_ids[position],
            shown=shown[position],
        )
        for layer, neuron, text, position in chosen
    ]
    write_page(
        path, "check.html", title="Do they hold their names?", pairs=pairs, names=names, clip=clip
    )
    return len(pairs)


def _draw(names: Names, count: int, seed: int) -> list[tuple[int, int, int, int]]:
    """Layer, neuron, text and position of some pictures under names."""
    found = [
        (layer, neuron, int(texts[neuron, rank]), int(names.pictures[layer][neuron, rank, place]))
        for layer, texts in sorted(names.texts.items())
        for neuron, rank, place in (names.pictures[layer] >= 0).nonzero().tolist()
        if texts[neuron, rank] >= 0
    ]
    order = np.random.default_rng(seed).permutation(len(found)).tolist()
    once = {found[number][2:]: found[number] for number in reversed(order)}
    return [found[number] for number in order if once[found[number][2:]] == found[number]][:count]
