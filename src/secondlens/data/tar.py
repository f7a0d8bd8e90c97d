"""Pictures in plain tar archives, as webdataset writes them.

Files whose names agree up to the first dot of their last part belong together, and that common part
is their key: `shard/000123.jpg`, `shard/000123.cls`, `shard/000123.json`.
"""

import glob
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..errors import SecondLensError
from ..storage import remote
from ..storage.remote import Place, location, opened
from .decoding import LARGEST_FILE, SUFFIXES, Unreadable, decode

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


def part(path: Place, offset: int, size: int, most: int = LARGEST_FILE) -> io.BytesIO:
    """Some bytes of a file, at most `most`.

    Raises
    ------
    Unreadable
        The file ends before them, or they are more than a picture has.
    """
    if not 0 <= size <= most:
        raise Unreadable(f"it is said to have {size:,} bytes, and {most:,} are the most")
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


_DAMAGE = (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError, MemoryError)


class Tar:
    """The pictures in tar archives ("shards"), in their order there.

    All headers are read once, and the place of each picture is kept in memory. Where an archive is
    damaged, the pictures before the damage count, and `damaged` says so.

    Parameters
    ----------
    shards
        An archive, a folder of them, a pattern such as `data-{000..015}.tar` or `data-*.tar`, or
        a list of these. They must not be compressed: nothing could then be read alone.
    ids
        "key", or "name" for shard/name, which is never twice.
    extension
        What follows the key in the names of pictures, such as "jpg" or "input.png"; by default
        anything that ends like the name of a picture.

    Raises
    ------
    SecondLensError
        An archive that does not exist, no picture, or two pictures with one key.
    """

    SUFFIXES = frozenset({".tar"})

    def __init__(
        self,
        shards: Files,
        *,
        ids: Literal["key", "name"] = "key",
        extension: str | None = None,
    ) -> None:
        self.shards = expand(shards, ".tar")
        self.damaged: dict[str, str] = {}
        self._keys: list[str] = []
        full_names: list[str] = []
        places: list[tuple[int, int, int]] = []
        for number, (path, shard) in enumerate(zip(self.shards, names(self.shards), strict=True)):
            try:
                for member in _members(path):
                    key, kind = _split(member.name)
                    if not _is_picture(kind, extension):
                        continue
                    if wrong := _wrong(member):
                        self.damaged[f"{shard}/{ascii(member.name)[1:-1]}"] = wrong
                    else:
                        self._keys.append(key)
                        full_names.append(f"{shard}/{member.name}")
                        places.append((number, member.offset_data, member.size))
            except _DAMAGE as error:
                self.damaged[shard] = f"only the pictures before the damage are used: {error}"
        if not places:
            reasons = "".join(f"; {name}: {why}" for name, why in self.damaged.items())
            raise SecondLensError(f"no pictures in {shards}: name tar archives with some{reasons}")
        # as an array, millions of places stay small and pickle fast
        self._places = np.array(places)
        self.ids = self._keys if ids == "key" else full_names
        _check_unique(self.ids, full_names)

    def load(self, index: int) -> Image.Image:
        """Picture `index`, upright RGB."""
        shard, offset, size = self._places[index].tolist()
        return decode(part(self.shards[shard], offset, size))

    def sizes(self) -> list[int]:
        """Bytes of each picture."""
        sizes: list[int] = self._places[:, 2].tolist()
        return sizes

    @cached_property
    def labels(self) -> list[int]:
        """Of each picture: the whole number in its `.cls`, or `label` in its `.json`.

        Raises
        ------
        SecondLensError
            A picture has neither.
        """
        try:
            return [int(each) for each in self._notes("cls", "label")]
        except ValueError as error:
            raise SecondLensError(f"labels must be whole numbers: {error}") from error

    @cached_property
    def captions(self) -> list[str]:
        """Of each picture: the text in its `.txt`, or `caption` in its `.json`.

        Raises
        ------
        SecondLensError
            A picture has neither.
        """
        return self._notes("txt", "caption")

    def _notes(self, extension: str, entry: str) -> list[str]:
        """What stands beside each picture, read in another pass over the archives."""
        plain: dict[tuple[int, str], str] = {}
        structured: dict[tuple[int, str], str] = {}
        for number, path in enumerate(self.shards):
            for member in _intact(path):
                key, kind = _split(member.name)
                if kind == extension:
                    plain[number, key] = _read_text(path, member).strip()
                elif kind == "json" and entry in (values := _read_json(path, member)):
                    structured[number, key] = str(values[entry])
        notes = structured | plain
        wanted = list(zip(self._places[:, 0].tolist(), self._keys, strict=True))
        for place, each in zip(wanted, self.ids, strict=True):
            if place not in notes:
                raise SecondLensError(
                    f"the picture {each} has no .{extension} beside it, nor a .json with {entry!r}"
                )
        return [notes[place] for place in wanted]


