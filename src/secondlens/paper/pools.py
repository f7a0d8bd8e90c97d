"""The paper's pools of texts: how its files are known, and the words of them that it prints.

The files are published with its code, as `text_descriptions/`. Whoever has them names one with
`--texts 30k.txt`. The built-in pools are as long, but come from another count of English words.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace

from ..data.vocabularies import Vocabulary

TABLE_2 = {
    4: "+snowy +frost +closings +advent",
    391: "+woodworking −swelling +cedar +heirloom",
    2137: "+refreshments +gelatin +sour +cosmopolitan",
    2914: "+motorhome +yacht +cirrus +cabriolet",
}
TABLE_5 = {
    600: "+tents +svalbard +miles −mountainous",
    974: "+runners +races −dolphin +expiration",
    1517: "+bus −filings −percussion +wheelchairs",
    2002: "−genres +governance +'gravel +conserve",
}
"""Neurons of layer 9, and the paper's words for them out of 30,000 common ones."""

FIGURE_8 = (
    "ducks chickens eagle clover carmel park hollister golfing goose wynn",
    "primates chimp alejandro zoology kong bolivia inverter ears motif chests",
    "violin guitar chords faceted cranes elixir sweetwater additives cello parlor",
    "bridge fog staten tektronix nel postmaster bridges yugioh continually lisbon",
)
"""The ten heaviest words of each of four pictures."""

WORDS_10K = "10,000 common words"
WORDS_30K = "30,000 common words"
DESCRIPTIONS = "about 28,000 descriptions of classes"

PUBLISHED = {
    "996ca0bd092a50a333b4a0e87a3731feb0f6f8d4e1a18e58279562d7f9fc2394": WORDS_10K,
    "f765bd1837fcdebada46b2fe726c4f9b54f2ca95d1df6f702aa8497cedc6fee2": WORDS_30K,
    "bab09be44d1c380844efb473c7516a26159af9b9f84aeb3a562565b4bed3c7e8": DESCRIPTIONS,
}
"""What a pool is, by the SHA-256 of its texts, a line each, without repeated ones."""


def known_as(texts: Vocabulary) -> str:
    """What the paper calls a pool that is its own, whatever the file is called; else its name."""
    digest = hashlib.sha256("\n".join(texts.labels).encode()).hexdigest()
    return PUBLISHED.get(digest, texts.name)


def printed() -> list[str]:
    """All words that Tables 2 and 5 and Figure 8 print of the list of 30,000, without signs."""
    tables = " ".join([*TABLE_2.values(), *TABLE_5.values(), *FIGURE_8])
    return list(dict.fromkeys(re.findall(r"\w+", tables)))


def lacking(texts: Vocabulary) -> list[str]:
    """The words that the paper prints, and that a pool does not have."""
    return [word for word in printed() if word not in set(texts.labels)]


def lacking_notes(pools: Iterable[Vocabulary]) -> list[str]:
    """A sentence for each built-in pool of English words that lacks some of the paper's."""
    return [
        f"{texts.name} lacks {len(missing)} of the {len(printed())} words that Tables 2 and 5 and "
        f"Figure 8 print: {', '.join(missing)}. --paper-words adds them; the paper's own list is "
        "text_descriptions/30k.txt of its code."
        for texts in pools
        if _is_english(texts) and (missing := lacking(texts))
    ]


def extended(texts: Vocabulary) -> Vocabulary:
    """A built-in pool of English words with those of the paper that it lacks; else the pool."""
    if not _is_english(texts):
        return texts
    added = tuple(lacking(texts))
    return replace(
        texts,
        name=f"{texts.name} and the paper's words",
        labels=texts.labels + added,
        prompts=texts.prompts + tuple((word,) for word in added),
    )


def _is_english(texts: Vocabulary) -> bool:
    return texts.name in ("english-10k", "english-30k")
