"""Sets of files that hold many pictures each: how they are named, and read in part."""

import glob
import io
import os
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from ..errors import SecondLensError
from ..storage import remote
from ..storage.remote import Place, location
from .decode import Unreadable

Files = str | Place | Sequence[str | Place]
"""A file, a folder, a pattern such as `data-{000..015}.tar` or `data-*.tar`, or a list of these;
each here or in a store, such as `s3://bucket/data-*.tar`."""

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand(files: Files, suffix: str) -> list[Place]:
    """The files that are named, in order; those of a folder or a glob are sorted.

    Raises
    ------
    SecondLensError
        A file that does not exist, or a folder or pattern that gives none.
    """
    if not isinstance(files, str | Place):
        return [path for each in files for path in expand(each, suffix)]
    folder = location(files)
    if folder.is_dir():
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() == suffix)
        if not found:
            raise SecondLensError(f"there is no {suffix} file in {files}")
        return found
    return [path for pattern in _braces(str(files)) for path in _matches(pattern)]


def names(paths: Sequence[Place]) -> list[str]:
    """The paths relative to the deepest folder that holds all of them: no two are alike."""
    parts = [str(path.absolute()).replace(os.sep, "/").split("/") for path in paths]
    levels = zip(*(each[:-1] for each in parts), strict=False)
    common = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
    return ["/".join(each[common:]) for each in parts]


def part(path: Place, offset: int, size: int) -> io.BytesIO:
    """Some bytes of a file.

    Raises
    ------
    Unreadable
        The file ends before them.
    """
    if isinstance(path, Path):
        with path.open("rb") as file:
            file.seek(offset)
            found = file.read(size)
    else:
        found = remote.read(path, offset, offset + size)
    if len(found) < size:
        raise Unreadable(f"it is cut off: {len(found):,} of {size:,} bytes are there")
    return io.BytesIO(found)


def _matches(pattern: str) -> list[Place]:
    if location(pattern).exists():
        return [location(pattern)]
    if found := _glob(pattern):
        return [location(each) for each in found]
    raise SecondLensError(f"no file {pattern}: name files that exist")


def _glob(pattern: str) -> list[str]:
    if not remote.is_remote(pattern):
        return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    store, path = remote.filesystem(pattern)
    with remote.reaching(pattern):
        return [store.unstrip_protocol(each) for each in sorted(store.glob(path))]


def _braces(pattern: str) -> list[str]:
    """The pattern for each number of its ranges, which are as in a shell."""
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    before, after = pattern[: found.start()], pattern[found.end() :]
    numbers = range(int(first), int(last) + 1)
    if not numbers:
        raise SecondLensError(f"{pattern} counts backwards: write the lower number first")
    return [each for n in numbers for each in _braces(f"{before}{n:0{len(first)}}{after}")]
