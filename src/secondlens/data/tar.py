"""Pictures in tar archives, as webdataset writes them.

Files whose names agree up to the first dot of their last part belong together, and that common part
is their key: `shard/000123.jpg`, `shard/000123.cls`, `shard/000123.json`.
"""

import bz2
import glob
import gzip
import io
import json
import logging
import lzma
import os
import posixpath
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from copy import copy as copied
from dataclasses import dataclass
from functools import cached_property
from itertools import count, takewhile
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from PIL import Image

from ..errors import SecondLensError
from ..storage import remote
from ..storage.remote import Place, location, opened
from .decoding import LARGEST_FILE, SUFFIXES, Unreadable, decode
from .strays import HEIF, LeftOut, is_stray, is_stray_folder
from .temporary import temporary_folder

Files = str | Place | Sequence[str | Place]
"""A file, a folder, a pattern such as `data-{000..015}.tar` or `data-*.tar`, or a list of these;
each here or in a store, such as `s3://bucket/data-*.tar`."""

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""How names of compressed archives end."""

MOST_GROWTH = 100
"""Bytes that a byte of a compressed archive may become, beyond `FREE_GROWTH`."""

FREE_GROWTH = 10**9

_LOG = logging.getLogger(__name__)

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand(files: Files, suffixes: Sequence[str]) -> list[Place]:
    """The files that are named, in order; those of a folder, at any depth, or a glob are sorted.

    Raises
    ------
    SecondLensError
        A file that does not exist, or a folder or pattern that gives none.
    """
    if not isinstance(files, str | Place):
        return [path for each in files for path in expand(each, suffixes)]
    folder = location(files)
    if folder.is_dir():
        found = sorted(_below(folder, tuple(suffixes)))
        if not found:
            raise SecondLensError(f"there is no {suffixes[0]} file in {files}")
        return found
    return [path for pattern in _braces(str(files)) for path in _matches(pattern)]


def _below(folder: Place, suffixes: tuple[str, ...]) -> Iterator[Place]:
    for path in folder.iterdir():
        if path.name.lower().endswith(suffixes) and not is_stray(path.name):
            yield path
        elif not is_stray_folder(path.name) and path.is_dir():
            yield from _below(path, suffixes)


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
_BEFORE = "only the pictures before the damage are used"


class Tar:
    """The pictures in tar archives ("shards"), in their order there.

    All headers are read once, and the place of each picture is kept in memory. Archives that were
    joined (`cat a.tar b.tar`) are read one after the other; a file that an archive holds twice
    counts as its last version, as `tar` itself takes it; a link counts as the file that it leads
    to. Archives in an archive, such as those of classes in ImageNet's training part, are read as
    folders of their name without `.tar`. Where an archive is damaged, the pictures before that
    count, and `damaged` says so, as it does of whatever is left out.

    Nothing can be read alone from a compressed archive (`.tar.gz`, `.tgz`, and by bzip2 and xz): it
    is unpacked once into a temporary file that lives as long as this object.

    Parameters
    ----------
    shards
        An archive, a folder of them, a pattern such as `data-{000..015}.tar` or `data-*.tar`, or
        a list of these.
    ids
        "key", or "name" for shard/name, which is never twice; by default the key, or the name if
        shards have keys in common.
    extension
        What follows the key in the names of pictures, such as "jpg" or "input.png"; by default
        anything that ends like the name of a picture.

    Raises
    ------
    SecondLensError
        An archive that does not exist, no picture, several pictures with one key in an archive, or
        no room for what was compressed.
    """

    SUFFIXES = (".tar", *COMPRESSED)

    def __init__(
        self,
        shards: Files,
        *,
        ids: Literal["key", "name"] | None = None,
        extension: str | None = None,
    ) -> None:
        paths = expand(shards, self.SUFFIXES)
        self.shards: list[Place] = []
        self.damaged: dict[str, str] = {}
        found: list[_Picture] = []
        left_out = LeftOut()
        for number, (path, shard) in enumerate(zip(paths, names(paths), strict=True)):
            self.shards.append(self._readable(path, shard))
            pictures: dict[tuple[int, str], _Picture] = {}
            try:
                for archive, member in _members(self.shards[-1], left_out):
                    key, kind = _split(member.name)
                    if not _is_picture(kind, extension) or is_stray(member.name):
                        _tell(left_out, f"{shard}/{member.name}", kind)
                        continue
                    whole = f"{shard}#{archive + 1}" if archive else shard
                    if wrong := _wrong(member):
                        self.damaged[f"{whole}/{ascii(member.name)[1:-1]}"] = wrong
                        continue
                    if pictures.pop((archive, member.name), None):
                        left_out.add("earlier versions", f"{whole}/{member.name}", "replaced later")
                    pictures[archive, member.name] = _Picture(
                        group=(number, archive),
                        key=key,
                        kind=kind,
                        name=f"{whole}/{member.name}",
                        place=(number, member.offset_data, member.size),
                    )
            except _DAMAGE as error:
                # what was cut off when it was unpacked is known already
                self.damaged.setdefault(shard, f"{_BEFORE}: {error}")
            found += pictures.values()
        self.damaged.update(left_out)
        if not found:
            reasons = "".join(f"; {name}: {why}" for name, why in self.damaged.items())
            raise SecondLensError(f"no pictures in {shards}: name tar archives with some{reasons}")
        self._groups = [(*each.group, each.key) for each in found]
        # as an array, millions of places stay small and pickle fast
        self._places = np.array([each.place for each in found])
        self.ids = _ids(found, ids)

    def _readable(self, path: Place, shard: str) -> Place:
        """The archive itself, or what it holds in a temporary file if it is compressed."""
        try:
            unpack = _decompressor(path)
        except (OSError, ValueError):
            return path  # reading it says why not
        if unpack is None:
            return path
        copy = temporary_folder(self) / "archive.tar"
        try:
            with opened(path) as packed, unpack(packed) as source, copy.open("wb") as target:
                _copy(source, target, limit=FREE_GROWTH + MOST_GROWTH * _size(path))
        except (EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            self.damaged[shard] = f"{_BEFORE}: {error}"
        except OSError as error:
            if isinstance(error, gzip.BadGzipFile) or error.errno is None:
                self.damaged[shard] = f"{_BEFORE}: {error}"
                return copy
            raise SecondLensError(
                f"{path} is compressed and cannot be unpacked in {copy.parent}: {error.strerror}; "
                "unpack it yourself, or name a folder with more room in TMPDIR"
            ) from error
        _LOG.info("unpacked %s in %s: %d bytes", path, copy.parent, copy.stat().st_size)
        return copy

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
            return [int(each) for each in self.notes("cls", "label")]
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
        return self.notes("txt", "caption")

    def notes(self, extension: str, entry: str) -> list[str]:
        """What stands beside each picture, read in another pass over the archives.

        Parameters
        ----------
        extension
            Of the file that holds the note alone, such as "cls".
        entry
            Of the note in a file `.json`, where there is no such file.

        Raises
        ------
        SecondLensError
            A picture has neither, or a file that cannot be read.
        """
        plain: dict[tuple[int, int, str], str] = {}
        structured: dict[tuple[int, int, str], str] = {}
        for number, path in enumerate(self.shards):
            found = [(archive, *_split(each.name), each) for archive, each in _intact(path)]
            with opened(path) as file:
                for archive, key, kind, member in found:
                    if kind == extension:
                        plain[number, archive, key] = _read_text(path, file, member).strip()
                for archive, key, kind, member in found:
                    if kind == "json" and (number, archive, key) not in plain:
                        values = _read_json(path, file, member)
                        if entry in values:
                            structured[number, archive, key] = str(values[entry])
        notes = structured | plain
        for place, each in zip(self._groups, self.ids, strict=True):
            if place not in notes:
                raise SecondLensError(
                    f"the picture {each} has no .{extension} beside it, nor a .json with {entry!r}"
                )
        return [notes[place] for place in self._groups]


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """A picture in an archive."""

    group: tuple[int, int]
    """Its file, and the archive in that, of several that were joined."""
    key: str
    kind: str
    name: str
    place: tuple[int, int, int]
    """File, offset and bytes."""


def _ids(pictures: Sequence[_Picture], wanted: Literal["key", "name"] | None) -> list[str]:
    """Keys of pictures, or their whole names.

    Raises
    ------
    SecondLensError
        Keys are wanted and occur twice, or an archive has several pictures with one.
    """
    full_names = [each.name for each in pictures]
    keys = [each.key for each in pictures]
    if wanted == "name":
        return full_names
    # by default, only the pictures of one archive must not have a key in common
    places: list[Hashable] = [
        each.key if wanted == "key" else (each.group, each.key) for each in pictures
    ]
    times = Counter(places)
    if repeated := [each for each, place in zip(pictures, places, strict=True) if times[place] > 1]:
        first = next(place for place in places if times[place] > 1)
        same = [each for each, place in zip(pictures, places, strict=True) if place == first]
        kinds = ", ".join(sorted({each.kind for each in repeated}))
        raise SecondLensError(
            f"{same[0].name} and {same[1].name} are two pictures with the id {same[0].key!r}: "
            f"choose one kind of picture ({kinds}) with extension= (--extension), or take whole "
            "names as ids with ids='name' (--ids name)"
        )
    return keys if len(set(keys)) == len(keys) else full_names


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


def _tell(left_out: LeftOut, name: str, kind: str) -> None:
    """Count what is not read, but for the notes that belong to pictures."""
    suffix = Path("x." + kind).suffix
    if is_stray(name) or suffix in HEIF - SUFFIXES:
        left_out.add_file(name, suffix)


LARGEST_NOTE = 2**24
"""Bytes of what stands beside a picture."""


def _read_text(path: Place, file: io.BufferedReader, member: tarfile.TarInfo) -> str:
    try:
        if not 0 <= member.size <= LARGEST_NOTE:
            raise ValueError(f"{member.size:,} bytes, and {LARGEST_NOTE:,} are the most")
        file.seek(member.offset_data)
        found = file.read(member.size)
        if len(found) < member.size:
            raise ValueError(f"it is cut off: {len(found):,} of {member.size:,} bytes are there")
        return found.decode()
    except ValueError as error:
        raise SecondLensError(f"{member.name} in {path} is not a UTF-8 text: {error}") from error


def _read_json(path: Place, file: io.BufferedReader, member: tarfile.TarInfo) -> dict[str, Any]:
    """The entries of an object; JSON of another kind has none."""
    try:
        values = json.loads(_read_text(path, file, member))
    except (ValueError, RecursionError) as error:
        raise SecondLensError(f"{member.name} in {path} is not JSON: {error}") from error
    return values if isinstance(values, dict) else {}


class _Headers:
    """A file of which headers alone are read, never as much at once as one of them may say.

    It may end before the file itself does, as an archive in an archive.
    """

    def __init__(self, file: io.BufferedReader, end: int | None = None) -> None:
        self.file, self.end, self.seek, self.tell = file, end, file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Some bytes."""
        if not 0 <= size <= LARGEST_NOTE:
            raise tarfile.ReadError(f"a header is said to have {size:,} bytes")
        if self.end is not None:
            size = max(0, min(size, self.end - self.tell()))
        return self.file.read(size)


