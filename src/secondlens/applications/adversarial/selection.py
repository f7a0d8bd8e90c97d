"""Step 1: words that push an image from one class to another (section 5 of arXiv 2406.04341).

A `Selector` ranks the words of a pool for a direction v between two classes. The paper's is
`Neurons` with the directions of second-order effects; the baselines are rankings of the same pool.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import simplemma
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...data.embedding import normalise
from ...data.reader import FEW_IMAGES, Reader
from ...data.sources import ImageSource
from ...data.vocabularies import Vocabulary
from ...errors import SecondLensError, SecondLensWarning
from ...formatting import counted
from ...lens.codes import Codes
from ...lens.lens import Lens
from ...models.view import Clip
from ...sparse.pursuit import omp
from ...storage.validation import Position
from ..ablation.readings import Indirect

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


NEURONS = 100
"""By the largest |<v, r>|, as in the paper."""

FEW_WORDS = 3
"""With fewer, it is said why there are no more."""

CARRIERS = 3
"""Neurons of a word that are kept: those that add most to its score."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The class that pictures show, and the one they shall be mistaken for."""

    draw: str
    mistake_for: str


@dataclass(frozen=True, kw_only=True)
class RankedWord:
    """A word of the pool with its score for a direction between two classes."""

    text: str
    score: float
    neurons: tuple[tuple[Position, Position, float], ...] = ()
    """(layer, neuron, what it adds to the score), strongest first; none for words that were not
    chosen by neurons."""


class NothingLeft(SecondLensError):
    """A step of an attack on one pair of classes has nothing to go on with; others may have."""


@runtime_checkable
class Selector(Protocol):
    """A way to rank words."""

    name: str

    def rank(self, v: Float[Tensor, " dim"]) -> list[RankedWord]:
        """All words that push along v, best first."""


@runtime_checkable
class TooClose(Protocol):
    """A judge of words that knows nothing of the attacked model."""

    name: str

    def too_close(self, words: Sequence[str], to: str) -> list[bool]:
        """For each word, whether it says nearly the same as the class `to`."""


def choose(
    selector: Selector,
    v: Float[Tensor, " dim"],
    pair: Pair,
    judge: TooClose,
    count: int,
    drawable: Sequence[str] | None = None,
) -> list[RankedWord]:
    """The best words of a selector that may be drawn: the same filter for every selector.

    Words that mention either class, in any form, are dropped, then those too close to the wrong
    one. Of fewer than three a warning says why there are no more.

    Parameters
    ----------
    v
        Text of the wrong class minus text of the class to draw.
    count
        Words to keep, at most.
    drawable
        Words that the image generator knows; by default it can draw anything.

    Raises
    ------
    NothingLeft
        No word is left.
    """
    known = None if drawable is None else set(drawable)
    pushing = selector.rank(v)
    drawn = [word for word in pushing if known is None or word.text in known]
    ranked = [
        word
        for word in drawn
        if not mentions(word.text, pair.draw) and not mentions(word.text, pair.mistake_for)
    ]
    close = judge.too_close([word.text for word in ranked], pair.mistake_for)
    far = [word for word, near in zip(ranked, close, strict=True) if not near]
    if len(far) >= min(count, FEW_WORDS):
        return far[:count]
    dropped = {
        "that cannot be drawn": len(pushing) - len(drawn),
        "that name a class": len(drawn) - len(ranked),
        f"too close to {pair.mistake_for}": sum(close),
    }
    reasons = ", ".join(f"{number} {reason}" for reason, number in dropped.items() if number)
    why = f" (of {len(pushing)}, {reasons})" if reasons else ""
    advice = "describe the lens with more texts, or fit more layers"
    way = f"from {pair.draw} to {pair.mistake_for}{why}: {advice}"
    if not far:
        raise NothingLeft(f"{selector.name} finds no word that pushes {way}")
    warnings.warn(
        f"{selector.name} finds no more than {counted(len(far), 'word')} {way}",
        SecondLensWarning,
        stacklevel=2,
    )
    return far


