"""Temporary folders that live as long as the source that reads from them."""

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from ..errors import SecondLensError


def temporary_folder(owner: Any, folder: str | Path | None = None) -> Path:
    """Return a new folder that goes with its owner, or with this process.

    Parameters
    ----------
    owner
        The object whose end is the folder's. Copies of it, in worker processes, do not count.
    folder
        Where to make it, if not in the system's folder for such files (`TMPDIR`).

    Raises
    ------
    SecondLensError
        None can be made there.
    """
    try:
        own = tempfile.mkdtemp(prefix="secondlens-", dir=folder)
    except OSError as error:
        raise SecondLensError(f"no pictures can be kept in {folder}: {error}") from error
    # a worker process holds a copy of the owner, and must not take the folder away
    weakref.finalize(owner, _remove, own, os.getpid())
    return Path(own)


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
