"""The texts of the embedded world: objects, colours and places, and how one speaks of them."""

from ..demo.world import BACKGROUNDS, COLOURS, NAMES, PLACES, with_article
from .vocabulary import Vocabulary

TEMPLATES = ("a photo of {}", "a picture of {}", "{}", "a drawing of {}", "an image of {}")


def prompts(name: str) -> tuple[str, ...]:
    """The texts for an object, a colour or a place."""
    if name in PLACES:
        return (PLACES[name], f"a picture {PLACES[name]}")
    if name in COLOURS:
        return (f"{name} background", f"on a {name} background")
    return tuple(template.format(with_article(name)) for template in TEMPLATES)


def world_vocabulary() -> Vocabulary:
    """Every object, colour and place of the world."""
    labels = (*NAMES, *BACKGROUNDS)
    return Vocabulary(name="world", labels=labels, prompts=tuple(map(prompts, labels)))


def object_names() -> Vocabulary:
    """Every object: the classes of zero-shot experiments."""
    return Vocabulary(name="objects", labels=NAMES, prompts=tuple(map(prompts, NAMES)))


def backgrounds() -> Vocabulary:
    """Every colour and place: what may lead a classifier of objects astray."""
    return Vocabulary(
        name="backgrounds", labels=BACKGROUNDS, prompts=tuple(map(prompts, BACKGROUNDS))
    )
