"""Windows through which a model sees a picture piece by piece, and their maps put together."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...errors import SecondLensError
from ...models.view import Images

Box = tuple[int, int, int, int]
"""Left, upper, right and lower end of a window, in pixels, as PIL crops."""


def boxes_of(height: int, width: int, count: int) -> list[Box]:
    """`count` windows along each side, each overlapping half of the next, row by row.

    Raises
    ------
    SecondLensError
        More windows along a side than it has pixels.
    """
    if min(height, width) < count:
        raise SecondLensError(
            f"a picture of {width} x {height} pixels has no room for {count} windows along a side: "
            "take fewer"
        )

    def ends(pixels: int) -> list[tuple[int, int]]:
        length = max(1, round(2 * pixels / (count + 1)))
        starts = [round(i * (pixels - length) / max(1, count - 1)) for i in range(count)]
        return [(start, start + length) for start in starts]

    return [
        (left, upper, right, lower) for upper, lower in ends(height) for left, right in ends(width)
    ]


def cut(pictures: Images, boxes: Sequence[Sequence[Box]], size: tuple[int, int]) -> Images:
    """What each picture's windows show, all of one picture's before those of the next.

    Windows on preprocessed images are resized to `size`, windows on PIL images are not.
    """
    pairs = [(picture, box) for picture, own in zip(pictures, boxes, strict=True) for box in own]
    if not isinstance(pictures, Tensor):
        return [picture.crop(box) for picture, box in pairs]
    cuts = [
        picture[None, :, upper:lower, left:right] for picture, (left, upper, right, lower) in pairs
    ]
    return torch.cat([F.interpolate(c, size, mode="bicubic", antialias=True) for c in cuts])


def joined(
    maps: Float[Tensor, "windows texts rows columns"],
    boxes: Sequence[Box],
    size: tuple[int, int],
) -> Float[Tensor, "texts height width"]:
    """Windows in their places, averaged where they overlap."""
    total = maps.new_zeros(maps.shape[1], *size)
    count = maps.new_zeros(size)
    for each, (left, upper, right, lower) in zip(maps, boxes, strict=True):
        place = (..., slice(upper, lower), slice(left, right))
        inside = (lower - upper, right - left)
        total[place] += F.interpolate(each[None], inside, mode="bilinear", align_corners=False)[0]
        count[place] += 1
    return total / count


def size_of(picture: Image.Image | Tensor) -> tuple[int, int]:
    """Height and width, in pixels."""
    if isinstance(picture, Tensor):
        return picture.shape[-2], picture.shape[-1]
    return picture.height, picture.width
