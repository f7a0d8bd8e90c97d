"""Polysemy with proof: the images that show each of a neuron's concepts.

Whether a concept is real is asked of the images: a top image belongs to the concept that it shows
far more of than random images do, and to none if it shows no concept more than random images show
some concept.

Effects of one neuron are nearly rank one, so the effect of an image does not say which concept
caused it. The embedding does; the neuron's own effect is taken out of it first, because it writes
its own words there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import comb

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..clip.view import Clip
from ..effects.paths import OFFICIAL_SCALE
from ..effects.projections import Projected, Projector, project
from ..errors import SecondLensError
from ..images import ImageSource
from ..images.subset import with_ids
from ..lens import Lens
from .concepts import Concept, effective_number

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


def prove(
    clip: Clip,
    lens: Lens,
    source: ImageSource,
    concepts: dict[tuple[int, int], tuple[Concept, ...]],
    *,
    batch_size: int = 32,
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
    if seen.skipped:
        unreadable, reason = next(iter(seen.skipped.items()))
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
