"""Which part of a set a file or a folder belongs to: training, validation or test."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath

from ..storage.remote import Place
from .decoding import SUFFIXES
from .strays import is_stray, is_stray_folder

TRAIN, VALIDATION, TEST = "train", "validation", "test"

_NAMES = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}

PREFERRED = (VALIDATION, TEST)
"""What a set is measured on, the first that it has: the test part of ImageNet has no labels."""


def split_name(folder: str) -> str | None:
    """The split that a folder of this name holds, or None."""
    return _NAMES.get(folder.lower())


def split_of(file: PurePath) -> str | None:
    """The split that a file is of, by a word of its name, or else by a folder that it is in."""
    words = re.split(r"[-_.]", file.name.lower())
    folders = [part.lower() for part in reversed(file.parent.parts)]
    return next((_NAMES[each] for each in [*words, *folders] if each in _NAMES), None)


def by_split(files: Iterable[Place], root: Place) -> dict[str | None, list[Place]]:
    """Files below a folder, by their split; None for those whose name does not say."""
    found: defaultdict[str | None, list[Place]] = defaultdict(list)
    for file in files:
        below = PurePath(str(file)[len(str(root)) :].lstrip("/\\"))
        found[split_of(below)].append(file)
    return dict(found)


def archives(root: Place, suffixes: Sequence[str]) -> list[Place]:
    """Archives in a folder, in its folder `data`, or, where no pictures lie, at any depth; sorted.

    In a store, only the first two.
    """
    for place in (root, root / "data"):
        if place.is_dir() and (found := _ending(place, suffixes)):
            return found
    return sorted(_deep(root, suffixes) or ()) if isinstance(root, Path) else []


def _ending(folder: Place, suffixes: Sequence[str]) -> list[Place]:
    ends = tuple(suffixes)
    files = (each for each in folder.iterdir() if each.name.lower().endswith(ends))
    return sorted(each for each in files if not is_stray(each.name))


def _deep(root: Path, suffixes: Sequence[str]) -> list[Place] | None:
    """Archives below a folder, or None as soon as a picture is found."""
    found = _ending(root, suffixes)
    if not found and has_pictures(root):
        return None
    for folder in folders(root):
        below = _deep(folder, suffixes)
        if below is None:
            return None
        found += below
    return found


def folders(root: Path) -> list[Path]:
    """The folders in a folder, but for those that systems leave behind, sorted; none if it cannot
    be listed."""
    try:
        with os.scandir(root) as entries:
            found = [Path(each.path) for each in entries if each.is_dir()]
    except OSError:
        return []
    return sorted(each for each in found if not is_stray_folder(each.name))


def has_pictures(folder: Path) -> bool:
    """Whether files that are pictures by their name lie in a folder itself."""
    return next(_pictures(folder), None) is not None


def first_picture(folder: Path) -> str:
    """The name of one of the pictures in a folder itself, or nothing."""
    return next(_pictures(folder), "")


def _pictures(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for each in entries:
                suffix = os.path.splitext(each.name)[1].lower()  # noqa: PTH122
                if suffix in SUFFIXES and not is_stray(each.name):
                    yield each.name
    except OSError:
        return


def has_class_folders(root: Path) -> bool:
    """Whether one of the folders in a folder holds pictures."""
    return any(map(has_pictures, folders(root)))


def split_folders(root: Path) -> Mapping[str, Path]:
    """Split -> folder, of the folders in a folder that are named as splits."""
    named = ((split_name(each.name), each) for each in folders(root))
    return {name: each for name, each in named if name is not None}