def _intact(path: Place) -> Iterator[tuple[int, tarfile.TarInfo]]:
    """The files in an archive up to any damage, which `Tar.damaged` tells already."""
    with suppress(*_DAMAGE):
        yield from _members(path, LeftOut())


def _members(path: Place, left_out: LeftOut) -> Iterator[tuple[int, tarfile.TarInfo]]:
    """The files in an archive, each with the number of its archive if several were joined.

    If one is damaged, an error follows the last file that can be found.
    """
    with opened(path) as file:
        for number in count():
            headers: Any = _Headers(file)
            with tarfile.open(fileobj=headers, mode="r:") as archive:
                for member in _files(archive, left_out):
                    if member.name.lower().endswith(".tar"):
                        yield from ((number, each) for each in _inner(file, member, left_out))
                    else:
                        yield number, member
                end = archive.offset
            if not _find_next(file, end):
                return


def _inner(
    file: io.BufferedReader, outer: tarfile.TarInfo, left_out: LeftOut
) -> Iterator[tarfile.TarInfo]:
    """The files of an archive in an archive; one that is damaged is left out from there on."""
    file.seek(outer.offset_data)
    headers: Any = _Headers(file, outer.offset_data + outer.size)
    try:
        with tarfile.open(fileobj=headers, mode="r:") as archive:
            for member in _files(archive, left_out):
                found = copied(member)
                found.name = f"{outer.name[: -len('.tar')]}/{member.name.removeprefix('./')}"
                if found.offset_data + found.size > headers.end:
                    raise tarfile.ReadError("it is cut off")
                yield found
            if archive.offset + tarfile.BLOCKSIZE > headers.end:
                raise tarfile.ReadError("the mark at its end is missing, so it may be cut off")
    except tarfile.TarError as error:
        left_out.add("damaged archives", outer.name, f"{_BEFORE}: {error}")


