"""Words as people read them: "horses" mentions a horse, and "seahorse" does not."""

import re
from functools import cache

import simplemma

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")


@cache
def lemma(word: str) -> str:
    """The dictionary form of an English word, in lower case."""
    return simplemma.lemmatize(word.lower(), lang="en").lower()


def lemmas(text: str) -> tuple[str, ...]:
    """The words of a text in their dictionary forms, in order."""
    return tuple(lemma(word) for word in _WORD.findall(text))


def mentions(text: str, phrase: str) -> bool:
    """Whether a word or phrase occurs in a text, in any form of its words."""
    said, wanted = lemmas(text), lemmas(phrase)
    places = range(len(said) - len(wanted) + 1) if wanted else ()
    return any(said[i : i + len(wanted)] == wanted for i in places)
