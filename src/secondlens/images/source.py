"""What a source of pictures is, and sources that are in memory already."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What a source may raise for a picture that cannot be read."""


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
            The picture cannot be read; it is then skipped and listed.
        """


@runtime_checkable
class FileSource(ImageSource, Protocol):
    """A source in files, which may be damaged, and may change between two runs."""

    @property
    def damaged(self) -> Mapping[str, str]:
        """Name -> reason, of files and folders whose pictures could not all be found."""

    def sizes(self) -> Sequence[int]:
        """Bytes of each picture, or of each file that holds many pictures."""


class InMemory:
    """PIL images, or the rows of a preprocessed tensor [images, 3, height, width].

    An id is the position, unless `ids` are given.
    """

    def __init__(
        self,
        pictures: Sequence[Image.Image | Tensor] | Tensor,
        ids: Sequence[str] | None = None,
    ) -> None:
        self.pictures = pictures
        self.ids = [str(i) for i in range(len(pictures))] if ids is None else list(ids)

    def load(self, index: int) -> Image.Image | Tensor:
        """Picture `index`."""
        return self.pictures[index]


class TorchDataset:
    """A dataset as torchvision has them: items are pictures or begin with one; ids are positions.

    A picture may be a PIL image, or a preprocessed tensor [3, height, width].
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.ids = [str(i) for i in range(len(dataset))]

    def load(self, index: int) -> Any:
        """The picture of item `index`."""
        item = self.dataset[index]
        return item[0] if isinstance(item, tuple | list) else item


def dataset_hash(source: ImageSource) -> str:
    """SHA-256 over the ids, and over the sizes of files, to tell two sets of images apart.

    Neither contents nor dates count: no picture is read, and a copied set is the same set. What is
    no file has no sizes: two lists, or datasets of a library, of one length look alike.
    """
    sizes = list(source.sizes()) if isinstance(source, FileSource) else []
    return hashlib.sha256(json.dumps([list(source.ids), sizes]).encode()).hexdigest()