def _wrong(member: tarfile.TarInfo) -> str:
    """Why a picture cannot be one, if that shows in its header."""
    try:
        member.name.encode()
    except UnicodeEncodeError:
        return "has a name that is not UTF-8: rename it"
    if not 0 <= member.size <= LARGEST_FILE:
        return f"is said to have {member.size:,} bytes, and {LARGEST_FILE:,} are the most"
    return ""


def _split(name: str) -> tuple[str, str]:
    """Key and extension of a file, as webdataset splits them."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower()


def _is_picture(extension: str, wanted: str | None) -> bool:
    if wanted is not None:
        return extension == wanted.lower().removeprefix(".")
    return Path("x." + extension).suffix in SUFFIXES


def _check_unique(ids: list[str], full_names: list[str]) -> None:
    first: dict[str, str] = {}
    for each, name in zip(ids, full_names, strict=True):
        if each in first:
            raise SecondLensError(
                f"{first[each]} and {name} are two pictures with the id {each!r}: choose one kind "
                "of picture with extension=, or pass ids='name'"
            )
        first[each] = name


LARGEST_NOTE = 2**24
"""Bytes of what stands beside a picture."""


def _read_text(path: Place, member: tarfile.TarInfo) -> str:
    try:
        return part(path, member.offset_data, member.size, LARGEST_NOTE).read().decode()
    except ValueError as error:
        raise SecondLensError(f"{member.name} in {path} is no UTF-8 text: {error}") from error


def _read_json(path: Place, member: tarfile.TarInfo) -> dict[str, Any]:
    """The entries of an object; JSON of another kind has none."""
    try:
        values = json.loads(_read_text(path, member))
    except (ValueError, RecursionError) as error:
        raise SecondLensError(f"{member.name} in {path} is no JSON: {error}") from error
    return values if isinstance(values, dict) else {}


class _Headers:
    """A file of which headers alone are read, never as much at once as one of them may say."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Some bytes."""
        if not 0 <= size <= LARGEST_NOTE:
            raise tarfile.ReadError(f"a header is said to have {size:,} bytes")
        return self.file.read(size)


def _intact(path: Place) -> Iterator[tarfile.TarInfo]:
    """The files in an archive up to any damage, which `Tar.damaged` tells already."""
    with suppress(*_DAMAGE):
        yield from _members(path)


def _members(path: Place) -> Iterator[tarfile.TarInfo]:
    """The files in an archive; if it is damaged, an error follows the last that can be found."""
    with opened(path) as file:
        headers: Any = _Headers(file)
        last = -1
        with tarfile.open(fileobj=headers, mode="r:") as archive:
            for member in archive:
                if member.offset <= last:  # a negative size would lead back, again and again
                    raise tarfile.ReadError(f"a header is found twice, at byte {member.offset:,}")
                last = member.offset
                if member.isreg():
                    yield member
        # tarfile takes an unreadable header for the end, and forgets archives behind the first
        file.seek(archive.offset)
        end = file.read(tarfile.RECORDSIZE)
        if not end:
            raise tarfile.ReadError("the mark at its end is missing, so it may be cut off")
        if end.strip(b"\0"):
            raise tarfile.ReadError(f"no file can be found behind byte {archive.offset:,}")
