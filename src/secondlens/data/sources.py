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
from ..naming import shown_place
from ..storage.remote import Place, location
from . import labelled_sets
from .decoding import upright_rgb
from .folder import Folder, PictureFiles, StoredFolder
from .huggingface import HuggingFace, is_held, is_streamed, streamed
from .parquet import Parquet
from .splits import TRAIN, archives, by_split
from .strays import is_stray
from .streams import Spooled
from .tar import Tar, expand

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
        """Name -> reason, of whatever lies there and is left out: damaged files, folders that
        cannot be listed, and what is not a picture."""

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


def name_of(images: Any, source: ImageSource) -> str:
    """What to call pictures: their folder or file, or what holds them and how many they are."""
    place = images if isinstance(images, str | Place) else getattr(source, "root", None)
    if place is not None:
        return shown_place(str(place))
    what = "pictures in memory" if isinstance(source, InMemory) else type(source).__name__
    return f"{len(source.ids)} {what}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which of several pictures or ids in archives and tables count; those that are left open are
    found if there is no doubt."""

    column: str | None = None
    """Of pictures: in Parquet files and datasets."""
    extension: str | None = None
    """Of pictures: in tar archives, such as "jpg" or "input.png"."""
    ids: str | None = None
    """A column of ids, or of tar archives "key" or "name"."""

    def of_tar(self) -> dict[str, Any]:
        """Options of `Tar`.

        Raises
        ------
        SecondLensError
            Other ids, or a column.
        """
        if self.ids not in (None, "key", "name"):
            raise SecondLensError(f"ids of tar archives are key or name, not {self.ids!r}")
        self.refuse("tar archives", column=self.column)
        return {"extension": self.extension, "ids": self.ids}

    def of_table(self) -> dict[str, Any]:
        """Options of `Parquet` and `HuggingFace`.

        Raises
        ------
        SecondLensError
            An extension.
        """
        self.refuse("tables", extension=self.extension)
        return {"column": self.column, "ids": self.ids}

    def refuse_all(self, kind: str) -> None:
        """Raise `SecondLensError` if anything was chosen."""
        self.refuse(kind, column=self.column, extension=self.extension, ids=self.ids)

    @staticmethod
    def refuse(kind: str, **given: str | None) -> None:
        """Raise `SecondLensError` for a choice that means nothing for a kind of pictures."""
        for name, value in given.items():
            if value is not None:
                raise SecondLensError(f"{name} means nothing for {kind}: drop it")


def as_source(images: Any, choice: Choice | None = None) -> ImageSource:
    """The source for whatever holds pictures.

    Parameters
    ----------
    images
        A path: a folder of pictures, at any depth; tar or Parquet files, as one file, a folder of
        them, a pattern such as `data-{000..015}.tar` or `data-*.tar`, or a list of these;
        pictures, by a pattern or a list; or a folder that `save_to_disk` of Hugging Face's
        `datasets` wrote. Folders, tar and Parquet files may lie in a store, such as
        `s3://bucket/data-*.tar`. Of a set that holds its parts side by side, such as ImageNet with
        train and val, the training pictures are taken, and `damaged` names the others. Or an
        object: PIL images or (id, image) pairs in a list, a preprocessed tensor
        [images, 3, height, width], a dataset of `datasets` or torchvision, or an `ImageSource`,
        which is returned as it is. Any other iterable is a stream of pictures, which is read to its
        end and kept as `Spooled`.
    choice
        Which pictures count where archives or tables hold several.

    Raises
    ------
    SecondLensError
        It is none of these, is empty, or has an id twice; what it names does not exist, or holds
        more than one kind of file; or a choice that means nothing for it.
    """
    source = _adapted(images, choice or Choice())
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


def _adapted(images: Any, choice: Choice) -> ImageSource:
    if isinstance(images, str | Place):
        return _of_path(images, choice)
    if is_held(images):
        return HuggingFace(images, **choice.of_table())
    if is_streamed(images):
        return Spooled(streamed(images, choice.column))
    if isinstance(images, Sequence) and images and all(_is_place(each) for each in images):
        return _of_files(images, choice)
    choice.refuse_all("pictures in memory")
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


def _is_place(each: Any) -> bool:
    return isinstance(each, str | Place)


def _of_path(images: str | Place, choice: Choice) -> ImageSource:
    path = location(images)
    if not path.is_dir():
        return _of_files([images], choice)
    here = path if isinstance(path, Path) else None
    try:
        names = {each.name for each in path.iterdir()}
    except OSError as error:
        raise SecondLensError(f"the folder {path} cannot be listed: {error.strerror}") from error
    if here and (names >= {"state.json", "dataset_info.json"} or "dataset_dict.json" in names):
        return HuggingFace.from_disk(here, **choice.of_table())
    kinds = [k for k in (Tar, Parquet, Folder) if any(_is_of(k, name) for name in names)]
    if len(kinds) > 1:
        found = " and ".join(sorted(_suffix(kind, names) for kind in kinds))
        raise SecondLensError(
            f"{path} holds {found} files: say which to use by a pattern such as '{path}/*.tar', or "
            "make a Tar, Parquet or Folder of secondlens.data of it"
        )
    if here and (training := _training_part(here)) is not None:
        choice.refuse_all("pictures in folders")
        return training
    # pictures beside a folder of archives show what is in them
    place = path / "data" if Folder in kinds else path
    for kind in (Tar, Parquet):
        if place.is_dir() and (files := archives(place, kind.SUFFIXES)):
            return _of_archives(place, files, choice)
    choice.refuse_all("pictures in folders")
    return Folder(here) if here else StoredFolder(path)


def _is_of(kind: type[Tar | Parquet | Folder], name: str) -> bool:
    return name.lower().endswith(tuple(kind.SUFFIXES)) and not is_stray(name)


def _suffix(kind: type[Tar | Parquet | Folder], names: Iterable[str]) -> str:
    return next(Path(name).suffix.lower() for name in sorted(names) if _is_of(kind, name))


def _of_archives(root: Place, files: Sequence[Place], choice: Choice) -> ImageSource:
    """All files, or, if names tell splits apart, those to train on."""
    groups = by_split(files, root)
    if TRAIN not in groups or len(groups) == 1:
        return _of_files(files, choice)
    source: Any = _of_files(groups.pop(TRAIN), choice)
    others = {each.name: _NOT_TRAINING for group in groups.values() for each in group}
    source.damaged.update(others)
    chosen: ImageSource = source
    return chosen


_NOT_TRAINING = "left out: a part that is not for training; name it alone to read it"


def _training_part(root: Path) -> ImageSource | None:
    """The training pictures of a set that holds its parts side by side; None of anything else."""
    for member in reversed([each for each in labelled_sets if each.name in _WITH_PARTS]):
        found = member(root.absolute())
        if found is not None and found.parts and found.training is not None:
            source: Any = found.training()
            others = [each for each in found.parts if each != TRAIN]
            source.damaged.update(dict.fromkeys(others, _NOT_TRAINING))
            training: ImageSource = source
            return training
    return None


_WITH_PARTS = ("splits", "imagenet", "cifar-10")
"""Labelled sets whose pictures are no archives, and whose parts a folder may hold side by side."""


def _of_files(files: Sequence[str | Place], choice: Choice) -> ImageSource:
    lowered = [location(each).name.lower() for each in files]
    if all(each.endswith(Tar.SUFFIXES) for each in lowered):
        return Tar(files, **choice.of_tar())
    if all(each.endswith(Parquet.SUFFIXES) for each in lowered):
        return Parquet(files, **choice.of_table())
    choice.refuse_all("files of pictures")
    for each in files:
        _check_picture(each)
    return PictureFiles(files)


def _check_picture(file: str | Place) -> None:
    """Raise `SecondLensError` for what is not a picture by its name, nor a pattern of some."""
    if location(file).suffix.lower() in Folder.SUFFIXES:
        return
    if not set(str(file)) & set("*?[{") and not location(file).exists():
        raise SecondLensError(f"no folder or file {file}: name one that holds pictures")
    if other := [p for p in expand(file, ()) if p.suffix.lower() not in Folder.SUFFIXES]:
        raise SecondLensError(
            f"{other[0]} is neither a picture nor a folder of pictures, and not one of several "
            "files that are all pictures, all .tar or all .parquet: name the folder it is in, or "
            "such files"
        )


def _of_list(images: Sequence[Any]) -> ImageSource:
    if {type(each) for each in images} == {tuple}:
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

    def load(self, index: int) -> Any:
        """The picture at `positions[index]` of the source."""
        return self.source.load(self.positions[index])


def with_ids(
    source: ImageSource,
    ids: Sequence[str],
    *,
    these: str = "the lens was fitted on: give the pictures of the fit",
) -> Subset:
    """The pictures of a source that have these ids, in their order.

    Parameters
    ----------
    these
        What they are and what to do, for the error.

    Raises
    ------
    SecondLensError
        The source has no such picture.
    """
    place = {each: position for position, each in enumerate(source.ids)}
    if missing := [each for each in ids if each not in place]:
        raise SecondLensError(f"there is no picture {missing[0]!r}, which {these}")
    return Subset(source, [place[each] for each in ids])
