"""The vocabularies that have a name."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final

from ..errors import SecondLensError
from .vocabulary import Vocabulary
from .world import world_vocabulary

# abbreviations such as "u.s", numbers, and letters such as the "s" of plurals are no words
_WORD = re.compile(r"[ai]|[a-z]+(?:'[a-z]+)+|[a-z]{2,}")


def english(count: int, name: str) -> Vocabulary:
    """The `count` most common English words, most common first.

    Raises
    ------
    SecondLensError
        wordfreq is missing.
    """
    try:
        from wordfreq import top_n_list
    except ImportError:
        raise SecondLensError(f"{name} needs wordfreq: pip install 'secondlens[words]'") from None
    tokens = top_n_list("en", 2 * count, ascii_only=True)
    words = tuple(token for token in tokens if _WORD.fullmatch(token))[:count]
    return Vocabulary(name=name, labels=words, prompts=tuple((word,) for word in words))


def imagenet() -> Vocabulary:
    """The 1,000 classes of ImageNet in their order."""
    from open_clip import IMAGENET_CLASSNAMES

    return class_names("imagenet", IMAGENET_CLASSNAMES)


def class_names(name: str, labels: Iterable[str]) -> Vocabulary:
    """Names of classes, each in OpenAI's 80 prompts."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    labels = tuple(labels)
    prompts = tuple(tuple(fill(label) for fill in OPENAI_IMAGENET_TEMPLATES) for label in labels)
    return Vocabulary(name=name, labels=labels, prompts=prompts)


BUILTIN: Final[Mapping[str, Callable[[], Vocabulary]]] = {
    "english-10k": partial(english, 10_000, "english-10k"),
    "english-30k": partial(english, 30_000, "english-30k"),
    "imagenet": imagenet,
    "world": world_vocabulary,
}
