"""Files and folders of object stores: s3://, gs://, hf:// and whatever else fsspec reaches.

Requests are tried again with growing pauses by the store's own library. What still fails raises
`Unreachable`, never an `OSError`: a picture that could not be fetched must not count as broken.
"""

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.config import conf
from fsspec.core import url_to_fs
from upath import UPath

from ..errors import SecondLensError
from .regular import check_regular

Place = Path | UPath
"""A path on this machine, or one in a store."""

OPTIONS: dict[str, dict[str, Any]] = {
    # the library's own patience is too short for a store that is overloaded
    "s3": {"config_kwargs": {"retries": {"mode": "standard", "max_attempts": 8}}},
    "file": {"auto_mkdir": True},
}
"""For the libraries of stores; fsspec's configuration wins."""

BLOCK = 2**20
"""Bytes that are asked for at least, while a file is read from one end to the other."""


class Unreachable(SecondLensError):
    """A store did not answer, or refused, though asked several times; it may answer later."""


def is_remote(place: Any) -> bool:
    """Whether it is the address of something in a store."""
    return not isinstance(place, Path) and "://" in str(place)


def location(place: str | Place) -> Place:
    """The path that a text names.

    Raises
    ------
    SecondLensError
        It lies in a store, and there is no library that reaches it.
    """
    if not is_remote(place):
        return Path(str(place))
    filesystem(str(place))
    found: Place = UPath(str(place), **_options(str(place)))
    return found


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The store, and the path in it.

    Raises
    ------
    SecondLensError
        No library for such addresses.
    """
    try:
        # asked for each time: a forked process must not use the connections of its parent
        found: tuple[AbstractFileSystem, str] = url_to_fs(url, **_options(url))
    except (ImportError, ValueError) as error:
        raise SecondLensError(
            f"{url} cannot be opened: {error}; pip install 'secondlens[remote]' brings s3, and "
            "fsspec's documentation names the library of any other store"
        ) from error
    return found


def _options(url: str) -> dict[str, Any]:
    protocol = url.partition("://")[0]
    # other workers write too, so that what was listed a moment ago may be wrong
    chosen = {"use_listings_cache": False} | OPTIONS.get(protocol, {})
    return {name: value for name, value in chosen.items() if name not in conf.get(protocol, {})}


@contextmanager
def reaching(url: Any) -> Iterator[None]:
    """Turn whatever a store's library raises into `Unreachable`, but for a missing file."""
    try:
        yield
    except (FileNotFoundError, SecondLensError):
        raise
    except Exception as error:  # each library has errors of its own
        raise Unreachable(f"{url} cannot be reached: {error or type(error).__name__}") from error


def read(place: Place, start: int | None = None, stop: int | None = None) -> bytes:
    """Some bytes of a file in a store, in one request.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    Unreachable
        The store does not answer.
    """
    store, path = filesystem(str(place))
    with reaching(place):
        content: bytes = store.cat_file(path, start=start, end=stop)
    return content


def opened(place: Place) -> io.BufferedReader:
    """A file to read, here or in a store; raises `ValueError` as `check_regular`."""
    if isinstance(place, Path):
        check_regular(place)
        return place.open("rb")
    return io.BufferedReader(_File(place), BLOCK)


class _File(io.RawIOBase):
    """A file in a store as Python's own files are: each read is one request."""

    def __init__(self, place: UPath) -> None:
        self.place, self.position = place, 0
        store, path = filesystem(str(place))
        with reaching(place):
            self.length = int(store.size(path))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        self.position = max(0, start + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        stop = min(self.position + len(buffer), self.length)
        found = read(self.place, self.position, stop) if stop > self.position else b""
        buffer[: len(found)] = found
        self.position += len(found)
        return len(found)


@contextmanager
def fetched(url: str) -> Iterator[Path]:
    """A copy of a file or a folder of a store, for as long as the `with` lasts."""
    store, path = filesystem(url)
    with tempfile.TemporaryDirectory(prefix="secondlens-") as folder:
        copy = Path(folder) / "copy"
        with reaching(url):
            store.get(path.rstrip("/"), str(copy), recursive=store.isdir(path))
        yield copy


@contextmanager
def written(url: str) -> Iterator[Path]:
    """A file on this machine that goes to the store at the end, whole or not at all."""
    store, path = filesystem(url)
    with tempfile.TemporaryDirectory(prefix="secondlens-") as folder:
        file = Path(folder) / "file"
        yield file
        with reaching(url):
            store.put_file(str(file), path)


def upload(folder: Path, url: str, *, last: str) -> None:
    """Copy a folder into a store; the file `last` is the last, so that it says: all are there."""
    store, path = filesystem(url)
    files = sorted(folder.iterdir(), key=lambda file: (file.name == last, file.name))
    with reaching(url):
        for file in files:
            store.put_file(str(file), f"{path}/{file.name}")


def names(url: str) -> set[str]:
    """Of the files and folders in a folder of a store, as they are now; none if there is none."""
    store, path = filesystem(url)
    with reaching(url):
        try:
            found = store.ls(path, detail=False)
        except FileNotFoundError:
            return set()
    return {each.rstrip("/").rpartition("/")[2] for each in found} - {""}


def remove(place: "str | Path") -> None:
    """Delete a folder and what is in it."""
    if not is_remote(place):
        shutil.rmtree(place, ignore_errors=True)  # another process may be doing the same
        return
    store, path = filesystem(str(place))
    with reaching(place):
        if store.exists(path):
            store.rm(path, recursive=True)
