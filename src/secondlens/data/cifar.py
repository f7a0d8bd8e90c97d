"""CIFAR-10 as its authors give it: rows of pixels in Python's pickles."""

import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import SecondLensError
from .labelled import KeyedPictures, LabelledSet

FOLDER = "cifar-10-batches-py"
META, TEST = "batches.meta", "test_batch"
TRAINING = tuple(f"data_batch_{number}" for number in range(1, 6))

SIDE = 32
"""Of a picture, in pixels."""

_PLAIN = {
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}
"""What arrays of numbers are pickled with."""


class _Plain(pickle.Unpickler):
    """Reads pickles of texts, lists and arrays; others could run whatever they like."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no pixels need")
        return super().find_class(module, name)


class CifarPictures:
    """The pictures of some batches; an id is the position."""

    def __init__(self, folder: Path, batches: Sequence[str]) -> None:
        read = [_unpickled(folder / each) for each in batches]
        self._files = [folder / each for each in batches]
        self.labels = [int(label) for each in read for label in each["labels"]]
        pixels = np.concatenate([np.asarray(each["data"], np.uint8) for each in read])
        self._pixels = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        if len(self.labels) != len(self._pixels):
            raise ValueError(f"{len(self._pixels)} pictures and {len(self.labels)} labels")
        self.ids = [str(position) for position in range(len(self.labels))]
        self.damaged: dict[str, str] = {}

    def load(self, index: int) -> Image.Image:
        """Picture `index`."""
        return Image.fromarray(np.ascontiguousarray(self._pixels[index]))

    def sizes(self) -> list[int]:
        """Bytes of each batch."""
        return [each.stat().st_size for each in self._files]


def cifar_10(root: Path) -> LabelledSet | None:
    """The member "cifar-10" of `labelled_sets`: cifar-10-batches-py, or the folder around it."""
    folder = next((each for each in (root, root / FOLDER) if (each / META).is_file()), None)
    if folder is None:
        return None
    return LabelledSet(
        test=partial(_test, folder),
        training=partial(_read, folder, TRAINING),
        parts=(TEST, "train"),
    )


def _test(folder: Path) -> KeyedPictures:
    source = _read(folder, (TEST,))
    try:
        names = [_text(each) for each in _unpickled(folder / META)["label_names"]]
        keys = [names[label] for label in source.labels]
    except _DAMAGE as error:
        raise _refusal(folder) from error
    if without := [name for name in names if name not in keys]:
        raise SecondLensError(f"{folder} has no pictures of {without[0]}")
    return KeyedPictures(
        name="CIFAR-10 test", source=source, keys=keys, names={name: name for name in names}
    )


_DAMAGE = (OSError, EOFError, LookupError, ValueError, TypeError, pickle.UnpicklingError)


def _read(folder: Path, batches: Sequence[str]) -> CifarPictures:
    there = [each for each in batches if (folder / each).is_file()]
    try:
        source = CifarPictures(folder, there)
    except _DAMAGE as error:
        raise _refusal(folder, f": {error}") from error
    missing = [each for each in batches if each not in there]
    source.damaged |= dict.fromkeys(missing, "left out: there is no such file")
    return source


def _refusal(folder: Path, reason: str = "") -> SecondLensError:
    return SecondLensError(
        f"{folder} is not CIFAR-10 as its authors give it, or is damaged: download "
        f"cifar-10-python.tar.gz again and unpack it there{reason}"
    )


def _unpickled(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        # Python 2 wrote them
        found = _Plain(file, encoding="latin1").load()
    return {_text(key): value for key, value in found.items()}


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
