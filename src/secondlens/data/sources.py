"""What a path or an object holds, and the source for it."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from ..errors import SecondLensError
from ..storage.remote import Place, location
from .decoding import upright_rgb
from .folder import Folder, PictureFiles, StoredFolder
from .huggingface import HuggingFace, is_held, is_streamed, streamed
from .parquet import Parquet
from .streams import Spooled
from .tar import Tar

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


def as_source(images: Any) -> ImageSource:
    """The source for whatever holds pictures.

    Parameters
    ----------
    images
        A path: a folder of pictures, at any depth; pictures, tar or Parquet files, as one file, a
        pattern such as `data-{000..015}.tar` or `data-*.tar`, or a list of these; a folder of tar
        or Parquet files; or a folder that `save_to_disk` of Hugging Face's `datasets` wrote. All
        but the last may lie in a store, such as `s3://bucket/data-*.tar`. Or an object: PIL images
        or (id, image) pairs in a list, a preprocessed tensor [images, 3, height, width], a dataset
        of `datasets` or torchvision, or an `ImageSource`, which is returned as it is. Any other
        iterable is a stream of pictures, which is read to its end and kept as `Spooled`.

    Raises
    ------
    SecondLensError
        It is none of these, is empty, or has an id twice; what it names does not exist, or holds
        more than one kind of file.
    """
    source = _adapted(images)
    if len(source.ids) == 0:
        raise SecondLensError("there are no images: give at least one")
    if len(set(source.ids)) < len(source.ids):
        twice, _ = Counter(source.ids).most_common(1)[0]
        raise SecondLensError(f"two images have the id {twice!r}: give each an id of its own")
    return source


def pictures_of(images: Any) -> list[Image.Image] | Tensor:
    """A few pictures, all in memory, as every other function sees them: upright RGB.

    Parameters
    ----------
    images
        What `as_source` takes, or one PIL image. Preprocessed tensors are left as they are.

    Raises
    ------
    SecondLensError
        As `as_source`, a picture cannot be read, or some are preprocessed and others are not.
    """
    if isinstance(images, Tensor):
        return images
    source = as_source([images] if isinstance(images, Image.Image) else images)
    found: list[Any] = []
    for index, name in enumerate(source.ids):
        try:
            picture = source.load(index)
            found.append(picture if isinstance(picture, Tensor) else upright_rgb(picture))
        except UNREADABLE as error:
            raise SecondLensError(f"the picture {name!r} cannot be used: {error}") from error
    tensors = [each for each in found if isinstance(each, Tensor)]
    if tensors and len({each.shape for each in tensors}) + (len(tensors) < len(found)) > 1:
        raise SecondLensError(
            "preprocessed pictures must be alone and of one shape: give PIL images, or tensors"
        )
    return torch.stack(tensors) if tensors else found


def _adapted(images: Any) -> ImageSource:
    if isinstance(images, str | Place):
        return _of_path(images)
    if is_held(images):
        return HuggingFace(images)
    if is_streamed(images):
        return Spooled(streamed(images))
    if isinstance(images, Mapping):
        raise SecondLensError(
            f"images is a mapping of {', '.join(map(str, list(images)[:5]))}: give one entry of it"
        )
    if isinstance(images, ImageSource):
        return images
    if isinstance(images, Tensor):
        return InMemory(images)
    if isinstance(images, Sequence):
        return _of_list(images)
    if hasattr(images, "__len__") and hasattr(images, "__getitem__"):
        return TorchDataset(images)
    if isinstance(images, Iterable):
        return Spooled(images)
    raise SecondLensError(
        "images must be a path, PIL images, a preprocessed tensor, a dataset, a stream of pictures "
        f"or a source with ids and load, not {type(images).__name__}"
    )


def _of_path(images: str | Place) -> ImageSource:
    path = location(images)
    if not path.is_dir():
        return _of_files([images])
    here = path if isinstance(path, Path) else None
    try:
        names = {each.name for each in path.iterdir()}
    except OSError as error:
        raise SecondLensError(f"the folder {path} cannot be listed: {error.strerror}") from error
    if here and (names >= {"state.json", "dataset_info.json"} or "dataset_dict.json" in names):
        return HuggingFace.from_disk(here)
    suffixes = {Path(name).suffix.lower() for name in names}
    kinds = [kind for kind in (Tar, Parquet, Folder) if kind.SUFFIXES & suffixes]
    if len(kinds) > 1:
        found = " and ".join(sorted(min(kind.SUFFIXES & suffixes) for kind in kinds))
        raise SecondLensError(
            f"{path} holds {found} files: say which to use by a pattern such as '{path}/*.tar', or "
            "make an images.Tar, Parquet or Folder of it"
        )
    for kind in (Tar, Parquet):
        if kind in kinds:
            return kind(path)
    return Folder(here) if here else StoredFolder(path)


def _of_files(files: Sequence[str | Place]) -> ImageSource:
    suffixes = {location(each).suffix.lower() for each in files}
    for kind in (Tar, Parquet):
        if suffixes <= kind.SUFFIXES:
            return kind(files)
    if suffixes <= Folder.SUFFIXES:
        return PictureFiles(files)
    other = next(each for each in files if location(each).suffix.lower() not in Tar.SUFFIXES)
    if not location(other).exists():
        raise SecondLensError(f"no folder or file {other}: name one that holds pictures")
    raise SecondLensError(
        f"{other} is neither a picture nor a folder of pictures, and not one of several files that "
        "are all pictures, all .tar or all .parquet: name the folder it is in, or such files"
    )


def _of_list(images: Sequence[Any]) -> ImageSource:
    kinds = {type(each) for each in images}
    if kinds and all(issubclass(kind, str | Place) for kind in kinds):
        return _of_files(images)
    if kinds == {tuple}:
        named = all(len(each) == 2 and isinstance(each[0], str) for each in images)
        if not named:
            return TorchDataset(images)
        ids, pictures = zip(*images, strict=True)
        return InMemory(_checked(pictures), ids)
    return InMemory(_checked(images))


def _checked(pictures: Sequence[Any]) -> Sequence[Image.Image | Tensor]:
    for position, each in enumerate(pictures):
        if not isinstance(each, Image.Image | Tensor):
            raise SecondLensError(
                f"images must be PIL images or tensors, and number {position} of the list is of "
                f"the type {type(each).__name__}"
            )
    return pictures


@dataclass(frozen=True)
class Subset:
    """The pictures at some positions of a source, under the ids that they have there.

    For ImageNet as the paper takes it: `Subset(folder, range(0, len(folder.ids), 250))`.
    """

    source: ImageSource
    positions: Sequence[int]
    ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        ids = self.source.ids
        object.__setattr__(self, "ids", [ids[position] for position in self.positions])

    @property
    def damaged(self) -> Mapping[str, str]:
        """As of the whole source."""
        return self.source.damaged if isinstance(self.source, FileSource) else {}

    def sizes(self) -> Sequence[int]:
        """As of the whole source, so that a change of its files is noticed."""
        return self.source.sizes() if isinstance(self.source, FileSource) else []

    def load(self, index: int) -> Image.Image | Tensor:
        """The picture at `positions[index]` of the source."""
        return self.source.load(self.positions[index])


def with_ids(source: ImageSource, ids: Sequence[str]) -> Subset:
    """The pictures of a source that have these ids, in their order.

    Raises
    ------
    SecondLensError
        The source has no such picture.
    """
    place = {each: position for position, each in enumerate(source.ids)}
    if missing := [each for each in ids if each not in place]:
        raise SecondLensError(
            f"there is no picture {missing[0]!r}, which the lens was fitted on: give the pictures "
            "of the fit"
        )
    return Subset(source, [place[each] for each in ids])
