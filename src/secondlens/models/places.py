"""Where the files of a model lie: a folder here, or a repository of the hub."""

import re
from pathlib import Path

from ..errors import SecondLensError

REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""How a model of the hub may be called."""
CACHED = "models--"
"""How the folder of a repository begins in the cache of huggingface_hub."""


def folder_of(place: str) -> Path | None:
    """The folder of that path, or None for what can only be the name of a repository.

    The folder of a repository in a cache of the hub (`models--OWNER--NAME`) stands for its newest
    snapshot.

    Raises
    ------
    SecondLensError
        It is a path where no folder is, or a folder of a cache without a snapshot.
    """
    path = Path(place).expanduser()
    if place and path.is_dir():
        return _snapshot(path) if path.name.startswith(CACHED) else path
    if place and path.exists():
        raise SecondLensError(f"{place} is a file: name the folder that it is in")
    if place.startswith((".", "~")) or not REPOSITORY.fullmatch(place):
        raise SecondLensError(
            f"there is no folder {place!r}: name one that holds a model, or a repository of the "
            "hub as OWNER/NAME"
        )
    return None


def _snapshot(cached: Path) -> Path:
    """As `refs/main` names it, or the only one that is there."""
    snapshots = cached / "snapshots"
    main = cached / "refs" / "main"
    if main.is_file() and (named := snapshots / main.read_text().strip()).is_dir():
        return named
    found = [each for each in snapshots.glob("*") if each.is_dir()]
    if len(found) != 1:
        raise SecondLensError(
            f"{cached} holds {len(found)} snapshots of a model: name one of them, below snapshots"
        )
    return found[0]
