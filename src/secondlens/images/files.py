"""Sets of files that hold many pictures each: how they are named, and read in part."""

import glob
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import SecondLensError
from .decode import Unreadable

Files = str | Path | Sequence[str | Path]
"""A file, a folder, a pattern such as `data-{000..015}.tar` or `data-*.tar`, or a list of these."""

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand(files: Files, suffix: str) -> list[Path]:
    """The files that are named, in order; those of a folder or a glob are sorted.

    Raises
    ------
    SecondLensError
        A file that does not exist, or a folder or pattern that gives none.
    """
    if not isinstance(files, str | Path):
        return [path for each in files for path in expand(each, suffix)]
    if Path(files).is_dir():
        found = sorted(path for path in Path(files).iterdir() if path.suffix.lower() == suffix)
        if not found:
            raise SecondLensError(f"there is no {suffix} file in {files}")
        return found
    return [path for pattern in _braces(str(files)) for path in _matches(pattern)]


def names(paths: Sequence[Path]) -> list[str]:
    """The paths relative to the deepest folder that holds all of them: no two are alike."""
    absolute = [path.absolute() for path in paths]
    common = os.path.commonpath([path.parent for path in absolute])
    return [path.relative_to(common).as_posix() for path in absolute]


def part(path: Path, offset: int, size: int) -> io.BytesIO:
    """Some bytes of a file.

    Raises
    ------
    Unreadable
        The file ends before them.
    """
    with path.open("rb") as file:
        file.seek(offset)
        found = file.read(size)
    if len(found) < size:
        raise Unreadable(f"it is cut off: {len(found):,} of {size:,} bytes are there")
    return io.BytesIO(found)


def _matches(pattern: str) -> list[Path]:
    if Path(pattern).exists():
        return [Path(pattern)]
    if found := sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207
        return [Path(each) for each in found]
    raise SecondLensError(f"no file {pattern}: name files that exist")


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
