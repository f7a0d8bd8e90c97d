"""Step 2: captions that show the class to draw and as many of the words as possible.

A `Captioner` proposes texts; `captions` keeps those that may be used, whoever wrote them.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ...demo.world import COLOURS, PLACES, with_article
from .selection import NothingLeft, Pair, mentions

WORDS_IN_A_PICTURE = 3
"""Of the template captioner."""

PROPOSED = 5
"""Captions asked of a language model for each one kept: the paper asks 50 for 10."""

TEMPERATURE, TOP_P = 0.6, 0.9
"""The paper's, of language models."""

ROUNDS = 3
"""Times a captioner is asked again when too few captions can be kept."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What to draw, and the same without the words."""

    text: str
    plain: str
    words: tuple[str, ...]
    """Those of the selection that the text mentions."""


@runtime_checkable
class Captioner(Protocol):
    """A way to write captions."""

    name: str

    def write(self, pair: Pair, words: Sequence[str], count: int, seed: int) -> list[str]:
        """About `count` texts; fewer, more or useless ones are no error."""


def plain(pair: Pair) -> str:
    """The caption without any of the words."""
    return f"a photo of {with_article(pair.draw)}"


def captions(
    captioner: Captioner, pair: Pair, words: Sequence[str], count: int, seed: int
) -> list[Caption]:
    """`count` captions that mention the class to draw and a word at least, and not the wrong class.

    Raises
    ------
    NothingLeft
        None of what the captioner proposed can be used, or it answers without a list: it is then
        not asked again.
    """
    kept: dict[str, Caption] = {}
    dropped = {f"without {pair.draw}": 0, f"with {pair.mistake_for}": 0, "without any word": 0}
    for again in range(ROUNDS):
        for text in captioner.write(pair, words, count, seed + 1_000_003 * again):
            shown = tuple(word for word in words if mentions(text, word))
            if not mentions(text, pair.draw):
                dropped[f"without {pair.draw}"] += 1
            elif mentions(text, pair.mistake_for):
                dropped[f"with {pair.mistake_for}"] += 1
            elif not shown:
                dropped["without any word"] += 1
            else:
                kept.setdefault(text, Caption(text=text, plain=plain(pair), words=shown))
        if len(kept) >= count:
            break
    if not kept:
        counts = ", ".join(f"{number} {why}" for why, number in dropped.items())
        raise NothingLeft(
            f"none of the captions by {captioner.name} can be used ({counts}): try another "
            "captioner or other words"
        )
    return list(kept.values())[:count]


class TemplateCaptioner:
    """Captions such as "a photo of a dog and a cactus and a lamp in the snow".

    Words are drawn by chance from the selection, at most one of them a place or colour of the
    embedded world, which then is the background.
    """

    name = "template"

    def __init__(self, words: int = WORDS_IN_A_PICTURE) -> None:
        self.words = words

    def write(self, pair: Pair, words: Sequence[str], count: int, seed: int) -> list[str]:
        """`count` texts; equal ones where there are few words."""
        rng = random.Random(seed)
        return [self._one(pair, words, rng) for _ in range(count)]

    def _one(self, pair: Pair, words: Sequence[str], rng: random.Random) -> str:
        order = rng.sample(list(words), len(words))
        grounds = [word for word in order if word in PLACES or word in COLOURS]
        usable = [word for word in order if word not in grounds[1:]][: self.words]
        things = [word for word in usable if word not in grounds]
        text = " and ".join([plain(pair), *map(with_article, things)])
        ground = next((word for word in usable if word in grounds), None)
        if ground is None:
            return text
        return f"{text} {PLACES.get(ground, f'on a {ground} background')}"


def template(chosen: str, **_: Any) -> TemplateCaptioner:
    """The member "template" of `captioners`."""
    return TemplateCaptioner()


def instructions(pair: Pair, words: Sequence[str], count: int) -> str:
    """What a language model is asked."""
    return (
        f"Write {count} captions of photos. Each one shows {with_article(pair.draw)} as its main "
        f"subject, and as many things of this list as fit into one scene: {', '.join(words)}. "
        f"Never mention {with_article(pair.mistake_for)}. Keep each caption below 30 words. Answer "
        "with a numbered list of the captions and nothing else."
    )


_THOUGHTS = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_END_OF_THOUGHTS = re.compile(r"\A.*</(think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)
_ITEM = re.compile(r"^[\s>*_]*(?:\d+\s*[.):]|[-*•](?=\s))[*_]*\s*(.+?)\s*$", re.MULTILINE)
_AROUND = "\"'“”*_ \t,"


def listed(reply: str) -> list[str]:
    """The captions in a reply, without quotes and emphasis; none if there is no list.

    What a model thinks before it answers does not count. A list is JSON, or numbered or marked
    lines; without either, several plain lines are one, but for those that end in a colon.
    """
    said = _END_OF_THOUGHTS.sub("", _THOUGHTS.sub("", reply))
    found = _of_json(said) or _ITEM.findall(said)
    if not found:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        found = [line for line in lines if not line.endswith(":")] if len(lines) > 1 else []
    return [text for item in found if (text := item.strip(_AROUND))]


def _of_json(said: str) -> list[str]:
    """The texts of the first JSON list in a reply: texts, or objects with a text each."""
    start, end = said.find("["), said.rfind("]")
    try:
        items = json.loads(said[start : end + 1])
    except (ValueError, RecursionError):
        return []
    texts = [next(iter(each.values()), "") if isinstance(each, dict) else each for each in items]
    return [each for each in texts if isinstance(each, str)]


SHOWN = 120
"""Characters of a reply that are quoted."""


def proposed(reply: str, name: str) -> list[str]:
    """The captions in a reply of a language model.

    Parameters
    ----------
    name
        The captioner's.

    Raises
    ------
    NothingLeft
        There is no list in it.
    """
    if found := listed(reply):
        return found
    said = " ".join(reply.split())
    quoted = f"“{said[:SHOWN]}…”" if len(said) > SHOWN else f"“{said}”"
    raise NothingLeft(
        f"{name} answers without a list of captions, {quoted if said else 'with nothing'}: try "
        "another captioner or other words"
    )
