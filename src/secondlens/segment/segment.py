"""Zero-shot segmentation from neurons (section 5 of arXiv 2406.04341, Table 4).

The neurons whose directions agree most with a text are read at every patch, and their average is
where the text is.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..clip.view import Clip, Images
from ..effects.paths import chunks
from ..errors import SecondLensError
from ..lens import Lens
from ..texts import embed_texts
from .heat import standardise
from .inputs import upright, whole
from .recipe import BEST, Recipe
from .segmenter import Segmenter, encode
from .windows import boxes_of, cut, joined

IMAGES_PER_PASS = 32


def segment(
    clip: Clip,
    lens: Lens,
    images: "Image.Image | Images",
    texts: str | Sequence[str],
    *,
    against: str | Sequence[str] = (),
    recipe: Recipe = BEST,
    windows: int = 1,
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
        A PIL image, a list of them, or preprocessed images [3, height, width] or [images, 3,
        height, width].
    texts
        One text, such as "a dog", or several.
    against
        One text or several, whose mean embedding is subtracted from that of each text.
    recipe
        Which neurons, and how they are combined; by default `BEST`. `PAPER` is the
        form of the paper.
    windows
        With more than one, the model sees each picture through so many overlapping windows along
        each side, and maps are averaged where windows overlap.

    Returns
    -------
    [height, width] for one text, [texts, height, width] for several; in a list for a list of
    images, since these may differ in size, and stacked for a tensor of images.

    Raises
    ------
    SecondLensError
        No images or texts, an empty text or one longer than the model's context, a picture that
        `whole` refuses, another model's lens, a recipe that the lens cannot follow, or windows
        on a picture with fewer pixels than windows.
    """
    if windows < 1:
        raise SecondLensError(f"{windows} windows show nothing: take at least one")
    single = isinstance(images, Image.Image) or (isinstance(images, Tensor) and images.dim() == 3)
    batch = _as_batch(images, single)
    rows = embed_texts(clip, texts)
    if against:
        rows = rows - embed_texts(clip, against).mean(0)
    segmenter = Segmenter(clip, lens, recipe)
    maps: list[Tensor] = []
    for some in chunks(len(batch), max(1, IMAGES_PER_PASS // windows**2)):
        pictures = upright(batch[some])
        sizes = [_size(picture) for picture in pictures]
        boxes = [boxes_of(*size, windows) for size in sizes]
        seen = whole(clip, cut(pictures, boxes, clip.image_size) if windows > 1 else pictures)
        encoded = encode(clip, seen, segmenter.layers)
        raw = segmenter.heat_maps(encoded, rows.expand(len(seen), -1, -1))
        if recipe.positive:
            raw = raw.clamp(min=0)
        for mine, own, size in zip(raw.split(windows**2), boxes, sizes, strict=True):
            heat = standardise(joined(mine, own, size), size)
            maps.append(heat[0] if isinstance(texts, str) else heat)
    if single:
        return maps[0]
    return torch.stack(maps) if isinstance(images, Tensor) else maps


def _as_batch(images: "Image.Image | Images", single: bool) -> Images:
    if len(batch := [images] if isinstance(images, Image.Image) else images) == 0:
        raise SecondLensError("there are no images: give at least one")
    return batch[None] if single and isinstance(batch, Tensor) else batch


def _size(picture: Image.Image | Tensor) -> tuple[int, int]:
    if isinstance(picture, Tensor):
        return picture.shape[-2], picture.shape[-1]
    return picture.height, picture.width
