"""A neuron's words as concepts: groups of texts that are more alike than texts usually are."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import exp, log

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ALIKE = 0.95
"""Quantile of the cosines of pairs of texts, above which two are alike."""
TEXTS_COMPARED = 2000


@dataclass(frozen=True, kw_only=True)
class Concept:
    """Related words of a neuron, all with the same sign."""

    words: tuple[str, ...]
    """Strongest first."""
    weights: tuple[float, ...]
    """Their coefficients."""
    texts: Float[Tensor, "words dim"] = field(compare=False, repr=False)
    """Their embeddings: unit rows, mean text subtracted."""

    @property
    def weight(self) -> float:
        """Sum of the coefficients, with their sign."""
        return sum(self.weights)

    @property
    def direction(self) -> Float[Tensor, " dim"]:
        """Unit: the texts, added up with the sizes of their coefficients."""
        return F.normalize(torch.tensor(self.weights).abs().to(self.texts) @ self.texts, dim=0)


def same_concept(texts: Float[Tensor, "texts dim"]) -> float:
    """The cosine above which texts count as alike: that of the closest 5 % of pairs.

    Parameters
    ----------
    texts
        Unit rows, mean text subtracted. Beyond 2,000, evenly spaced ones are compared.
    """
    some = texts[:: -(-len(texts) // TEXTS_COMPARED)]
    rows, columns = torch.triu_indices(len(some), len(some), 1)
    cosines = (some @ some.T)[rows, columns].sort().values
    return float(cosines[int(ALIKE * len(cosines))]) if len(cosines) else 1.0


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


def concepts_of(
    words: Sequence[tuple[str, float]],
    texts: Float[Tensor, "words dim"],
    threshold: float,
) -> tuple[Concept, ...]:
    """A neuron's words as concepts, positive and negative ones apart, heaviest first.

    Parameters
    ----------
    words
        (text, coefficient), strongest first.
    texts
        Their embeddings, unit rows, mean text subtracted.
    threshold
        From `same_concept`.
    """
    similarity = texts @ texts.T
    found = []
    for sign in (1, -1):
        side = [i for i, (_, weight) in enumerate(words) if weight * sign > 0]
        for places in group(similarity[side][:, side].tolist(), threshold):
            members = [side[i] for i in places]
            found.append(
                Concept(
                    words=tuple(words[i][0] for i in members),
                    weights=tuple(words[i][1] for i in members),
                    texts=texts[members],
                )
            )
    return tuple(sorted(found, key=lambda concept: -abs(concept.weight)))


def effective_number(weights: Sequence[float]) -> float:
    """exp of the entropy of positive weights: 1 if one has it all, n if n share it equally."""
    if not weights:
        return 0.0
    shares = [weight / sum(weights) for weight in weights]
    return exp(-sum(share * log(share) for share in shares))
