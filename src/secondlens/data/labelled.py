"""Labelled pictures for zero-shot classification, recognised by what is in a folder."""

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import SecondLensError
from ..storage.remote import is_remote, location
from . import labelled_sets
from .sources import ImageSource, Subset
from .vocabularies import Vocabulary, class_names, read_lines, vocabulary

WNID = re.compile(r"n\d{8}")

CLASS = "class"
"""The column of the labels, where groups are named."""
TEMPLATE = "A photo of a {}"
"""The paper's example of a prompt; the published code averages OpenAI's 80."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Pictures, the class of each, and the classes that a zero-shot classifier chooses from."""

    name: str
    source: ImageSource
    labels: tuple[int, ...]
    """Rows of `classes`."""
    classes: Vocabulary
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What else is known of each picture, by the name of the column: see `metadata`."""

    def __len__(self) -> int:
        return len(self.labels)

    def every(self, step: int) -> "Labelled":
        """Every `step`-th picture, as the published code takes every tenth."""
        return self.at(range(0, len(self), step)) if step > 1 else self

    def at(self, positions: Sequence[int]) -> "Labelled":
        """The pictures at some positions."""
        labels = tuple(self.labels[position] for position in positions)
        attributes = {
            name: tuple(values[position] for position in positions)
            for name, values in self.attributes.items()
        }
        source = Subset(self.source, positions)
        return replace(self, source=source, labels=labels, attributes=attributes)

    def groups(self, columns: Sequence[str]) -> dict[str, list[int]]:
        """Positions of the pictures that have some columns in common, by the name of the group,
        such as "landbird, place=1", in the order of their first pictures.

        Parameters
        ----------
        columns
            Names of `attributes`, and "class".

        Raises
        ------
        SecondLensError
            No columns, or one that the set does not have.
        """
        known = [CLASS, *self.attributes]
        if unknown := [name for name in columns if name not in known] or (
            [] if columns else ["nothing"]
        ):
            raise SecondLensError(
                f"{self.name} has no groups by {unknown[0]}: choose from {', '.join(known)}"
            )
        found: dict[str, list[int]] = {}
        for position, label in enumerate(self.labels):
            parts = [
                self.classes.labels[label]
                if name == CLASS
                else f"{name}={self.attributes[name][position]}"
                for name in columns
            ]
            found.setdefault(", ".join(parts), []).append(position)
        return found

    def prompted(self, templates: Sequence[str]) -> "Labelled":
        """The same with other prompts for its classes."""
        return replace(self, classes=vocabulary(self.classes, templates=templates))


@dataclass(frozen=True, kw_only=True)
class KeyedPictures:
    """Pictures with what their set calls the class of each, before the classes have names."""

    name: str
    source: ImageSource
    keys: Sequence[str]
    """Of each picture: the name of its class folder, a wordnet id, or a number from 0."""
    names: Mapping[str, str] | None = None
    """Key -> name of each class, in their order, if the set says; else wordnet ids have ImageNet's
    names and others are their own."""
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What else the set says of each picture, by the name of the column."""


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """A labelled set that was recognised; its pictures are found when they are asked for."""

    test: Callable[[], KeyedPictures]
    """Those to measure on."""
    training: Callable[[], ImageSource] | None = None
    """Those to fit a lens on, if the set has others for that."""
    parts: tuple[str, ...] = ()
    """Names of the parts that were found below the path, if that is not one of them."""


def recognised(path: str | Path) -> LabelledSet:
    """The labelled set at a path, by the first of `labelled_sets` that knows its layout.

    Raises
    ------
    SecondLensError
        There is nothing, or in no layout that is known.
    """
    if is_remote(path):
        from .stored_sets import stored

        return stored(location(str(path).rstrip("/")))
    # so that the folder a path is in has a name, whatever the path
    root = Path(os.path.abspath(path))  # noqa: PTH100
    sets: Iterator[LabelledSet | None] = (each(root) for each in reversed([*labelled_sets]))
    for found in sets:
        if found is not None:
            return found
    if not root.exists():
        raise SecondLensError(f"there is no folder {path} with labelled pictures: {LAYOUTS}")
    raise SecondLensError(f"{path} is not a set with labels: {LAYOUTS}")


LAYOUTS = (
    "name a folder with one folder of pictures for each class, such as "
    "val/n01440764/ILSVRC2012_val_00000293.JPEG, or a set that `secondlens list labelled-sets` "
    "knows"
)


def labelled(
    path: str | Path, classes: str | Path | None = None, *, all_classes: bool = False
) -> Labelled:
    """Labelled pictures at a path, recognised by what is there.

    Parameters
    ----------
    path
        A folder in any layout of `labelled_sets`, or files of it, such as
        `imagenet/data/validation-*.parquet`; or class folders, Parquet files or shards in a store,
        such as "s3://bucket/imagenet".
    classes
        A file with one class a line, in the order that they shall have, each followed, if it is not
        its own name, by a tab and the name; of classes that are numbers, the names alone, from 0.
        By default the set's own names, or ImageNet's for wordnet ids.
    all_classes
        For wordnet ids: choose from all 1,000 classes of ImageNet, and not only from those that
        have pictures.

    Raises
    ------
    SecondLensError
        No layout that is known, or labels that are missing; a wordnet id that ImageNet does not
        have; fewer than two classes; or a list of classes that does not match the pictures.
    """
    pictures = recognised(path).test()
    wanted = None if classes is None else Path(classes)
    names = _class_names(pictures, wanted, all_classes)
    if len(names) < 2:
        raise SecondLensError(
            f"{path} has one class only, {next(iter(names))}, so that every answer would be right: "
            "name a folder that holds a folder for each of several classes"
        )
    place = {key: row for row, key in enumerate(names)}
    whole = list(names.values()) == list(imagenet_names().values())
    few = all(WNID.fullmatch(key) for key in names) and not whole
    return Labelled(
        name=pictures.name + (f" ({len(names)} of ImageNet's 1,000 classes)" if few else ""),
        source=pictures.source,
        labels=tuple(place[key] for key in pictures.keys),
        classes=vocabulary("imagenet") if whole else class_names(pictures.name, names.values()),
        attributes=pictures.attributes,
    )


