"""Numbers as people read them."""

import math


def number(value: float | int | str) -> str:
    """As people read it: whole numbers in full, others with two significant digits, of which a
    zero after the point is left out; a real minus sign, and none before zero."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if not math.isfinite(value):
        return "–"
    size = math.floor(math.log10(abs(float(f"{value:.1e}")))) if value else 0
    return fixed(value, max(0, 1 - size)).removesuffix(".0")


def counted(count: int, noun: str) -> str:
    """Such as "1 picture", "2,304 pictures" and "2 passes"."""
    several = noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {noun if count == 1 else several}"


def fixed(value: float, places: int) -> str:
    """With so many digits after the point; a real minus sign, and none before zero."""
    text = f"{value:,.{places}f}".replace("-", "−")
    return text.removeprefix("−") if not text.strip("−0.") else text
