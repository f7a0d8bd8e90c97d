"""What a path or an object holds, and the source for it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..errors import SecondLensError
from ..storage.remote import Place, location
from .folder import Folder
from .huggingface import HuggingFace, is_held, is_streamed, streamed
from .parquet import Parquet
from .source import ImageSource, InMemory, TorchDataset
from .spool import Spooled
from .stored import StoredFolder
from .tar import Tar


def as_source(images: Any) -> ImageSource:
    """The source for whatever holds pictures.

    Parameters
    ----------
    images
        A path: a folder of pictures, at any depth; tar or Parquet files, as one file, a folder of
        them, a pattern such as `data-{000..015}.tar` or `data-*.tar`, or a list of these; or a
        folder that `save_to_disk` of Hugging Face's `datasets` wrote. All but the last may lie in a
        store, such as `s3://bucket/data-*.tar`. Or an object: PIL images or
        (id, image) pairs in a list, a preprocessed tensor [images, 3, height, width], a dataset of
        `datasets` or torchvision, or an `ImageSource`, which is returned as it is. Any other
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
    other = next(each for each in files if location(each).suffix.lower() not in Tar.SUFFIXES)
    if not location(other).exists():
        raise SecondLensError(f"no folder or file {other}: name one that holds pictures")
    raise SecondLensError(
        f"{other} is no folder of pictures, and not one of several files that are all .tar or all "
        ".parquet: name the folder it is in, or such files"
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
