"""Streams of pictures: what can be read once is written to a temporary file, and read from there.

A fit reads its images twice and in shards, so that it needs pictures by position.
"""

import io
import logging
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import SecondLensError
from .decoding import Unreadable, decode, upright_rgb
from .huggingface import Picture
from .tar import part
from .temporary import temporary_folder

ImageStream = Iterable[Picture] | Iterable[tuple[str, Picture]]
"""Pictures, or (id, picture), one after the other, of unknown number. A picture is a PIL image, the
bytes of an encoded one, or the path of a file. Without ids, the number in the stream is the id."""

_LOG = logging.getLogger(__name__)


class Spooled:
    """A stream, read once to its end into a temporary file that lives as long as this object.

    Encoded pictures are kept as they are; others as lossless PNG. `damaged` lists what could not be
    encoded. What was written is logged, and `size` is its bytes.

    Parameters
    ----------
    stream
        The pictures: any iterable, such as a generator.
    folder
        Where the temporary file goes, if not in the system's folder for such files.

    Raises
    ------
    SecondLensError
        The stream gives nothing, or something else than pictures, or the disk is full.
    """

    def __init__(self, stream: ImageStream, folder: str | Path | None = None) -> None:
        self.ids: list[str] = []
        self.damaged: dict[str, str] = {}
        self._sizes: list[int] = []
        own = temporary_folder(self, folder)
        self._path = own / "pictures"
        for number, item in enumerate(stream):
            self._keep(*_named(number, item))
        if not self.ids:
            reasons = "".join(f"; {name}: {why}" for name, why in self.damaged.items())
            raise SecondLensError(
                "the stream gave no pictures: give one that has not been read already, which most "
                f"can be only once{reasons}"
            )
        self._offsets = list(accumulate(self._sizes, initial=0))
        _LOG.info("kept %d pictures of a stream in %s: %d bytes", len(self.ids), own, self.size)

    @property
    def size(self) -> int:
        """Bytes of the temporary file."""
        return sum(self._sizes)

    def load(self, index: int) -> Image.Image:
        """Picture `index`, upright RGB."""
        return decode(part(self._path, self._offsets[index], self._sizes[index]))

    def sizes(self) -> list[int]:
        """Bytes of each picture."""
        return self._sizes

    def _keep(self, name: str, picture: Picture) -> None:
        try:
            encoded = _encode(picture)
        except Unreadable as error:
            self.damaged[name] = str(error)
            return
        except OSError as error:
            self.damaged[name] = error.strerror or str(error)
            return
        try:
            with self._path.open("ab") as file:
                file.write(encoded)
        except OSError as error:
            raise SecondLensError(
                f"picture {len(self.ids) + 1} of the stream cannot be kept in {self._path.parent}: "
                f"{error.strerror}; name a folder with more room in Spooled(stream, folder)"
            ) from error
        self.ids.append(name)
        self._sizes.append(len(encoded))


def _named(number: int, item: Any) -> tuple[str, Picture]:
    name, picture = item if isinstance(item, tuple) and len(item) == 2 else (str(number), item)
    if not isinstance(name, str) or not isinstance(picture, Picture):
        raise SecondLensError(
            "a stream must give PIL images, encoded bytes or paths, alone or as (id, picture), and "
            f"item {number} is {_kind(item)}"
        )
    return name, picture


def _kind(item: Any) -> str:
    if isinstance(item, tuple):
        return f"({', '.join(type(each).__name__ for each in item)})"
    return f"of the type {type(item).__name__}"


def _encode(picture: Picture) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Path):
        # a pipe would be waited for, and a device never ends
        if picture.exists() and not picture.is_file():
            raise Unreadable("it is not a file")
        return picture.read_bytes()
    encoded = io.BytesIO()
    # the least effort: time matters more than the space of a temporary file
    upright_rgb(picture).save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()