def _class_names(
    pictures: KeyedPictures, listed: Path | None, all_classes: bool
) -> Mapping[str, str]:
    """Key -> name of the classes to choose from, in their order."""
    keys = sorted(set(pictures.keys))
    if listed is not None:
        return _listed(listed, keys)
    if pictures.names is not None:
        return pictures.names
    if all(key.isdecimal() for key in keys):
        raise SecondLensError(
            f"the labels of {pictures.name} are numbers without names: name them with --classes, a "
            "file with one class a line"
        )
    if not any(WNID.fullmatch(key) for key in keys):
        return {key: key for key in keys}
    names = imagenet_names()
    if unknown := [key for key in keys if key not in names]:
        raise SecondLensError(
            f"the class {unknown[0]} of {pictures.name} is not a wordnet id of ImageNet's 1,000 "
            "classes: remove it, or name the classes in a file"
        )
    return names if all_classes else {key: name for key, name in names.items() if key in keys}


def training_pictures(path: str | Path) -> ImageSource:
    """The pictures that a lens is fitted on: those that a labelled set has for training.

    Raises
    ------
    SecondLensError
        There are none.
    """
    training = recognised(path).training
    if training is None:
        raise SecondLensError(
            f"{path} has no training pictures to fit a lens on: name a lens with --lens, or the "
            "folder that holds both train and val"
        )
    return training()


def evenly(source: ImageSource, count: int) -> ImageSource:
    """`count` pictures of a source, evenly spaced, as the paper's every 250th of ImageNet."""
    total = len(source.ids)
    if count >= total:
        return source
    return Subset(source, [position * total // count for position in range(count)])


@cache
def imagenet_names() -> Mapping[str, str]:
    """Wordnet id -> name of the 1,000 classes of ImageNet, in their order."""
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data.imagenet_info import ImageNetInfo

    wnids = ImageNetInfo("imagenet-1k").label_names()
    return MappingProxyType(dict(zip(wnids, IMAGENET_CLASSNAMES, strict=True)))


def ranks(
    embeddings: Float[Tensor, "images dim"],
    classifier: Float[Tensor, "classes dim"],
    labels: Int[Tensor, " images"],
) -> Int[Tensor, " images"]:
    """How many classes score above the true one: 0 is right, below 5 is right in the top five.

    Of equal scores, the class with the lower number counts as the higher.
    """
    scores = embeddings @ classifier.T
    own = scores.gather(1, labels[:, None])
    earlier = torch.arange(len(classifier), device=labels.device) < labels[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(1)


def check_labels(labels: Sequence[int], images: int, classes: int) -> None:
    """Raise `SecondLensError` unless each image has a label, and each label is a class."""
    if len(labels) != images:
        raise SecondLensError(f"there are {images} images and {len(labels)} labels: give as many")
    if labels and not 0 <= min(labels) <= max(labels) < classes:
        wrong = next(label for label in labels if not 0 <= label < classes)
        raise SecondLensError(
            f"labels must lie between 0 and {classes - 1}, the classes of the classifier, and one "
            f"is {wrong}"
        )


def check_label_sets(labels: Sequence[Collection[str]], images: int, of: str) -> None:
    """Raise `SecondLensError` unless each image has a set of texts, such as classes."""
    if len(labels) != images:
        raise SecondLensError(
            f"there are {images} images and labels of {len(labels)}: give those of each"
        )
    if any(isinstance(each, str) for each in labels):
        raise SecondLensError(
            f"labels are texts, not sets of texts: give a set of {of} for each image"
        )


def _listed(path: Path, keys: Sequence[str]) -> dict[str, str]:
    """Key -> name, in the order of a file."""
    lines = [line.rstrip("\r") for line in read_lines(path) if line.strip()]
    pairs = [(line.partition("\t")[0].strip(), line.rpartition("\t")[2].strip()) for line in lines]
    if all(key.isdecimal() for key in keys) and not set(keys) & {key for key, _ in pairs}:
        pairs = [(str(number), name) for number, (_, name) in enumerate(pairs)]
        if missing := [key for key in keys if int(key) >= len(pairs)]:
            raise SecondLensError(
                f"{path} names {len(pairs)} classes, and there are pictures of number "
                f"{missing[0]}, counted from 0: add a line for it"
            )
        return dict(pairs)
    names = dict(pairs)
    if len(names) < len(pairs):
        raise SecondLensError(f"{path} lists a class twice: list each once")
    if missing := [key for key in keys if key not in names]:
        raise SecondLensError(
            f"{path} does not list {missing[0]}, of which there are pictures: add a line for it"
        )
    if without := [name for name in names if name not in keys]:
        raise SecondLensError(
            f"{path} lists {without[0]}, and there are no pictures of it: remove the line, or add "
            "a folder of that name"
        )
    return names
