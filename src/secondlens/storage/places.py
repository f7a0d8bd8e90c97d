"""Whether a place is free to be written to. Nothing here waits for torch."""

from pathlib import Path

from ..errors import SecondLensError
from . import remote


def check_empty(out: str | Path) -> None:
    """Raise `SecondLensError` if `out` is a file or a folder with something in it."""
    if remote.is_remote(out):
        taken = bool(remote.names(str(out)))
    else:
        path = Path(out)
        taken = path.is_file() or (path.is_dir() and any(path.iterdir()))
    if taken:
        raise SecondLensError(f"{out} exists already: name a new folder, or remove it first")
