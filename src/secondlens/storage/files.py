"""Single files, here or in a store: whole or absent, because they are written beside their place
and moved in, or sent in one piece.

A file is moved in when its content has reached the disk: a system may write down a new name before
the content, and a power cut between the two would leave an empty file. Moves themselves are not
waited for: a disk keeps their order, so that the newest are lost, and the old state is there.

Nothing here waits for torch: commands look at folders before it is there.
"""

import csv
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError

from ..errors import SecondLensError
from . import remote
from .regular import read_bounded


def save_json(path: str | Path, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    save_text(path, json.dumps(content, indent=1, ensure_ascii=False))


LARGEST_JSON = 2**28
"""Bytes, about five million ids of images; what is made of them takes some ten times that."""


def read_json(path: str | Path) -> dict[str, Any]:
    """Read one.

    Raises
    ------
    OSError, ValueError
        There is none, or it is damaged, has a key twice, is too large, or no object.
    """
    if remote.is_remote(path):
        content = remote.read(remote.location(path), 0, LARGEST_JSON + 1)
        if len(content) > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON:,} bytes")
    else:
        content = read_bounded(Path(path), LARGEST_JSON)
    try:
        found = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_distinct_keys)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}")
    if _HALF.search(content):
        json.dumps(found, ensure_ascii=False).encode()  # which half a character cannot be
    return found


_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
"""What may be one half of a character, or both."""


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a key twice")
    return found


def save_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def save_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file with a header: the keys of the first row, which all have."""
    with whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def save_picture(path: str | Path, picture: Image.Image, **options: Any) -> None:
    """Write a PNG file; `options` are Pillow's."""
    with whole(path) as partial:
        picture.save(partial, "png", **options)


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Where to write what shall then be at `path`, in folders that are made.

    Raises
    ------
    SecondLensError
        It cannot be written there. Whatever fails, nothing is left behind.
    """
    if remote.is_remote(path):
        with remote.written(str(path)) as file:
            yield file
        return
    place = Path(path)
    partial = _beside(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        if partial.stat().st_mode != mode:  # some writers let nobody but the owner read
            partial.chmod(mode)
        _sync(partial)
        partial.replace(place)
    except (OSError, SafetensorError, UnicodeError) as error:
        raise SecondLensError(f"{place.parent} cannot be written to: {error}") from error
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, whose files shall then be in `out`: all of them, or none.

    It takes the place of an `out` that is not there. A folder that is there stays, for somebody may
    stand in it: files of the same name are replaced, one after the other, and `settle` does the
    rest where that was stopped.

    Raises
    ------
    SecondLensError
        It cannot be written there. Whatever fails, nothing is left behind.
    """
    place = out.absolute()
    there = place.is_dir()
    partial = _beside(place / MOVING if there else place)
    try:
        if there:
            _move_in(place)  # what an earlier one has left
        partial.mkdir(parents=True)
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                _sync(path)
        if there:
            partial.replace(place / MOVING)
            _move_in(place)
        else:
            partial.replace(place)
    except OSError as error:
        raise SecondLensError(f"{out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


MOVING = "moving"
"""In a folder: files that are whole and on their way into it."""

_PARTIAL = re.compile(r".*\.[0-9a-f]{8}\.partial", re.DOTALL)


def settle(out: Path) -> None:
    """Do the rest of what was stopped while files went into a folder, and remove what writes that
    were stopped left in it and beside it.

    Only for a process that holds `out`, see `locks`: what another one writes looks the same.
    """
    place = out.absolute()
    _move_in(place)
    beside = [path for path in place.parent.iterdir() if path.name.startswith(f"{place.name}.")]
    for path in [*beside, *place.rglob("*")]:
        if _PARTIAL.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _move_in(folder: Path) -> None:
    """Give the files in `moving` their place, of which the folder has no other copy."""
    moving = folder / MOVING
    for path in sorted(moving.rglob("*")):
        place = folder / path.relative_to(moving)
        if path.is_dir():
            place.mkdir(exist_ok=True)
        else:
            path.replace(place)
    shutil.rmtree(moving, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _beside(place: Path) -> Path:
    """A name of its own, because another process may be writing the same."""
    return place.with_name(f"{place.name}.{uuid.uuid4().hex[:8]}.partial")


def unfinished(out: str | Path) -> str:
    """The folder beside an output in which long work on it is kept until it is done."""
    return f"{out}.unfinished"


def check_resumable(out: str | Path) -> None:
    """Raise `SecondLensError` as `check_empty`, unless a fit was stopped while it wrote there.

    A lens that is finished is named as such, and what a fit left that was stopped at its very end
    is removed.
    """
    if remote.is_remote(out):
        there = remote.names(str(out))
        parts = remote.names(unfinished(out))
    else:
        folder = Path(out)
        there = {each.name for each in folder.iterdir()} if folder.is_dir() else set()
        work = Path(unfinished(out))
        parts = {each.name for each in work.iterdir()} if work.is_dir() else set()
    if "lens.json" in there:
        remote.remove(unfinished(out))
        raise SecondLensError(
            f"{out} exists already and holds a finished lens: name a new folder, or remove it first"
        )
    if "work.json" not in parts:
        check_empty(out)


def check_empty(out: str | Path) -> None:
    """Raise `SecondLensError` if `out` is a file or a folder with something in it."""
    if remote.is_remote(out):
        taken = bool(remote.names(str(out)))
    else:
        path = Path(out)
        taken = path.is_file() or (path.is_dir() and any(path.iterdir()))
    if taken:
        raise SecondLensError(f"{out} exists already: name a new folder, or remove it first")
