"""Labelled pictures for zero-shot classification: ImageNet, ImageNet-R, CIFAR-10, class folders."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import SecondLensError
from . import labelled_sets
from .folder import Folder, ImageFolder
from .sources import ImageSource, Subset, TorchDataset, as_source
from .vocabularies import Vocabulary, class_names, read_lines, vocabulary

WNID = re.compile(r"n\d{8}")
CIFAR = "cifar-10-batches-py"

TEMPLATE = "A photo of a {}"
"""The paper's example of a prompt; the published code averages OpenAI's 80."""

STRUCTURE = (
    "it needs a folder val with one folder of pictures for each of the 1,000 wordnet ids, such as "
    "val/n01440764/ILSVRC2012_val_00000293.JPEG, and, to fit a lens on, a folder train like it"
)


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Pictures, the class of each, and the classes that a zero-shot classifier chooses from."""

    name: str
    source: ImageSource
    labels: tuple[int, ...]
    """Rows of `classes`."""
    classes: Vocabulary

    def __len__(self) -> int:
        return len(self.labels)

    def every(self, step: int) -> "Labelled":
        """Every `step`-th picture, as the published code takes every tenth."""
        return self.at(range(0, len(self), step)) if step > 1 else self

    def at(self, positions: Sequence[int]) -> "Labelled":
        """The pictures at some positions."""
        labels = tuple(self.labels[position] for position in positions)
        return replace(self, source=Subset(self.source, positions), labels=labels)

    def prompted(self, templates: Sequence[str]) -> "Labelled":
        """The same with other prompts for its classes."""
        return replace(self, classes=vocabulary(self.classes, templates=templates))


def labelled(
    path: str | Path, classes: str | Path | None = None, *, all_classes: bool = False
) -> Labelled:
    """Labelled pictures in a folder, recognised by what is in it.

    Parameters
    ----------
    path
        ImageNet, with `val` in it; folders named by wordnet ids, such as ImageNet-R; CIFAR-10 as
        torchvision keeps it, with `cifar-10-batches-py` in it; or one folder for each class.
    classes
        A file with one class folder a line, in the order that classes shall have, each followed,
        if it is not its own name, by a tab and the name. By default the folders' own names, or
        ImageNet's for wordnet ids.
    all_classes
        For wordnet ids: choose from all 1,000 classes of ImageNet, and not only from those that
        have a folder.

    Raises
    ------
    SecondLensError
        None of these is there; a wordnet id that ImageNet does not have; a class without a
        picture; or a list of classes that does not match the folders.
    """
    root = Path(path)
    if not root.is_dir():
        raise SecondLensError(f"there is no folder {root} with labelled pictures: {STRUCTURE}")
    wanted = None if classes is None else Path(classes)
    asked = reversed([*labelled_sets])
    sets: Iterator[Labelled | None] = (
        each(root, classes=wanted, all_classes=all_classes) for each in asked
    )
    return next(found for found in sets if found is not None)


def class_folders(root: Path, *, classes: Path | None, all_classes: bool) -> Labelled:
    """The member "class-folders" of `labelled_sets`, which takes any folder.

    Raises
    ------
    SecondLensError
        As `labelled`.
    """
    found = ImageFolder(root)
    _check_no_empty(root, found.classes)
    if classes is not None:
        names = _listed(classes, found.classes)
    elif any(WNID.fullmatch(name) for name in found.classes):
        names = _wordnet_names(found.classes, root)
        if all_classes:
            names = imagenet_names()
    else:
        names = {name: name for name in found.classes}
    place = {folder: row for row, folder in enumerate(names)}
    return Labelled(
        name=root.name,
        source=found,
        labels=tuple(place[found.classes[label]] for label in found.labels),
        classes=class_names(root.name, names.values()),
    )


def training_pictures(path: str | Path) -> ImageSource:
    """The pictures that a lens is fitted on: `train` of ImageNet, or of CIFAR-10.

    Raises
    ------
    SecondLensError
        There are none.
    """
    root = Path(path)
    if (root / CIFAR).is_dir():
        return TorchDataset(_cifar_part(root, train=True))
    if (root / "train").is_dir():
        return Folder(root / "train")
    raise SecondLensError(
        f"{root} has no training pictures to fit a lens on: name a lens with --lens, or ImageNet's "
        f"folder, {STRUCTURE}"
    )


