"""What files of strangers say, checked before it is used.

JSON is compared with a frozen dataclass, whose annotations bound every number and list. Tensors are
compared with the annotations of their dataclass: sizes first, for tensors are views of their file,
so that nothing large is read or made before it is known to be as large as it must be.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec
import numpy as np
import torch
from jaxtyping import jaxtyped
from safetensors import SafetensorError
from torch import Tensor

from ..errors import SecondLensError

Kind = TypeVar("Kind")

Size = Annotated[int, msgspec.Meta(ge=1, le=2**24)]
"""Of an axis. What a stranger writes is bounded before it is used."""
Position = Annotated[int, msgspec.Meta(ge=0, lt=2**40)]
"""In a list: of images, layers, neurons."""
Whole = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
Plain = str | bool | Whole | float | None
Settings = dict[str, Plain | tuple[str | bool | Whole | float | None, ...]]
"""What a run says of itself: names, numbers and lists of them."""
Texts = Annotated[tuple[str, ...], msgspec.Meta(max_length=2**27)]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]
"""Of what a picture shows."""

FINITE = ("mean", "directions", "energy", "top_norms", "activation_mean", "coefficients", "brief")
"""Tensors without which nothing can be said, if a number in them is none."""

NUMBERS_AT_A_TIME = 2**22

DAMAGED = (
    *(KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError),
    *(OSError, SafetensorError, MemoryError),
)
"""What reading a file that nobody here wrote may raise. `RecursionError` is a `RuntimeError`."""


@contextmanager
def reading(what: str, remedy: str = "") -> Iterator[None]:
    """Inside it, what fails is that `what` is damaged.

    Raises
    ------
    SecondLensError
        In one line: what is damaged, why, and the remedy if there is one.
    """
    try:
        yield
    except SecondLensError:
        raise
    except DAMAGED as error:
        after = f": {remedy}" if remedy else ""
        raise SecondLensError(f"{what} is damaged: {reason(error)}{after}") from error


def reason(error: Exception) -> str:
    """In words and on one line, where the error has only a name."""
    if isinstance(error, OSError) and error.filename:
        return f"{str(error.filename).rpartition('/')[2]}: {error.strerror}"
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return " ".join(str(error).split()) or type(error).__name__


def convert(content: Any, kind: type[Kind], file: str) -> Kind:
    """What a file holds, as its dataclass says it must.

    Raises
    ------
    ValueError
        A key is missing, or holds something else.
    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{file}: {error}") from error


def check_finite(*numbers: float) -> None:
    """Raise `ValueError` if a number is not finite."""
    if not all(map(math.isfinite, numbers)):
        raise ValueError("it has a number that is not finite")


def check_distinct(values: Sequence[object], what: str) -> None:
    """Raise `ValueError` if two values are equal."""
    if len(set(values)) < len(values):
        raise ValueError(f"{what} have the same twice")


def check_positions(positions: Tensor | np.ndarray, below: int, what: str, least: int = 0) -> None:
    """Raise `ValueError` unless all positions lie between `least` and `below`, without it."""
    if 0 in positions.shape:
        return
    if not (least <= int(positions.min()) and int(positions.max()) < below):
        raise ValueError(f"{what} lie outside of {least} to {below - 1}")


def check_tensors(
    kept: Any,
    most: Mapping[str, int] | None = None,
    finite: Sequence[str] = FINITE,
    **sizes: int,
) -> None:
    """Compare the tensors or arrays of a dataclass with its annotations.

    Parameters
    ----------
    kept
        Fields that are a tensor, none, or a tensor for each layer are looked at.
    most
        What named axes may be at most.
    finite
        Fields whose numbers must all be finite.
    sizes
        What named axes must be.

    Raises
    ------
    ValueError
        A tensor of another kind or size, or with a number that is not finite.
    """
    by_layer: dict[int, dict[str, tuple[Any, Any]]] = {}
    single: dict[str, tuple[Any, Any]] = {}
    for each in fields(kept):
        value = getattr(kept, each.name)
        if isinstance(value, Mapping) and get_origin(each.type) is dict:
            for layer, tensor in value.items():
                by_layer.setdefault(layer, {})[each.name] = get_args(each.type)[1], tensor
        elif isinstance(value, Tensor | np.ndarray):
            kinds = get_args(each.type) if get_origin(each.type) is UnionType else (each.type,)
            single[each.name] = kinds[0], value
    groups = {-1: single} | by_layer
    for layer, tensors in groups.items():
        _check_sizes(tensors, "" if layer < 0 else f" of layer {layer}", sizes, most or {})
    for layer, tensors in groups.items():
        where = "" if layer < 0 else f" of layer {layer}"
        for name in tensors.keys() & set(finite):
            if not _is_finite(torch.as_tensor(tensors[name][1])):
                raise ValueError(f"{name}{where} has a number that is not finite")


def _check_sizes(
    tensors: Mapping[str, tuple[Any, Any]],
    where: str,
    sizes: Mapping[str, int],
    most: Mapping[str, int],
) -> None:
    seen = dict(sizes)
    with jaxtyped("context"):
        for name, (kind, tensor) in tensors.items():
            if not isinstance(tensor, kind):
                raise ValueError(
                    f"{name}{where}, {tensor.dtype} {list(tensor.shape)}, is no "
                    f"{kind.__name__} that agrees with the rest"
                )
            for axis, size in zip(kind.dim_str.split(), tensor.shape, strict=True):
                if seen.get(axis, size) != size:
                    raise ValueError(f"{name}{where} has {size} {axis} and not {seen[axis]}")
                if size > most.get(axis, size):
                    raise ValueError(
                        f"{name}{where} has {size} {axis}, where {most[axis]} are the most"
                    )


def _is_finite(tensor: Tensor) -> bool:
    """Whether the sum of sizes is; looked at in parts, for sizes are a copy."""
    parts = tensor.reshape(-1).split(NUMBERS_AT_A_TIME)
    return all(math.isfinite(float(part.abs().sum())) for part in parts)
