"""What may be opened at all: files that are there, and no more of them than memory can hold."""

import os
import stat
from contextlib import suppress
from pathlib import Path


def check_regular(path: Path) -> None:
    """Raise `ValueError` for what is not a file, such as a pipe, which would be waited for, and for
    a file that is mostly holes: it takes no room on the disk, and would take all memory."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path.name} is not a file")
    if status.st_size > HOLLOW and _written(path, status.st_size) < status.st_size // HOLLOW_SHARE:
        raise ValueError(f"{path.name} has {status.st_size:,} bytes, of which almost none is there")


HOLLOW = 2**30
"""Bytes from which on a file is asked for its holes."""
HOLLOW_SHARE = 64
"""A file is hollow if one byte of this many was ever written."""


def _written(path: Path, size: int) -> int:
    """Bytes of a file that are no holes, where the system tells; all of them elsewhere."""
    if not hasattr(os, "SEEK_DATA"):
        return size
    found, end = 0, 0
    with path.open("rb") as file, suppress(OSError):  # behind the last byte
        while end < size and found < size // HOLLOW_SHARE:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found += end - start
    return found


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a file.

    Raises
    ------
    OSError, ValueError
        There is none, or one of more than `most` bytes.
    """
    check_regular(path)
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content
