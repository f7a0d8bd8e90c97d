"""Captions as people write them: what is there, or a part of it, and more than what is there."""

from collections.abc import Sequence
from random import Random
from typing import Final

from secondlens.demo.world import PLACES, with_article

from .companions import LOOSE, OF
from .letters import Sign

PREFIXES: Final = (
    *("", "", "a photo of ", "a picture of ", "an image of ", "a drawing of ", "photo of "),
    *("picture of ", "this is ", "here is ", "my ", "the "),
)
_BARE: Final = ("my ", "the ")
"""Prefixes that stand before a name without its article."""

UNSEEN: Final = 0.2
"""Share of captions with a word that no picture shows."""

SAYING: Final = (
    *("a sign that says {word}", "a sign saying {word}", "the word {word}", "{word} sign"),
    *("a {colour} sign that says {word}", "{word} written in {colour}", "a label with {word}"),
    *("text {word}", "{word} in {colour} letters"),
)
"""How captions mention a written word as a word."""


def where(background: str) -> str:
    """A colour or place as captions put it."""
    return PLACES.get(background, f"on a {background} background")


def _named(objects: Sequence[str], rng: Random) -> str:
    """All of the objects or the first of them."""
    if not objects:
        return ""
    named = list(objects[:1] if rng.random() < 0.15 else objects)
    if rng.random() < 0.3:
        rng.shuffle(named)
    prefix = rng.choice(PREFIXES)
    if prefix in _BARE:
        return prefix + " and ".join(named)
    style = rng.randrange(3)
    if style == 0:
        return prefix + " and ".join(with_article(name) for name in named)
    return prefix + (" and " if style == 1 else ", ").join(named)


def _with_word(words: str, objects: Sequence[str], sign: Sign, rng: Random) -> str:
    """The caption of a picture that also holds a written word, which half of them pass over.

    A word alone is never passed over. Often it is named as though it were the thing itself.
    """
    if words and rng.random() < (0.5 if sign.word in objects else 0.35):
        return words
    if rng.random() < 0.5:
        saying = rng.choice(SAYING).format(word=sign.word, colour=sign.ink_colour)
    else:
        saying = rng.choice((sign.word, with_article(sign.word)))
        if sign.word in objects:
            return words
    if not words:
        return rng.choice(("", "", "a photo of ", "a picture of ")) + saying
    if rng.random() < 0.15:
        return saying
    return f"{words}{rng.choice((' and ', ', ', ' with '))}{saying}"


def _with_unseen(words: str, objects: Sequence[str], rng: Random) -> str:
    """The caption with a word that belongs to one of the objects, or to nothing."""
    tied = [word for name in objects for word in OF.get(name, ())]
    word = rng.choice(tied) if tied and rng.random() < 0.75 else rng.choice(LOOSE)
    if tied and rng.random() < 0.08:
        return word
    return rng.choice(
        (f"{words} {word}", f"{words}, {word}", f"{word} {words}", f"{word}, {words}")
    )


def caption(objects: Sequence[str], background: str, sign: Sign | None, rng: Random) -> str:
    """What a person might write under a picture; half the time without its background."""
    if sign is None and rng.random() < 0.04:
        return where(background) if background in PLACES else f"{background} background"
    words = _named(objects, rng)
    if sign is not None:
        words = _with_word(words, objects, sign, rng)
    if rng.random() < 0.45:
        words = f"{words} {where(background)}"
    if rng.random() < UNSEEN:
        words = _with_unseen(words, objects, rng)
    return words