def _files(archive: tarfile.TarFile, left_out: LeftOut) -> Iterator[tarfile.TarInfo]:
    """Files, and links as the files that they lead to under their own names."""
    seen: dict[str, tarfile.TarInfo] = {}
    last = -1
    for member in archive:
        if member.offset <= last:  # a negative size would lead back, again and again
            raise tarfile.ReadError(f"a header is found twice, at byte {member.offset:,}")
        last = member.offset
        target = member
        if member.islnk() or member.issym():
            place = "" if member.islnk() else posixpath.dirname(member.name)
            found = seen.get(posixpath.normpath(posixpath.join(place, member.linkname)))
            if found is None:
                left_out.add("links", member.name, f"leads to {member.linkname}, not found before")
                continue
            target = copied(found)
            target.name = member.name
        if target.isreg():
            seen[posixpath.normpath(target.name)] = target
            yield target


def _find_next(file: io.BufferedReader, end: int) -> bool:
    """Go from the end of an archive to where another begins, if there is one.

    Raises
    ------
    tarfile.ReadError
        The archive does not end there as archives do.
    """
    # tarfile takes an unreadable header for the end, and forgets archives behind the first
    file.seek(end)
    first = file.read(tarfile.BLOCKSIZE)
    if not first:
        raise tarfile.ReadError("the mark at its end is missing, so it may be cut off")
    if first.strip(b"\0"):
        raise tarfile.ReadError(f"no file can be found behind byte {end:,}")
    end += len(first)
    while blocks := file.read(2**20):
        if blocks.strip(b"\0"):
            filled = len(blocks) - len(blocks.lstrip(b"\0"))
            file.seek(end + filled - filled % tarfile.BLOCKSIZE)
            return True
        end += len(blocks)
    return False


def _decompressor(path: Place) -> Callable[[IO[bytes]], io.BufferedIOBase] | None:
    """How to unpack a file that is compressed, whatever its name."""
    unpack: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
    with opened(path) as file:
        start = file.read(8)
    return next((each for magic, each in unpack.items() if start.startswith(magic)), None)


def _copy(source: io.BufferedIOBase, target: IO[bytes], limit: int) -> None:
    written = 0
    while some := source.read(2**16):
        written += len(some)
        if written > limit:
            raise ValueError(f"it grows beyond {limit:,} bytes when it is unpacked")
        target.write(some)


def _size(path: Place) -> int:
    with opened(path) as file:
        return file.seek(0, io.SEEK_END)
