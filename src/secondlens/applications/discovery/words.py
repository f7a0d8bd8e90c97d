"""Words that an image shows, with what they are made of."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations

import torch
from jaxtyping import Float
from torch import Tensor

from ...lens.layer import NeuronId

CARRIERS = 32
"""Neurons of a word that are told one by one."""

SYNONYM = 0.9
"""Cosine of texts, mean text subtracted, above which two of the words found are one."""


@dataclass(frozen=True, kw_only=True)
class Carrier(NeuronId):
    """What a neuron adds to the weight of a word."""

    weight: float


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundWord:
    """A word that an image shows; unpacks as (text, weight, neurons)."""

    text: str
    synonyms: tuple[str, ...]
    """Words so alike that they count as this one."""
    weight: float
    neurons: tuple[Carrier, ...]
    """The neurons that add most, the first one most; `CARRIERS` at most."""
    others: float
    """What all other neurons add; with `neurons`, the weight."""
    active: int
    """How many neurons have a part."""
    heads: Float[Tensor, "blocks heads"]
    """What arrives through each attention head; adds up to the weight. A pool is the last block.
    There are none over all paths, which go through several."""
    patches: Float[Tensor, "rows columns"]
    """What comes from each patch; with `class_token`, adds up to the weight."""
    class_token: float
    """And from registers, where there are any; zero without either."""

    def __repr__(self) -> str:
        return f"Word({self.text!r}, {self.weight:.3g}, {self.active} neurons)"

    def __iter__(self) -> Iterator[object]:
        return iter((self.text, self.weight, self.neurons))


@dataclass(frozen=True, kw_only=True)
class Carried:
    """Who adds what to a word."""

    neurons: tuple[Carrier, ...]
    others: float
    active: int


def carried(shares: Mapping[int, Float[Tensor, "words neurons"]]) -> list[Carried]:
    """For each word, the neurons that add most, what all others add, and how many have a part.

    Parameters
    ----------
    shares
        Of every neuron, by layer.
    """
    layers = list(shares)
    starts = [0, *accumulate(own.shape[1] for own in shares.values())]
    together = torch.cat(list(shares.values()), dim=1)
    values, places = together.topk(min(CARRIERS, starts[-1]), dim=1)
    others = (together.sum(1) - values.sum(1)).tolist()
    active = together.count_nonzero(dim=1).tolist()
    found = []
    for row, where in enumerate(places.tolist()):
        told = []
        for place, weight in zip(where, values[row].tolist(), strict=True):
            if weight != 0:
                i = bisect_right(starts, place) - 1
                told.append(Carrier(layer=layers[i], neuron=place - starts[i], weight=weight))
        found.append(Carried(neurons=tuple(told), others=others[row], active=active[row]))
    return found


def group(similarity: Sequence[Sequence[float]], threshold: float) -> list[list[int]]:
    """Words in groups, by agglomerative clustering with average linkage.

    The two groups with the highest mean similarity between their words are joined until it is not
    above `threshold`. Groups and their words keep the order of their first words.

    Parameters
    ----------
    similarity
        Of each word with each, [words][words].
    """

    def mean_similarity(pair: tuple[int, int]) -> float:
        one, other = groups[pair[0]], groups[pair[1]]
        return sum(similarity[i][j] for i in one for j in other) / (len(one) * len(other))

    groups = [[word] for word in range(len(similarity))]
    while len(groups) > 1:
        closest = max(combinations(range(len(groups)), 2), key=mean_similarity)
        if mean_similarity(closest) <= threshold:
            break
        groups[closest[0]] = sorted(groups[closest[0]] + groups.pop(closest[1]))
    return groups
