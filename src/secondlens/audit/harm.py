"""How much each neuron favours the strongest rival of the true class."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor

from ..capture import Capture, Pooled
from ..classify import Labelled
from ..clip.view import Clip
from ..effects.indirect import indirect
from ..effects.paths import path_factors
from ..errors import SecondLensError
from ..images import Reader
from ..lens import Lens
from .cut import Neuron


@torch.no_grad()
def harm_of(
    clip: Clip,
    lens: Lens,
    classifier: Float[Tensor, "classes dim"],
    kinds: Sequence[Labelled],
    batch_size: int,
    progress: bool,
) -> dict[Neuron, float]:
    """How much each neuron favours the strongest rival over the true class, on the half that
    decides: its mean over usual pictures plus that over unusual ones."""
    factors = {layer: path_factors(clip, layer) for layer in lens.layers}
    total = {layer: classifier.new_zeros(clip.neurons) for layer in lens.layers}
    for pictures in kinds:
        half = range(0, len(pictures), 2)
        reader = Reader(source=pictures.source, clip=clip, batch_size=batch_size, positions=half)
        with Capture(clip, lens.layers) as capture:
            for batch in track(reader, "harm", len(reader)) if progress else reader:
                representation = clip.encode_image(batch.pixels)
                pooled = capture.pool(representation)
                labels = torch.tensor([pictures.labels[p] for p in batch.positions])
                scores = F.normalize(representation.to(classifier), dim=-1) @ classifier.T
                towards = _rivals(scores, labels.to(scores.device), classifier)
                for layer, own in factors.items():
                    found = _products(pooled, layer, own.inner, own.outer, towards)
                    found -= towards @ lens[layer].mean.to(towards).T
                    total[layer] += found.sum(0) / len(half)
    return {
        (layer, n): value
        for layer, values in total.items()
        for n, value in enumerate(values.tolist())
    }


@torch.no_grad()
def indirect_order(
    clip: Clip, lens: Lens, kinds: Sequence[Labelled], images: int, *, progress: bool = False
) -> list[Neuron]:
    """All neurons in the order of their harm by indirect effects, as an alternative to compare
    with: over so many pictures of each kind, of the half that decides.

    The network runs once for each neuron and picture.

    Raises
    ------
    SecondLensError
        None of these pictures can be read.
    """
    harm: dict[Neuron, float] = {}
    for pictures in kinds:
        classifier = pictures.classes.embed(clip)
        half = range(0, len(pictures), 2)[:images]
        reader = Reader(source=pictures.source, clip=clip, batch_size=images, positions=half)
        if (batch := next(iter(reader), None)) is None:
            raise SecondLensError(
                f"none of the first {len(half)} pictures that decide of {pictures.name} can be "
                "read: take more"
            )
        scores = F.normalize(clip.encode_image(batch.pixels).to(classifier), dim=-1) @ classifier.T
        labels = torch.tensor([pictures.labels[p] for p in batch.positions], device=scores.device)
        towards = _rivals(scores, labels, classifier)
        for layer in lens.layers:
            mean, every = lens[layer].activation_mean, range(clip.neurons)
            effects = indirect(clip, batch.pixels, layer, every, mean, progress=progress)
            for n, value in enumerate(torch.einsum("bnd,bd->n", effects, towards).tolist()):
                harm[layer, n] = harm.get((layer, n), 0.0) + value / len(labels)
    return sorted(harm, key=lambda each: -harm[each])


def _rivals(
    scores: Float[Tensor, "images classes"],
    labels: Int[Tensor, " images"],
    classifier: Float[Tensor, "classes dim"],
) -> Float[Tensor, "images dim"]:
    """The strongest wrong class minus the true one."""
    wrong = scores.scatter(1, labels[:, None], -torch.inf).argmax(1)
    return classifier[wrong] - classifier[labels]


def _products(
    pooled: Pooled, layer: int, inner: Tensor, outer: Tensor, vectors: Float[Tensor, "images dim"]
) -> Float[Tensor, "images neurons"]:
    """<effect, vector> of every neuron, with a vector for each image."""
    reached = torch.einsum("ked,bd->kbe", outer, vectors)
    weights = torch.bmm(reached, inner.mT).transpose(0, 1)
    return (pooled.coefficients[layer] * weights).sum(1) * pooled.scale[:, None]
