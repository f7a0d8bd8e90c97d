"""Tensors out of torch's zip archives, with nothing run that the archives name.

`torch.save` and `torch.jit.save` both write a zip with a pickle beside the bytes of its tensors.
torch's own reader of the first kind refuses what trainers put beside the weights (settings, paths,
numbers of numpy), and its reader of the second kind builds the program in it. What is read here is
neither: of the names in the pickle, those that make tensors are known, and every other one becomes
an `Inert`, an object that keeps what it was given and does nothing.
"""

import io
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import Unpickler
from typing import Any

import torch
from torch import Tensor

LARGEST_PICKLE = 64 * 2**20
"""Bytes of the part without the tensors; that of ViT-bigG with its optimizer has one million."""
MOST_PARTS = 1_000_000
"""Objects in a pickle that are looked at for tensors."""
LONGEST_PLACE = 1000
"""Characters; what holds itself would have longer and longer ones."""

STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
}
MODULE_PARTS = ("_parameters", "_buffers", "_modules")
"""Where a pickled module of torch keeps what its state dict shows."""


class Inert:
    """Stands for an object of a class that is not known."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.parts: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        attributes = state[0] if isinstance(state, tuple) and state else state
        self.__dict__.setdefault("parts", {})
        if isinstance(attributes, dict):
            self.parts.update(attributes)

    def __call__(self, *_: Any, **__: Any) -> "Inert":
        """Of what is a function."""
        return Inert()

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__.setdefault("parts", {})[key] = value

    def append(self, _: Any) -> None:
        """Of classes that are lists."""

    def extend(self, _: Any) -> None:
        """Of classes that are lists."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor in an archive, by its place: keys and attributes joined by dots.

    Keys that are not text, and lists, are not followed: no weight of a model lies there.

    Raises
    ------
    ValueError
        It is damaged, or does not hold what torch writes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return dict(_tensors(_Reader.tree(archive)))
    except ValueError:
        raise
    # a damaged pickle can trip its reader over anything
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"it is damaged: {reason}") from error


def is_archive(path: Path) -> bool:
    """Whether `read_tensors` reads it: a zip with a pickle as torch lays it out."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return _pickle_name(archive) is not None


def _pickle_name(archive: zipfile.ZipFile) -> str | None:
    return next((each for each in archive.namelist() if each.endswith("/data.pkl")), None)


def _tensors(tree: Any) -> Iterator[tuple[str, Tensor]]:
    """In the order of the file; an object that several places share is found at each."""
    waiting: list[tuple[str, Any]] = [("", tree)]
    for _ in range(MOST_PARTS):
        if not waiting:
            return
        place, found = waiting.pop()
        if len(place) > LONGEST_PLACE:
            continue
        if isinstance(found, Tensor):
            yield place, found
        parts = found.parts if isinstance(found, Inert) else found
        if not isinstance(parts, Mapping):
            continue
        inner = []
        for key, value in parts.items():
            if isinstance(found, Inert) and key in MODULE_PARTS:
                inner.append((place, value))
            elif isinstance(key, str):
                inner.append((f"{place}.{key}" if place else key, value))
        waiting.extend(reversed(inner))
    raise ValueError(f"it holds more than {MOST_PARTS:,} objects")


class _Reader(Unpickler):
    """Knows tensors; makes an `Inert` of everything else that has a name."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        super().__init__(io.BytesIO(_bytes(archive, name, LARGEST_PICKLE)), encoding="utf-8")
        self._archive, self._folder = archive, name.removesuffix("data.pkl")
        self._storages: dict[str, Tensor] = {}

    @classmethod
    def tree(cls, archive: zipfile.ZipFile) -> Any:
        name = _pickle_name(archive)
        if name is None:
            raise ValueError("it is a zip without what torch writes")
        order = name.removesuffix("data.pkl") + "byteorder"
        if order in archive.namelist() and _bytes(archive, order, 16) != b"little":
            raise ValueError("it was written on a machine with another order of bytes")
        return cls(archive, name).load()

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for; nothing is imported."""
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        return Inert

    def persistent_load(self, reference: Any) -> Tensor:
        """The storage of a tensor, one-dimensional."""
        kind, dtype, key, _, count = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise ValueError("it refers to something that is not a tensor")
        if key not in self._storages:
            size = count * dtype.itemsize
            raw = _bytes(self._archive, f"{self._folder}data/{key}", size)
            if len(raw) != size:
                raise ValueError("it is cut off")
            storage = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            self._storages[key] = storage
        return self._storages[key]


def _bytes(archive: zipfile.ZipFile, name: str, most: int) -> bytearray:
    """At most so many of a part, which torch never compresses: a small file could be endless."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > most:
        raise ValueError(f"its part {name} is compressed, or larger than it says")
    return bytearray(archive.read(entry))


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    # torch checks that all of it lies in the storage
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


def _tensor_of_dtype(
    storage: Tensor, offset: int, size: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any
) -> Tensor:
    return _tensor(storage.view(dtype), offset, size, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _with_attributes(rebuild: Any, _: Any, arguments: Any, __: Any) -> Any:
    return rebuild(*arguments) if rebuild in _KNOWN.values() else Inert()


def _sizes(sizes: Any = ()) -> tuple[Any, ...]:
    return tuple(sizes)


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): _sizes,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _with_attributes,
}
