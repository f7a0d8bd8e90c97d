"""Numbers as pages hold them: a few significant digits, and None for what is no number."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, SupportsFloat

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from .records import LIGHT

DIGITS = 3


def short(value: SupportsFloat, digits: int = DIGITS) -> float | None:
    """Rounded to some significant digits."""
    number = float(value)
    return float(f"{number:.{digits}g}") if math.isfinite(number) else None


def shortened(values: Shaped[np.ndarray, " numbers"], digits: int = DIGITS) -> list[float | None]:
    """`short` of each number, many at once."""
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    with np.errstate(divide="ignore"):
        places = digits - 1 - np.floor(np.log10(np.abs(np.where(finite, values, 0))))
    places = np.clip(places, -300, 300)
    # powers of ten are exact one way only: up for small numbers, down for large ones
    up, down = 10.0 ** np.maximum(places, 0), 10.0 ** np.maximum(-places, 0)
    with np.errstate(over="ignore"):
        rounded = np.round(np.where(finite, values, 0) * up / down) * down / up
    found: list[float | None] = rounded.tolist()
    return found if finite.all() else [v if f else None for v, f in zip(found, finite, strict=True)]


def shortened_by_name(
    parts: Mapping[str, Shaped[np.ndarray, " numbers"]], digits: int = DIGITS
) -> dict[str, list[float | None]]:
    """`shortened` of several arrays: for short ones, calls to numpy cost more than numbers do."""
    found = shortened(np.concatenate(list(parts.values())), digits)
    ends = np.cumsum([0, *map(len, parts.values())]).tolist()
    return {name: found[a:b] for name, (a, b) in zip(parts, pairwise(ends), strict=True)}


def hex_digits(shares: Float[Tensor, " patches"]) -> str:
    """One hexadecimal digit a patch, from dark to full light."""
    return "".join(f"{v:x}" for v in (shares.clamp(0, 1) * LIGHT).round().int().tolist())


def json_ready(content: Any) -> Any:
    """The same with every number that JSON can hold, shortened, and None for the others."""
    if isinstance(content, dict):
        return {str(key): json_ready(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [json_ready(value) for value in content]
    return short(content, 4) if isinstance(content, float) else content


def quartiles(values: Shaped[np.ndarray, " numbers"]) -> list[float | None]:
    """Of the numbers among some values."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return [None, None, None]
    return shortened(np.quantile(finite, (0.25, 0.5, 0.75)))