class NeuronSelector:
    """Words of the neurons that lie along v, scored as in Eq. 6: sum over them of <v, r> * code.

    The score of a word is added up over neurons, which the published code does not do.

    Parameters
    ----------
    directions
        Unit directions r of every neuron, by layer.
    labels
        The words.
    codes
        (positions in `labels`, coefficients) of the code of every direction, by layer; a position
        of -1 is no word.
    count
        Neurons, by the largest |<v, r>|; all of them if there are fewer.
    random
        Choose neurons by chance, with this seed, instead of by |<v, r>|.

    Raises
    ------
    SecondLensError
        No layer, or a number of neurons below one.
    """

    def __init__(
        self,
        directions: Mapping[int, Float[Tensor, "neurons dim"]],
        labels: Sequence[str],
        codes: Mapping[int, tuple[Int[Tensor, "neurons k"], Float[Tensor, "neurons k"]]],
        *,
        name: str = "second order",
        count: int = NEURONS,
        random: int | None = None,
    ) -> None:
        if not directions or count < 1:
            raise SecondLensError("an attack needs at least one layer and one neuron of it")
        self.name, self.labels, self.random = name, labels, random
        self.directions = torch.cat(list(directions.values())).cpu()
        self.indices = torch.cat([codes[layer][0] for layer in directions]).cpu()
        self.coefficients = torch.cat([codes[layer][1] for layer in directions]).cpu()
        self.places = [(layer, n) for layer, rows in directions.items() for n in range(len(rows))]
        self.count = min(count, len(self.places))

    def chosen(self, along: Float[Tensor, " neurons"]) -> Int[Tensor, " chosen"]:
        """The neurons that count, given <v, r> of all."""
        if self.random is None:
            return along.abs().topk(self.count).indices
        generator = torch.Generator().manual_seed(self.random)
        return torch.randperm(len(along), generator=generator)[: self.count].to(along.device)

    def rank(self, v: Float[Tensor, " dim"]) -> list[RankedWord]:
        """Words with a positive score, best first."""
        along = self.directions @ v.to(self.directions)
        chosen = self.chosen(along)
        indices, used = self.indices[chosen], self.indices[chosen] >= 0
        parts = self.coefficients[chosen] * along[chosen, None] * used
        scores = parts.new_zeros(len(self.labels))
        scores.index_add_(0, indices[used], parts[used])
        order = scores.argsort(descending=True, stable=True)
        return [
            RankedWord(
                text=self.labels[word],
                score=float(scores[word]),
                neurons=self._carriers(chosen, parts, indices == word),
            )
            for word in order.tolist()
            if scores[word] > 0
        ]

    def _carriers(
        self, chosen: Tensor, parts: Tensor, of_word: Tensor
    ) -> tuple[tuple[int, int, float], ...]:
        """The neurons that add most to a word's score."""
        added = (parts * of_word).sum(1)
        strongest = added.topk(min(CARRIERS, len(added)))
        return tuple(
            (*self.places[int(chosen[row])], value)
            for row, value in zip(
                strongest.indices.tolist(), strongest.values.tolist(), strict=True
            )
            if value > 0
        )


class SimilarSelector:
    """The words whose texts lie along v themselves: no neurons. The paper's third baseline.

    Parameters
    ----------
    texts
        Unit embeddings of the words.
    """

    name = "similar words"

    def __init__(self, labels: Sequence[str], texts: Float[Tensor, "words dim"]) -> None:
        self.labels, self.texts = labels, texts

    def rank(self, v: Float[Tensor, " dim"]) -> list[RankedWord]:
        """Words with a positive score, best first."""
        scores = self.texts @ v.to(self.texts)
        order = scores.argsort(descending=True, stable=True).tolist()
        return [
            RankedWord(text=self.labels[i], score=float(scores[i])) for i in order if scores[i] > 0
        ]


