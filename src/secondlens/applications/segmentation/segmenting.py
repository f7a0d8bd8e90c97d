"""Where texts are in pictures, at the pictures' own resolution."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...arguments import checked
from ...data.decoding import whole
from ...data.embedding import embed_texts
from ...data.sources import pictures_of
from ...devices import undisturbed
from ...effects.value_paths import chunks
from ...errors import SecondLensError
from ...lens.lens import Lens
from ...models.view import Clip, Images
from .heat_maps import standardise
from .mixture import MixedMaps, Mixture, maps_of
from .presence import Presence, PresenceReader
from .refinement import followed
from .segmenter import BEST, Recipe, Segmenter
from .windows import boxes_of, cut, joined, size_of

IMAGES_PER_PASS = 32


@checked
@undisturbed
def segment(
    clip: Clip,
    lens: Lens,
    images: Any,
    texts: str | Sequence[str],
    *,
    against: str | Sequence[str] = (),
    recipe: Recipe | Mixture = BEST,
    colours: bool = False,
    windows: int = 1,
    presence: Presence | None = None,
    among: Sequence[str] = (),
) -> "Float[Tensor, '*_maps height width'] | list[Float[Tensor, '*_maps height width']]":
    """Where a text is in an image: a heat-map in [0, 1] at the image's own resolution.

    The paper calls a pixel part of the object from 0.5 on. The model sees the whole picture,
    squeezed into its square whatever the picture's shape, as the benchmarks do; give a model from
    `resized` to let it see more pixels. A map that is the same everywhere becomes 0.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it.
    images
        A PIL image, or preprocessed images [3, height, width] or [images, 3, height, width]; or
        what `Clip.prepare` takes.
    texts
        One text, such as "a dog", or several.
    against
        One text or several, whose mean embedding is subtracted from that of each text.
    recipe
        Which neurons, and how they are combined; by default `BEST`. `PAPER` is the form of the
        paper. A `Mixture` adds what patches and heads say: it does better, for three encodings in
        place of one.
    colours
        Whether maps follow the colours of the picture, as the model sees it.
    windows
        With more than one, the model sees each picture through so many overlapping windows along
        each side, and maps are averaged where windows overlap.
    presence
        Decides whether a text is in the picture at all, see `tune_presence`: the map of one that is
        not is 0. Without it, all texts are taken to be there.
    among
        Other words for what pictures may show, with which `presence` compares each text.

    Returns
    -------
    [height, width] for one text, [texts, height, width] for several; in a list for several images,
    since these may differ in size, and for what a path names; stacked for a tensor of images.

    Raises
    ------
    SecondLensError
        No images or texts, an empty text or one longer than the model's context, a picture that
        `whole` refuses, another model's lens, a recipe that the lens cannot follow, windows on a
        picture with fewer pixels than windows, or `presence` without words to compare with.
    """
    if windows < 1:
        raise SecondLensError(f"{windows} windows show nothing: take at least one")
    if presence is not None and not among:
        raise SecondLensError("whether a text is there is told among other words: give among")
    single = isinstance(images, Image.Image) or (isinstance(images, Tensor) and images.dim() == 3)
    batch = pictures_of(images[None] if single and isinstance(images, Tensor) else images)
    rows = embed_texts(clip, texts)
    words = embed_texts(clip, among) if among else rows[:0]
    less = rows - embed_texts(clip, against).mean(0) if against else rows
    source = maps_of(clip, lens, recipe)
    reader = None if presence is None else PresenceReader(clip, lens)
    maps: list[Tensor] = []
    for some in chunks(len(batch), max(1, IMAGES_PER_PASS // windows**2)):
        found = [heat for heat, _ in segmented(source, batch[some], less, windows, colours)]
        if presence is not None and reader is not None:
            there = presence.present(reader(batch[some], rows, words, presence.windows))
            found = [
                heat * here[:, None, None].to(heat) for heat, here in zip(found, there, strict=True)
            ]
        maps += [heat[0] for heat in found] if isinstance(texts, str) else found
    if single:
        return maps[0]
    return torch.stack(maps) if isinstance(images, Tensor) else maps


@torch.no_grad()
def segmented(
    source: Segmenter | MixedMaps,
    pictures: Images,
    rows: Float[Tensor, "texts dim"],
    windows: int = 1,
    colours: bool = False,
) -> Iterator[tuple[Float[Tensor, "texts height width"], Float[Tensor, " texts"]]]:
    """For each of a few pictures, heat-maps as `segment` gives them, and the largest raw heat of
    each text, which is comparable between pictures.

    Raises
    ------
    SecondLensError
        A picture that `whole` refuses, or windows on a picture with fewer pixels than windows.
    """
    clip = source.clip
    sizes = [size_of(picture) for picture in pictures]
    boxes = [boxes_of(*size, windows) for size in sizes]
    seen = whole(clip, cut(pictures, boxes, clip.image_size) if windows > 1 else pictures)
    pixels = clip.prepare(seen)
    raw = source.maps(pixels, rows.expand(len(pixels), -1, -1))
    peaks = raw.amax((2, 3)).split(windows**2)
    maps = (followed(raw, pixels) if colours else raw).split(windows**2)
    for mine, peak, own, size in zip(maps, peaks, boxes, sizes, strict=True):
        yield standardise(joined(mine, own, size), size), peak.amax(0)
