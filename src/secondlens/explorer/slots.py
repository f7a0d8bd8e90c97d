"""The images that each neuron shows, and what is seen of it on them."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..clip.view import Clip
from ..describe.proof import Proof
from ..lens import Lens
from . import prepared
from .prepared import GROUPS, LIGHT
from .projections import Projections


def choose(
    lens: Lens,
    layer: int,
    effects: Float[Tensor, "surveyed neurons"],
    peaks: Float[Tensor, "surveyed neurons"],
    sample: Int[Tensor, " surveyed"],
    proofs: Mapping[tuple[int, int], Proof],
) -> Int[Tensor, "neurons slots"]:
    """The images that each neuron of a layer shows."""
    surveyed, neurons = effects.shape
    chosen = torch.full((neurons, prepared.SLOTS), -1, dtype=torch.int64)

    def put(group: slice, images: Tensor) -> None:
        chosen[:, group.start : group.start + images.shape[1]] = images

    put(GROUPS["strongest"], lens[layer].top_images[:, : prepared.STRONGEST])
    firing = peaks.T.topk(min(prepared.FIRING, surveyed), dim=1)
    put(GROUPS["firing"], sample[firing.indices])
    generator = torch.Generator().manual_seed(layer)
    noise = torch.rand(neurons, surveyed, generator=generator)
    band = _band(effects.T)
    for which in range(prepared.BANDS):
        order = noise.masked_fill(band != which, -1).topk(min(prepared.IN_BAND, surveyed), dim=1)
        start = GROUPS["bands"].start + which * prepared.IN_BAND
        inside = sample[order.indices].masked_fill(order.values < 0, -1)
        put(slice(start, start + prepared.IN_BAND), inside)
    order = (1 - noise).topk(min(prepared.RANDOM, surveyed), dim=1)
    put(GROUPS["random"], sample[order.indices])
    for (_, neuron), proof in proofs.items():
        start = GROUPS["proofs"].start
        for number, concept in enumerate(proof.proven[: prepared.PROVEN]):
            images = proof.showing(concept)[: prepared.PROOFS]
            first = start + number * prepared.PROOFS
            chosen[neuron, first : first + len(images)] = torch.tensor(images)
    return chosen


def _band(effects: Float[Tensor, "neurons surveyed"]) -> Int[Tensor, "neurons surveyed"]:
    """The fifth of the neuron's range that each effect lies in, from below."""
    low, high = effects.aminmax(dim=1, keepdim=True)
    place = (effects - low) / (high - low).clamp(min=1e-30) * prepared.BANDS
    return place.long().clamp(0, prepared.BANDS - 1)


def bands(effects: Float[Tensor, "surveyed neurons"]) -> dict[str, np.ndarray]:
    """Fields of `LayerSurvey`: range and histogram of the effects, and shares of the bands."""
    low, high = effects.aminmax(dim=0)
    place = ((effects - low) / (high - low).clamp(min=1e-30) * prepared.BINS).long()
    place = place.clamp(0, prepared.BINS - 1).T
    counts = torch.zeros(len(place), prepared.BINS, dtype=torch.int64)
    counts.scatter_add_(1, place, torch.ones_like(place))
    in_band = counts.unflatten(1, (prepared.BANDS, -1)).sum(-1)
    return {
        "extent": torch.stack([low, high], dim=1).float().numpy(),
        "shares": (in_band / effects.shape[0]).float().numpy(),
        "counts": counts.int().numpy(),
    }


class Slots:
    """What the last pass fills in for the neurons of a layer."""

    def __init__(
        self, clip: Clip, images: Int[Tensor, "neurons slots"], projections: Projections
    ) -> None:
        self.images, self.projections = images, projections
        self.order = images.flatten().argsort(stable=True)
        self.sorted = images.flatten()[self.order]
        neurons, slots = images.shape
        self.effect = torch.zeros(neurons * slots)
        self.peak = torch.zeros(neurons * slots)
        self.path = torch.zeros(neurons * slots, dtype=torch.int16)
        self.heat = torch.zeros(neurons * slots, clip.tokens - 1, dtype=torch.uint8)
        self.paths = torch.zeros(neurons, projections.own)

    def see(
        self,
        position: int,
        activation: Float[Tensor, "patches neurons"],
        parts: Float[Tensor, "extended neurons"],
        scale: Float[Tensor, " neurons"],
    ) -> None:
        """One image, for all neurons that show it."""
        place = torch.tensor([position, position + 1])
        start, end = torch.searchsorted(self.sorted, place).tolist()
        slots = self.order[start:end]
        if not len(slots):
            return
        neurons = slots // self.images.shape[1]
        centred = (parts - self.projections.mean_parts.cpu())[:, neurons]
        effect = parts[:, neurons].sum(0) - self.projections.mean[neurons].cpu()
        sign = torch.where(effect < 0, -1.0, 1.0).to(effect)
        own = centred[: self.projections.own] * sign
        self.effect[slots] = effect.float()
        self.path[slots] = own.argmax(0).short()
        self.peak[slots] = activation[:, neurons].amax(0)
        light = activation[:, neurons] / scale[neurons].clamp(min=1e-30)
        self.heat[slots] = (light.clamp(0, 1) * LIGHT).round().byte().T
        strongest = slots % self.images.shape[1] < prepared.STRONGEST
        self.paths.index_add_(0, neurons[strongest], own[:, strongest].T.float())

    def arrays(self) -> dict[str, np.ndarray]:
        """Fields of `LayerSurvey`."""
        shape = self.images.shape
        total = self.paths.sum(1, keepdim=True)
        return {
            "images": self.images.int().numpy(),
            "effect": self.effect.view(shape).numpy(),
            "peak": self.peak.view(shape).numpy(),
            "path": self.path.view(shape).numpy(),
            "heat": self.heat.view(*shape, -1).numpy(),
            "paths": (self.paths / total.masked_fill(total.abs() < 1e-30, 1)).numpy(),
        }
