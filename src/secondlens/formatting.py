"""Numbers as people read them."""

import math
from collections.abc import Mapping
from typing import Any


def number(value: float | int | str | None) -> str:
    """As people read it: whole numbers in full, others with two significant digits, of which a
    zero after the point is left out; a real minus sign, and none before zero; a dash for what is
    not known."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if not math.isfinite(value):
        return "–"
    size = math.floor(math.log10(abs(float(f"{value:.1e}")))) if value else 0
    return fixed(value, max(0, 1 - size)).removesuffix(".0")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings of now that were others before, such as "top 5 and not 6, seed 0 and not 1";
    empty if there are none. Those of a setting that has some itself are named "model name"."""
    found = []
    for name, value in now.items():
        earlier, words = before.get(name), name.replace("_", " ")
        if isinstance(value, Mapping) and isinstance(earlier, Mapping):
            inner = differences(
                {f"{words} {key}": each for key, each in earlier.items()},
                {f"{words} {key}": each for key, each in value.items()},
            )
            found += [inner] if inner else []
        elif earlier != value:
            found.append(f"{words} {_brief(earlier)} and not {_brief(value)}")
    return ", ".join(found)


def _brief(value: Any) -> str:
    """A setting as a sentence can hold it: hashes are long."""
    text = "none" if value is None else str(value)
    return text if len(text) <= LONGEST_SETTING else f"{text[:8]}…"


LONGEST_SETTING = 60
"""Letters that a setting has in a message at most."""


def counted(count: int, noun: str) -> str:
    """Such as "1 picture", "2,304 pictures" and "2 passes"."""
    several = noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {noun if count == 1 else several}"


def fixed(value: float, places: int) -> str:
    """With so many digits after the point; a real minus sign, and none before zero."""
    text = f"{value:,.{places}f}".replace("-", "−")
    return text.removeprefix("−") if not text.strip("−0.") else text


def cell(text: object) -> str:
    """A name as code in one cell of a Markdown table, whatever is in it."""
    return "`" + " ".join(str(text).split()).replace("`", "'").replace("|", "/") + "`"