class RandomSelector:
    """Words by chance: what extra things in a picture do by themselves."""

    name = "random words"

    def __init__(self, labels: Sequence[str], seed: int) -> None:
        self.labels, self.seed = labels, seed

    def rank(self, v: Float[Tensor, " dim"]) -> list[RankedWord]:
        """All words in an order of chance; their scores are 0."""
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(self.labels), generator=generator).tolist()
        return [RankedWord(text=self.labels[i], score=0.0) for i in order]


METHODS = ("second order", "random neurons", "similar words", "random words")
"""What `selector` makes; `indirect` makes one more, which needs pictures and time."""

INDIRECT = "indirect effect"


Coded = dict[int, tuple[Int[Tensor, "neurons k"], Float[Tensor, "neurons k"]]]
"""Positions of words, and their coefficients, for every neuron, by layer."""


def codes_of(codes: Codes, layers: Sequence[int], *, whole: bool = False) -> Coded:
    """The brief codes of a description, or its whole ones, as the paper takes them.

    A brief code holds the few texts that say most of a direction. The other texts of a whole one
    make up for the errors of the first, with weights of either sign that add noise to the sum of
    Eq. 6: with as many texts as the embedding is wide, any direction is rebuilt from any words.
    """
    weights = codes.coefficients if whole else codes.brief
    return {
        layer: (codes.indices[layer][:, : weights[layer].shape[1]], weights[layer])
        for layer in layers
    }


def selector(
    name: str,
    clip: Clip,
    lens: Lens,
    texts: Vocabulary,
    codes: Codes,
    *,
    layers: Sequence[int] | None = None,
    neurons: int = NEURONS,
    whole_codes: bool = False,
    seed: int = 0,
) -> Selector:
    """A method by name; see `METHODS`.

    Parameters
    ----------
    codes
        Of the lens, with the words of `texts`.
    layers
        To take neurons from; by default all that are fitted.
    neurons, whole_codes
        See `NeuronSelector` and `codes_of`.
    seed
        Of what is chosen by chance.

    Raises
    ------
    SecondLensError
        No such method, or a layer that was not fitted.
    """
    if name == "similar words":
        return SimilarSelector(texts.labels, texts.embed(clip))
    if name == "random words":
        return RandomSelector(texts.labels, seed)
    if name not in METHODS:
        raise SecondLensError(f"no method {name!r}: choose one of {', '.join(METHODS)}")
    chosen = lens.layers if layers is None else list(layers)
    return NeuronSelector(
        {layer: lens[layer].directions for layer in chosen},
        codes.labels,
        codes_of(codes, chosen, whole=whole_codes),
        name=name,
        count=neurons,
        random=seed if name == "random neurons" else None,
    )


@torch.no_grad()
def indirect(
    clip: Clip,
    lens: Lens,
    source: ImageSource,
    texts: Vocabulary,
    codes: Codes,
    *,
    layers: Sequence[int] | None = None,
    neurons: int = NEURONS,
    whole_codes: bool = False,
) -> NeuronSelector:
    """The same as `selector` makes, with first principal components of indirect effects.

    The network runs on from each layer once for every neuron and picture of `source`;
    `indirect_seconds` of `secondlens.effects.ablated_runs` tells how long one of these takes.
    """
    reader = Reader(source=source, clip=clip, batch_size=FEW_IMAGES)
    batches = [batch.pixels for batch in reader]
    everyone, directions, coded = list(range(clip.neurons)), {}, {}
    atoms = normalise(texts.embed(clip), codes.normalise)
    for layer in lens.layers if layers is None else layers:
        effects = Indirect(clip, layer, everyone, batches, lens[layer].activation_mean)
        directions[layer] = effects.fitted.directions
        like = codes.coefficients if whole_codes else codes.brief
        coded[layer] = omp(directions[layer], atoms.to(directions[layer]), like[layer].shape[1])
    return NeuronSelector(directions, codes.labels, coded, name=INDIRECT, count=neurons)