def evenly(source: ImageSource, count: int) -> ImageSource:
    """`count` pictures of a source, evenly spaced, as the paper's every 250th of ImageNet."""
    total = len(source.ids)
    if count >= total:
        return source
    return Subset(source, [position * total // count for position in range(count)])


def imagenet_names() -> dict[str, str]:
    """Wordnet id -> name of the 1,000 classes of ImageNet, in their order."""
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data.imagenet_info import ImageNetInfo

    return dict(zip(ImageNetInfo("imagenet-1k").label_names(), IMAGENET_CLASSNAMES, strict=True))


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


def _refuse_list(root: Path, classes: Path | None) -> None:
    if classes is not None:
        raise SecondLensError(
            f"{root} is laid out as ImageNet or CIFAR-10, whose classes are known: drop the list "
            "of classes, or name the folder in it that holds a folder for each class"
        )


def imagenet(root: Path, *, classes: Path | None, **_: Any) -> Labelled | None:
    """The member "imagenet" of `labelled_sets`: a folder with val or train in it.

    Raises
    ------
    SecondLensError
        A list of classes, no val, or a class without a folder or that is not ImageNet's.
    """
    if not any((root / name).is_dir() for name in ("val", "train")):
        return None
    _refuse_list(root, classes)
    if not (root / "val").is_dir():
        raise SecondLensError(f"{root} has no folder val: {STRUCTURE}")
    found = ImageFolder(root / "val")
    names = imagenet_names()
    _wordnet_names(found.classes, root / "val")
    if missing := [wnid for wnid in names if wnid not in found.classes]:
        others = f", nor of {len(missing) - 1} other classes" if missing[1:] else ""
        raise SecondLensError(
            f"{root / 'val'} has no pictures of {missing[0]} ({names[missing[0]]}){others}: "
            f"{STRUCTURE}"
        )
    return Labelled(
        name="ImageNet validation",
        source=as_source(found),
        labels=tuple(found.labels),
        classes=vocabulary("imagenet"),
    )


def cifar_10(root: Path, *, classes: Path | None, **_: Any) -> Labelled | None:
    """The member "cifar-10" of `labelled_sets`: a folder with cifar-10-batches-py in it.

    Raises
    ------
    SecondLensError
        A list of classes, or files that are missing or damaged.
    """
    if not (root / CIFAR).is_dir():
        return None
    _refuse_list(root, classes)
    data = _cifar_part(root, train=False)
    if without := sorted(set(range(len(data.classes))) - set(data.targets)):
        raise SecondLensError(f"{root / CIFAR} has no pictures of {data.classes[without[0]]}")
    return Labelled(
        name="CIFAR-10 test",
        source=TorchDataset(data),
        labels=tuple(data.targets),
        classes=class_names("cifar-10", data.classes),
    )


def _cifar_part(root: Path, *, train: bool) -> Any:
    from torchvision.datasets import CIFAR10

    try:
        return CIFAR10(root, train=train, download=False)
    except (RuntimeError, OSError, KeyError, EOFError) as error:
        raise SecondLensError(
            f"{root / CIFAR} is not the CIFAR-10 that torchvision knows, or is damaged: download "
            "cifar-10-python.tar.gz again and unpack it there"
        ) from error


def _wordnet_names(folders: Sequence[str], root: Path) -> dict[str, str]:
    """The names of folders that are wordnet ids, in ImageNet's order."""
    names = imagenet_names()
    if unknown := [folder for folder in folders if folder not in names]:
        raise SecondLensError(
            f"the folder {unknown[0]} in {root} is no wordnet id of ImageNet's 1,000 classes: "
            "remove it, or name the classes in a file"
        )
    return {wnid: name for wnid, name in names.items() if wnid in folders}


def _listed(path: Path, folders: Sequence[str]) -> dict[str, str]:
    """Folder -> name, in the order of a file."""
    lines = [line.rstrip("\r") for line in read_lines(path) if line.strip()]
    pairs = [(line.partition("\t")[0].strip(), line.rpartition("\t")[2].strip()) for line in lines]
    names = dict(pairs)
    if len(names) < len(pairs):
        raise SecondLensError(f"{path} lists a class twice: list each once")
    if missing := [folder for folder in folders if folder not in names]:
        raise SecondLensError(
            f"{path} does not list {missing[0]}, which has a folder of pictures: add a line for it"
        )
    if without := [name for name in names if name not in folders]:
        raise SecondLensError(
            f"{path} lists {without[0]}, and there are no pictures of it: remove the line, or add "
            "a folder of that name"
        )
    return names


def _check_no_empty(root: Path, with_pictures: Sequence[str]) -> None:
    folders = sorted(each.name for each in root.iterdir() if each.is_dir())
    if empty := [name for name in folders if name not in with_pictures]:
        raise SecondLensError(
            f"there are no pictures in {root / empty[0]}: add some of that class, or remove it"
        )
