"""Whether what lies in a lens folder can be what a fit wrote there: lenses come from strangers too.

A folder is data and nothing else: regular files inside it, tensors of the declared kinds with sizes
that agree, positions that exist, and finite numbers where nothing else makes sense.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from jaxtyping import jaxtyped
from torch import Tensor

FINITE = ("mean", "directions", "energy", "top_norms", "activation_mean", "coefficients", "brief")
"""Tensors without which nothing can be said, if a number in them is none."""


def check_files(folder: Path) -> None:
    """Raise `ValueError` if something in a folder is no regular file, or lies outside of it."""
    root = folder.resolve()
    for path in sorted(folder.iterdir()):
        if not path.resolve().is_relative_to(root):
            raise ValueError(f"{path.name} is a link that leads out of the folder")
        if path.suffix in (".json", ".safetensors") and not path.is_file():
            raise ValueError(f"{path.name} is no file")


def check_keys(value: Any, kinds: Mapping[str, type], what: str) -> None:
    """Raise `TypeError` unless a value is an object with these keys, each of its kind."""
    if not isinstance(value, dict):
        raise TypeError(f"{what} is no object")
    for key, kind in kinds.items():
        if type(value.get(key)) is not kind:
            raise TypeError(f"{key} of {what} is no {kind.__name__}")


def check_text(value: Any, what: str) -> None:
    """Raise `TypeError` unless a value is a list of texts, none of them twice."""
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"{what} are no list of texts")
    if len(set(value)) < len(value):
        raise TypeError(f"{what} have the same text twice")


def check_tensors(kept: Any, **sizes: int) -> None:
    """Compare the tensors of a dataclass with its annotations.

    Parameters
    ----------
    kept
        Fields that are a tensor, none, or a tensor for each layer are looked at.
    sizes
        What named axes must be.

    Raises
    ------
    ValueError
        A tensor of another kind or size, or with a number that is not finite.
    """
    by_layer: dict[int, dict[str, tuple[Any, Tensor]]] = {}
    single: dict[str, tuple[Any, Tensor]] = {}
    for each in fields(kept):
        value = getattr(kept, each.name)
        if isinstance(value, Mapping) and get_origin(each.type) is dict:
            for layer, tensor in value.items():
                by_layer.setdefault(layer, {})[each.name] = get_args(each.type)[1], tensor
        elif isinstance(value, Tensor):
            kinds = get_args(each.type) if get_origin(each.type) is UnionType else (each.type,)
            single[each.name] = kinds[0], value
    for layer, tensors in ({-1: single} | by_layer).items():
        seen = dict(sizes)
        where = "" if layer < 0 else f" of layer {layer}"
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
                if name in FINITE and not math.isfinite(float(tensor.abs().sum())):
                    raise ValueError(f"{name}{where} has a number that is not finite")


def check_positions(positions: Tensor, below: int, what: str, least: int = 0) -> None:
    """Raise `ValueError` unless all positions lie between `least` and `below`, without it."""
    if positions.numel() and not (least <= int(positions.min()) and int(positions.max()) < below):
        raise ValueError(f"{what} lie outside of {least} to {below - 1}")
