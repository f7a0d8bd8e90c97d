"""Images with masks: one of them, a set of them, and parts of a set.

A set is anything with `len` and `[index]` that gives an `Example`. Masks hold 1 where the object
is, 0 where it is not, and -1 (`IGNORE`) where nobody has said.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int8
from PIL import Image
from torch import Tensor

from ...errors import SecondLensError


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image and a mask for each thing that is named in it.

    Raises
    ------
    SecondLensError
        Masks of another size than the image, or not one for each label.
    """

    id: str
    image: Image.Image
    labels: tuple[str | None, ...]
    """Names of classes; None where the set does not say: the model then predicts it."""
    masks: Int8[np.ndarray, "labels height width"]

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.masks):
            raise SecondLensError(
                f"{self.id} has {len(self.labels)} labels and {len(self.masks)} masks: give as many"
            )
        if self.masks.shape[1:] != (self.image.height, self.image.width):
            height, width = self.masks.shape[1:]
            raise SecondLensError(
                f"{self.id} is {self.image.width} x {self.image.height} pixels and its mask "
                f"{width} x {height}: give a mask of the image's size"
            )

    def masks_at(self, size: tuple[int, int]) -> Int8[Tensor, "labels height width"]:
        """Masks at `size` (height, width): each pixel takes the nearest one's value."""
        masks = torch.from_numpy(self.masks)[:, None].float()
        return F.interpolate(masks, size=size, mode="nearest-exact")[:, 0].to(torch.int8)


@runtime_checkable
class MaskedImages(Protocol):
    """A set of examples by position."""

    def __len__(self) -> int:
        """How many images."""

    def __getitem__(self, index: int, /) -> Example:
        """Image `index` with its masks."""


@dataclass(frozen=True)
class Part:
    """Some examples of a set, by position."""

    whole: MaskedImages
    positions: Sequence[int]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Example:
        return self.whole[self.positions[index]]


def split(images: MaskedImages, development: int, seed: int = 0) -> tuple[Part, Part]:
    """Some images for tuning, drawn at random, and all others.

    Raises
    ------
    SecondLensError
        Nothing would be left.
    """
    if development >= len(images):
        raise SecondLensError(
            f"{development} development images of {len(images)} leave none to test on: take fewer"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator).tolist()
    return Part(images, sorted(order[:development])), Part(images, sorted(order[development:]))


def iterate(images: MaskedImages) -> Iterator[Example]:
    """All examples that have anything labelled in them."""
    for index in range(len(images)):
        if (example := images[index]).labels:
            yield example
