"""A neuron's words as concepts, groups of texts that are alike, and the images that prove each.

Whether a concept is real is asked of the images: a top image belongs to the concept that it shows
far more of than random images do, and to none if it shows no concept more than random images show
some concept.

Effects of one neuron are nearly rank one, so the effect of an image does not say which concept
caused it. The embedding does; the neuron's own effect is taken out of it first, because it writes
its own words there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from math import comb, exp, log

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..data.sources import ImageSource, with_ids
from ..devices import CPU, undisturbed
from ..effects.projections import Projected, Projector, project
from ..effects.value_paths import OFFICIAL_SCALE
from ..errors import SecondLensError
from ..lens.lens import Lens
from ..models.view import Clip

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
    """Their embeddings: unit rows, mean text subtracted; on the CPU."""

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


RARE = 0.95
"""Quantile of what random images show, above which an image shows a concept."""
RANDOM_IMAGES = 500
"""That say what chance gives."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Which concept each top image of a neuron shows."""

    images: tuple[int, ...]
    """Positions in `Lens.image_ids`, strongest effect first."""
    concepts: tuple[int, ...]
    """Of each image, as a position in the neuron's concepts; -1 if none exceeds chance."""

    def showing(self, concept: int) -> list[int]:
        """The images of a concept (or of none, -1), strongest effect first."""
        return [i for i, c in zip(self.images, self.concepts, strict=True) if c == concept]

    @property
    def proven(self) -> list[int]:
        """The concepts with more images than chance gives, the one with most images first.

        Of random images 5 % would be given to some concept: the binomial tail of so many images
        has to be below 5 %.
        """
        counts = {c: self.concepts.count(c) for c in set(self.concepts) - {-1}}
        rare = 1 - RARE
        found = [c for c, n in counts.items() if binomial_tail(n, len(self.images), rare) < rare]
        return sorted(found, key=lambda c: (-counts[c], c))

    @property
    def polysemy(self) -> float:
        """Effective number of proven concepts, weighted by their images; 0 without any."""
        return effective_number([float(self.concepts.count(c)) for c in self.proven])


@cache
def binomial_tail(successes: int, trials: int, share: float) -> float:
    """The chance of at least so many successes."""
    return sum(
        comb(trials, n) * share**n * (1 - share) ** (trials - n)
        for n in range(successes, trials + 1)
    )


@undisturbed
def prove(
    clip: Clip,
    lens: Lens,
    source: ImageSource,
    concepts: dict[tuple[int, int], tuple[Concept, ...]],
    *,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[tuple[int, int], Proof]:
    """Assign the top images of neurons to their concepts, in one pass over the images needed.

    How much an image shows a concept is the product of the concept's direction and the image's
    embedding without the neuron's own effect, in standard deviations over random images of the
    fit. An image with a positive projection on the neuron's direction is held against positive
    concepts, one with a negative projection against negative ones. It goes to the concept that
    it shows most, unless 5 % of random images show some concept of that side as much. Without at
    least two random images besides its top images, nothing is proven of a neuron.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it.
    source
        The images of the fit.
    concepts
        Of each neuron to look at, by (layer, neuron).
    seed
        Of the random images.

    Raises
    ------
    SecondLensError
        Another model's lens, or a picture that the source lacks or cannot read.
    """
    lens.check_model(clip)
    lens = lens.to(CPU)
    generator = torch.Generator().manual_seed(seed)
    random = torch.randperm(len(lens.image_ids), generator=generator)[:RANDOM_IMAGES]
    top = {key: lens[key[0]].top_images[key[1]] for key in concepts}
    wanted = sorted(set(torch.cat([random, *top.values()]).tolist()))
    neurons = {layer: [n for own, n in concepts if own == layer] for layer, _ in concepts}
    projectors = {
        layer: Projector(clip, layer, _vectors(lens, concepts, layer, own), lens.convention, own)
        for layer, own in neurons.items()
    }
    subset = with_ids(source, [lens.image_ids[position] for position in wanted])
    seen = project(clip, subset, projectors, batch_size=batch_size, progress=progress)
    # what lies beside the pictures of the fit is skipped too, and no fault
    for unreadable in (each for each in subset.ids if each in seen.skipped):
        reason = seen.skipped[unreadable]
        raise SecondLensError(f"the picture {unreadable!r} cannot be read: {reason}")
    place = {position: row for row, position in enumerate(wanted)}
    rows = {key: torch.tensor([place[p] for p in each.tolist()]) for key, each in top.items()}
    chance = torch.tensor([place[position] for position in random.tolist()])
    return {
        (layer, n): Proof(
            images=tuple(top[layer, n].tolist()),
            concepts=_assign(
                lens, concepts[layer, n], seen, layer, n, column, rows[layer, n], chance
            ),
        )
        for layer, own in neurons.items()
        for column, n in enumerate(own)
    }


def _vectors(
    lens: Lens,
    concepts: dict[tuple[int, int], tuple[Concept, ...]],
    layer: int,
    neurons: Sequence[int],
) -> Float[Tensor, "chosen vectors dim"]:
    """The direction of each neuron, then those of its concepts, then zeros."""
    directions = lens[layer].directions
    most = max(len(concepts[layer, n]) for n in neurons)
    vectors = directions.new_zeros(len(neurons), 1 + most, directions.shape[1])
    for row, n in zip(vectors, neurons, strict=True):
        row[0] = directions[n]
        for i, concept in enumerate(concepts[layer, n]):
            row[1 + i] = concept.direction
    return vectors


def _assign(
    lens: Lens,
    concepts: tuple[Concept, ...],
    seen: Projected,
    layer: int,
    neuron: int,
    column: int,
    top: Int[Tensor, " top"],
    random: Int[Tensor, " random"],
) -> tuple[int, ...]:
    """The concept of each top image, or -1."""
    fitted = lens[layer]
    products = seen.products[layer][:, column]
    projection = products[top, 0] - fitted.mean[neuron] @ fitted.directions[neuron]
    found = torch.full((len(top),), -1)
    for sign in (1, -1):
        side = [i for i, concept in enumerate(concepts) if concept.weight * sign > 0]
        mine = projection * sign > 0
        if not side or not mine.any():
            continue
        directions = torch.stack([concepts[i].direction for i in side]).to(seen.embeddings)
        unit = OFFICIAL_SCALE if lens.convention == "official" else 1.0
        shown = seen.embeddings @ directions.T - products[:, [1 + i for i in side]] / unit
        others = shown[random[~torch.isin(random, top)]]
        if len(others) < 2:
            continue
        standard = (shown - others.mean(0)) / others.std(0)
        by_chance = ((others - others.mean(0)) / others.std(0)).amax(1).quantile(RARE)
        best = standard[top].max(1)
        proven = mine & (best.values > by_chance)
        found[proven] = torch.tensor(side)[best.indices[proven]]
    return tuple(found.tolist())
