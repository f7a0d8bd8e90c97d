"""Single files, here or in a store: whole or absent, because they are written beside their place
and moved in, or sent in one piece.

Nothing here waits for torch: commands look at folders before it is there.
"""

import csv
import json
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
        partial.replace(place)
    except (OSError, SafetensorError, UnicodeError) as error:
        raise SecondLensError(f"{place.parent} cannot be written to: {error}") from error
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that shall then be at `out`, where there is none or an empty one.

    Raises
    ------
    SecondLensError
        It cannot be written there. Whatever fails, nothing is left behind.
    """
    place = out.absolute()
    partial = _beside(place)
    try:
        partial.mkdir(parents=True)
        yield partial
        if place.is_dir():  # it stays: somebody may stand in it
            for each in partial.iterdir():
                shutil.move(each, place)
        else:
            partial.replace(place)
    except OSError as error:
        raise SecondLensError(f"{out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _beside(place: Path) -> Path:
    """A name of its own, because another process may be writing the same."""
    return place.with_name(f"{place.name}.{uuid.uuid4().hex[:8]}.partial")


def unfinished(out: str | Path) -> str:
    """The folder beside an output in which long work on it is kept until it is done."""
    return f"{out}.unfinished"


def check_resumable(out: str | Path) -> None:
    """Raise `SecondLensError` as `check_empty`, unless a fit was stopped while it wrote there.

    A lens that is finished is named as such.
    """
    if remote.is_remote(out):
        there = remote.names(str(out))
        begun = "work.json" in remote.names(unfinished(out))
    else:
        folder = Path(out)
        there = {each.name for each in folder.iterdir()} if folder.is_dir() else set()
        begun = Path(unfinished(out), "work.json").is_file()
    if "lens.json" in there:
        raise SecondLensError(
            f"{out} exists already and holds a finished lens: name a new folder, or remove it first"
        )
    if not begun:
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
