"""Labelled sets in archives: Parquet files as on the Hugging Face hub, and webdataset's shards."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath

from ..errors import SecondLensError
from ..storage.remote import Place
from .class_folders import by_number
from .labelled import KeyedPictures, LabelledSet, imagenet_names
from .parquet import Parquet
from .sources import ImageSource, Subset
from .splits import PREFERRED, TRAIN, archives, by_split, split_of
from .tar import Tar, expand
from .vocabularies import read_lines

_Read = Callable[[str, Sequence[Place]], KeyedPictures]

LABEL = "label"
"""The column of labels, or the entry of a `.json`."""

CLASS_NAMES = "classnames.txt"
"""Beside shards: a class a line, by number."""


def parquet(root: Place) -> LabelledSet | None:
    """The member "parquet" of `labelled_sets`: Parquet files with a column `label`."""
    return _by_split(root, Parquet.SUFFIXES, _of_parquet, Parquet)


def webdataset(root: Place) -> LabelledSet | None:
    """The member "webdataset" of `labelled_sets`: tar archives with .cls, or label in .json."""
    return _by_split(root, Tar.SUFFIXES, partial(_of_tar, root), Tar)


_TRAIN_ARCHIVE, _VALIDATION_ARCHIVE = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def imagenet_archives(root: Path) -> LabelledSet | None:
    """The member "imagenet-archives" of `labelled_sets`: ImageNet's archives as they come.

    The path may be the folder that they are in, or one of them; the archives of classes in the
    training part count as class folders.
    """
    folder = root if root.is_dir() else root.parent
    train, val = folder / _TRAIN_ARCHIVE, folder / _VALIDATION_ARCHIVE
    if root not in (folder, train, val) or not (train.is_file() or val.is_file()):
        return None
    if root == train:
        return LabelledSet(test=partial(_of_classes, train, f"{folder.name} train"))
    if not val.is_file():
        return LabelledSet(test=partial(_no_validation, folder), training=partial(Tar, [train]))
    both = train.is_file()
    return LabelledSet(
        test=partial(_of_validation, val),
        training=partial(Tar, [train]) if both else None,
        parts=(val.name, TRAIN) if both and root == folder else (),
    )


def _of_validation(val: Path) -> KeyedPictures:
    return by_number(Tar([val], ids="key"), val, f"{val.parent.name} validation")


def _of_classes(train: Path, name: str) -> KeyedPictures:
    source = Tar([train], ids="key")
    return KeyedPictures(name=name, source=source, keys=[each.split("/")[0] for each in source.ids])


def _no_validation(folder: Path) -> KeyedPictures:
    raise SecondLensError(
        f"{folder} has no {_VALIDATION_ARCHIVE} to measure on: add it, or name "
        f"{folder / _TRAIN_ARCHIVE} to measure on that"
    )


def _by_split(
    root: Place,
    suffixes: tuple[str, ...],
    read: _Read,
    source: Callable[[list[Place]], ImageSource],
) -> LabelledSet | None:
    """The files of the split to measure on, and of that to train on."""
    if root.is_dir():
        groups = by_split(archives(root, suffixes), root)
    elif root.name.lower().endswith(suffixes):
        files = expand(str(root), suffixes)
        named = {split_of(PurePath(each.name)) for each in files}
        groups = {named.pop() if len(named) == 1 else None: files}
    else:
        return None
    if not groups:
        return None
    split = next(each for each in (*PREFERRED, None, TRAIN) if each in groups)
    has_others = TRAIN in groups and split != TRAIN
    folder = root if root.is_dir() else root.parent
    name = folder.parent.name if folder.name == "data" else folder.name
    return LabelledSet(
        test=partial(read, name if split is None else f"{name} {split}", groups[split]),
        training=partial(source, groups[TRAIN]) if has_others else None,
        parts=tuple(each or "others" for each in groups) if has_others else (),
    )


def _of_parquet(name: str, files: Sequence[Place]) -> KeyedPictures:
    """Rows with labels; those without are left out.

    Raises
    ------
    SecondLensError
        No column of labels, or none in it.
    """
    source = Parquet(list(files))
    found = source.values(LABEL)
    labels = [None if each is None or each == -1 else str(each) for each in found]
    return _keyed(name, source, labels, source.class_names(LABEL))


def _of_tar(root: Place, name: str, files: Sequence[Place]) -> KeyedPictures:
    """Pictures with the classes beside them.

    Raises
    ------
    SecondLensError
        A picture has none.
    """
    source = Tar(list(files))
    listing = next((p for p in (root, *root.parents[:2]) if (p / CLASS_NAMES).is_file()), None)
    names = (
        None if listing is None else [line for line in read_lines(listing / CLASS_NAMES) if line]
    )
    return _keyed(name, source, source.notes("cls", LABEL), names)


def _keyed(
    name: str, source: Parquet | Tar, labels: Sequence[str | None], names: Sequence[str] | None
) -> KeyedPictures:
    """Pictures whose labels are numbers from 0, wordnet ids, or the names of classes themselves."""
    known = [position for position, label in enumerate(labels) if label is not None]
    if not known:
        raise SecondLensError(f"{name} has no labels: name another split of it")
    if len(known) < len(labels):
        source.damaged["without a label"] = f"left out: {len(labels) - len(known):,} pictures"
    chosen = source if len(known) == len(labels) else Subset(source, known)
    keys = [label for label in labels if label is not None]
    if not all(key.isdecimal() for key in keys):
        return KeyedPictures(name=name, source=chosen, keys=keys)
    keys = _numbered(keys, names)
    by_number: Mapping[str, str] | None = None
    if names is not None and any(key.isdecimal() for key in keys):
        by_number = {str(number): each for number, each in enumerate(names)}
        if beyond := [key for key in keys if key not in by_number]:
            raise SecondLensError(f"{name} has the label {beyond[0]} and {len(names)} classes")
    if set(keys) == set(imagenet_names()) and "validation" in name:
        name = "ImageNet validation"
    return KeyedPictures(name=name, source=chosen, keys=keys, names=by_number)


def _numbered(keys: Iterable[str], names: Sequence[str] | None) -> list[str]:
    """Numbers as such, or as the wordnet ids that they stand for in ImageNet's order."""
    numbers = [int(key) for key in keys]
    wnids = list(imagenet_names())
    if names is None and set(numbers) == set(range(len(wnids))):
        return [wnids[number] for number in numbers]
    if names is not None and len(names) == len(wnids) and names[0].startswith("tench"):
        return [wnids[number] for number in numbers]
    if names is not None and set(names) <= set(wnids):
        return [names[number] for number in numbers]
    return [str(number) for number in numbers]
