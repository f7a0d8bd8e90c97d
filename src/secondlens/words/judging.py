"""What images hold, as a judge sees it: true labels, or other models than the explained one.

A model has no bar for "this is in the picture" that would be the same for every text, so its
cosines are standardised over the images, text by text. Of a kind of texts an image then holds the
best one at most: a background never hides an object, and "wolf" takes nothing from a dog's picture.
"""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data.embedding import normalise
from ..data.labelled import check_label_sets
from ..data.sources import ImageSource
from ..data.vocabularies import Vocabulary
from ..demo.world import BACKGROUNDS
from ..effects.projections import embed
from ..errors import SecondLensError, SecondLensWarning
from ..formatting import counted
from ..models.view import Clip

ALIKE = 0.97
"""Cosine, the mean text subtracted, from which on a referee cannot tell two texts apart."""
EQUAL = 1 - 1e-5
"""The same with the mean, for texts that are all equal: without it nothing is left of them."""
TEXTS_PER_CHUNK = 2048


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Texts that compete with each other for an image, and with no others."""

    name: str
    texts: tuple[str, ...]
    everywhere: bool = False
    """Whether every image holds one of them, as a background does: the best one then needs no
    bar."""


def kinds_of(texts: Vocabulary, kinds: Sequence[Kind] | None) -> list[Kind]:
    """The kinds of a vocabulary: what is in none of the given is one kind more.

    Without any given, the colours and places of the embedded world are one kind if the vocabulary
    has all of them: `World` draws each scene before one of them.

    Raises
    ------
    SecondLensError
        A text in two kinds, or one that the vocabulary lacks.
    """
    if kinds is None:
        world = set(BACKGROUNDS) <= set(texts.labels)
        kinds = [Kind(name="background", texts=BACKGROUNDS, everywhere=True)] if world else []
    seen: set[str] = set()
    for kind in kinds:
        for text in kind.texts:
            if text not in texts.labels:
                raise SecondLensError(
                    f"the kind {kind.name} has the text {text!r}, which {texts.name} lacks: take "
                    "it out, or add it to the texts"
                )
            if text in seen:
                raise SecondLensError(f"the text {text!r} is of two kinds: name it in one of them")
            seen.add(text)
    rest = tuple(text for text in texts.labels if text not in seen)
    return [*kinds, *([Kind(name="thing", texts=rest)] if rest else [])]


@dataclass(frozen=True, kw_only=True, eq=False)
class Holdings:
    """Which texts each image holds; on the CPU."""

    judge: str
    texts: Int[Tensor, "images slots"]
    """Positions in the vocabulary; -1 where a slot is empty."""
    strength: Float[Tensor, "images slots"]
    """By how many standard deviations a text fits the image better than other images; infinite
    where there is no doubt."""

    def above(self, bar: float) -> Int[Tensor, "images slots"]:
        """The texts whose strength is above a bar, -1 elsewhere."""
        return self.texts.masked_fill(self.strength <= bar, -1)


def by_labels(
    labels: Sequence[Collection[str]], texts: Vocabulary, positions: list[int]
) -> Holdings:
    """What is true of the images at some positions; labels that the vocabulary lacks are dropped,
    with a warning.

    Raises
    ------
    SecondLensError
        No image has a label that is one of the texts.
    """
    place = {text: position for position, text in enumerate(texts.labels)}
    rows = [sorted({place[each] for each in labels[p] if each in place}) for p in positions]
    slots = max(map(len, rows))
    if slots == 0:
        raise SecondLensError(
            f"none of the labels is one of the texts of {texts.name}: name labels as the texts do"
        )
    if dropped := sorted({each for p in positions for each in labels[p]} - place.keys()):
        message = (
            f"{counted(len(dropped), 'label')}, {dropped[0]!r} first, "
            f"{'is' if len(dropped) == 1 else 'are'} none of the texts of {texts.name}, and "
            "left out"
        )
        warnings.warn(message, SecondLensWarning, stacklevel=4)
    held = torch.full((len(rows), slots), -1)
    for row, found in zip(held, rows, strict=True):
        row[: len(found)] = torch.tensor(found, dtype=torch.long)
    strength = torch.where(held >= 0, torch.inf, -torch.inf)
    return Holdings(judge="true labels", texts=held, strength=strength)


def by_model(
    referee: Clip,
    texts: Vocabulary,
    kinds: Sequence[Kind],
    first: Int[Tensor, " texts"],
    source: ImageSource,
    positions: list[int],
    batch_size: int | None,
    workers: int,
) -> Holdings:
    """The best text of each kind for each image, by the standardised cosines of a CLIP.

    Parameters
    ----------
    first
        What `alike` gives: a text that stands for others competes in their place.
    positions
        Images that count.
    """
    images = embed(referee, source, batch_size=batch_size, workers=workers)[positions]
    rows = normalise(texts.embed(referee), "centred").to(images)
    place = {text: position for position, text in enumerate(texts.labels)}
    best, strength = [], []
    for kind in kinds:
        own = sorted({int(first[place[text]]) for text in kind.texts})
        found = torch.full((len(images),), -1, device=images.device)
        highest = torch.full_like(images[:, 0], -torch.inf)
        for chunk in torch.tensor(own, device=images.device).split(TEXTS_PER_CHUNK):
            cosine = images @ rows[chunk].T
            spread = cosine.std(dim=0)
            z = ((cosine - cosine.mean(dim=0)) / spread).masked_fill(spread == 0, -torch.inf)
            top, which = z.max(dim=1)
            found = torch.where(top > highest, chunk[which], found)
            highest = torch.maximum(top, highest)
        best.append(found.cpu())
        if kind.everywhere:
            highest = highest.masked_fill(found >= 0, torch.inf)
        strength.append(highest.float().cpu())
    return Holdings(
        judge=referee.name, texts=torch.stack(best, dim=1), strength=torch.stack(strength, dim=1)
    )


def agreed(judges: Sequence[Holdings]) -> Holdings:
    """What all judges see, with the least of their strengths."""
    held = judges[0].texts
    strength = judges[0].strength
    for other in judges[1:]:
        same = (held[:, :, None] == other.texts[:, None]) & (held >= 0)[:, :, None]
        theirs = other.strength[:, None].expand(same.shape).masked_fill(~same, -torch.inf)
        strength = torch.minimum(strength, theirs.amax(dim=2))
    return Holdings(
        judge=" and ".join(each.judge for each in judges), texts=held, strength=strength
    )


def alike(referees: Sequence[Clip], texts: Vocabulary) -> Int[Tensor, " texts"]:
    """For each text the first one that it cannot be told from by some referee; often itself.

    Raises
    ------
    SecondLensError
        Fewer than two texts would be left.
    """
    first = torch.arange(len(texts))
    for referee in referees:
        embedded = texts.embed(referee)
        plain = normalise(embedded, "unit").float()
        rows = F.normalize(normalise(embedded, "centred"), dim=1)
        for start in range(0, len(texts), TEXTS_PER_CHUNK):
            stop = min(start + TEXTS_PER_CHUNK, len(texts))
            same = rows[start:stop] @ rows[:stop].T > ALIKE
            same |= plain[start:stop] @ plain[:stop].T > EQUAL
            for row, earlier in _earlier(same.cpu(), start):
                leaders = [each for each in earlier if first[each] == each]
                if leaders:
                    first[row] = leaders[0]
    for row, leader in enumerate(first.tolist()):  # of what was joined by two referees
        first[row] = first[leader]
    if len(texts) > 1 and len(set(first.tolist())) < 2:
        raise SecondLensError(
            f"the referee tells none of the {len(texts)} texts of {texts.name} apart: give other "
            "texts, or another referee"
        )
    return first


def _earlier(same: Bool[Tensor, "rows texts"], start: int) -> list[tuple[int, list[int]]]:
    """For each row that is like earlier texts, its position and theirs."""
    rows, columns = same.nonzero(as_tuple=True)
    found: dict[int, list[int]] = {}
    for row, column in zip((rows + start).tolist(), columns.tolist(), strict=True):
        if column < row:
            found.setdefault(row, []).append(column)
    return list(found.items())


def judge(
    referee: Any,
    clip: Clip,
    texts: Vocabulary,
    kinds: Sequence[Kind],
    source: ImageSource,
    positions: list[int],
    batch_size: int | None,
    workers: int,
) -> tuple[Holdings, Int[Tensor, " texts"]]:
    """What the images at some positions hold, and what `alike` says of the texts.

    Parameters
    ----------
    referee
        A CLIP, several of them, which must agree, or the texts that are true of each image.
    clip
        What is explained.

    Raises
    ------
    SecondLensError
        No referee, or what the functions above raise.
    """
    referees = list(models_of(referee))
    if not referees:
        return by_labels(referee, texts, positions), torch.arange(len(texts))
    first = alike(referees, texts)
    seen = [
        by_model(each, texts, kinds, first, source, positions, batch_size, workers)
        for each in referees
    ]
    return agreed(seen), first


def models_of(referee: Any) -> Sequence[Clip]:
    """The models among what may judge; none if it is labels."""
    if isinstance(referee, Clip):
        return [referee]
    return [each for each in referee if isinstance(each, Clip)]


def check_referee(referee: Any, clip: Clip, source: ImageSource) -> None:
    """Raise `SecondLensError` for the explained model as a judge of itself, and for labels that do
    not fit the images."""
    models = models_of(referee)
    if any(each.weights_hash == clip.weights_hash for each in models):
        raise SecondLensError(
            f"{clip.name} cannot judge itself, because its effects are part of what it would judge "
            "by: give another model, or the labels of the images"
        )
    if not models:
        check_label_sets(referee, len(source.ids), "texts")
