"""Where pictures come from: a folder, a list in memory, a tensor, or a source of your own.

A source is anything with `ids` and `load`; adapters for the usual cases are here. Reading goes
through torch's DataLoader, so decoding can happen in worker processes.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .errors import SecondLensError
from .view import Clip


@runtime_checkable
class ImageSource(Protocol):
    """Pictures by position; every position has a stable id."""

    @property
    def ids(self) -> Sequence[str]:
        """One id for each picture, none twice."""

    def load(self, index: int) -> Image.Image | Tensor:
        """Picture `index`, or the tensor [3, height, width] of one already preprocessed.

        Raises
        ------
        OSError, ValueError, SyntaxError, DecompressionBombError
            The picture cannot be read; it is then skipped and counted.
        """


UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class Folder:
    """All pictures under a folder, sorted by path; an id is the path relative to the folder.

    Raises
    ------
    SecondLensError
        There is no such folder, or no picture in it.
    """

    SUFFIXES = frozenset(Image.registered_extensions()) - {".pdf", ".mpg", ".mpeg", ".h5", ".hdf"}

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise SecondLensError(f"no folder {self.root}: name one that holds pictures")
        paths = (p for p in self.root.rglob("*") if p.suffix.lower() in self.SUFFIXES)
        self.ids = sorted(str(p.relative_to(self.root)) for p in paths if p.is_file())
        if not self.ids:
            raise SecondLensError(f"no pictures in {self.root} or the folders in it")

    def load(self, index: int) -> Image.Image:
        """The picture upright, as its EXIF orientation says."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                with Image.open(self.root / self.ids[index]) as image:
                    return ImageOps.exif_transpose(image).convert("RGB")
            except Image.DecompressionBombWarning as warning:
                raise ValueError(str(warning)) from warning


@dataclass(frozen=True)
class InMemory:
    """PIL images, or the rows of a preprocessed tensor [images, 3, height, width]."""

    pictures: Sequence[Image.Image] | Tensor

    @property
    def ids(self) -> list[str]:
        """The position of each."""
        return [str(i) for i in range(len(self.pictures))]

    def load(self, index: int) -> Image.Image | Tensor:
        """Picture `index`."""
        return self.pictures[index]


def as_source(images: Any) -> ImageSource:
    """A folder's path, PIL images, a preprocessed tensor, or a source, as a source.

    Raises
    ------
    SecondLensError
        It is none of these, or empty.
    """
    if isinstance(images, str | Path):
        return Folder(images)
    if isinstance(images, ImageSource):
        source: ImageSource = images
    elif isinstance(images, Tensor | Sequence):
        source = InMemory(images)
    else:
        raise SecondLensError(
            "images must be a folder, a list of PIL images, a preprocessed tensor or a source with "
            f"ids and load, not {type(images).__name__}"
        )
    if len(source.ids) == 0:
        raise SecondLensError("there are no images: give at least one")
    return source


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some pictures of a source: their positions and the image tower's input for them."""

    positions: list[int]
    pixels: Float[Tensor, "images 3 height width"]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads a source in batches for a model, as often as asked, skipping what cannot be read."""

    source: ImageSource
    clip: Clip
    batch_size: int = 32
    workers: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    """Id -> reason, of the pictures that could not be read so far."""

    def __iter__(self) -> Iterator[Batch]:
        loader = DataLoader(
            _Decoded(self.source, self.clip.preprocess),
            batch_size=self.batch_size,
            num_workers=self.workers,
            collate_fn=list,
        )
        for items in loader:
            read = []
            for position, picture in items:
                if isinstance(picture, str):
                    self.skipped[self.source.ids[position]] = picture
                else:
                    read.append((position, picture))
            if read:
                positions, pixels = zip(*read, strict=True)
                yield Batch(positions=list(positions), pixels=torch.stack(pixels))

    def __len__(self) -> int:
        """Batches, at most."""
        return -(-len(self.source.ids) // self.batch_size)


class _Decoded(Dataset):
    """(position, preprocessed picture), or (position, reason) where it cannot be read."""

    def __init__(
        self, source: ImageSource, preprocess: Callable[[Image.Image], Tensor] | None
    ) -> None:
        self.source, self.preprocess = source, preprocess

    def __len__(self) -> int:
        return len(self.source.ids)

    def __getitem__(self, position: int) -> tuple[int, Tensor | str]:
        try:
            picture = self.source.load(position)
        except UNREADABLE as error:
            return position, f"{type(error).__name__}: {error}"
        if isinstance(picture, Tensor):
            return position, picture
        if self.preprocess is None:
            raise SecondLensError(
                "the model came without preprocessing: pass preprocess= when wrapping the model, "
                "or give a float tensor of preprocessed images"
            )
        return position, self.preprocess(picture)
