"""Embeddings without what some neurons send through later attention, at the cost of encoding.

Second-order effects are parts of the unit embedding, so cutting a neuron is a subtraction (section
3 of arXiv 2406.04341):

    embedding - strength * sum over chosen neurons of (effect - mean effect)

The sum over neurons is taken before anything is carried to the output, head by head, so that no
effect of a single neuron is ever computed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...data.reader import Reader
from ...devices import undisturbed
from ...effects.ablated_runs import check_neurons
from ...effects.capture import Capture, Pooled
from ...effects.streaming import stream
from ...effects.total_effects import TotalReader, Totals
from ...effects.value_paths import chunks, path_factors
from ...lens.lens import Lens
from ...models.view import Clip
from ...storage.validation import Position

NEURONS_PER_CHUNK = 64

LayerNeuron = tuple[Position, Position]
"""Its layer, and its place in the layer."""


class AblatedClip:
    """A model whose chosen neurons are mean-ablated, for their second-order effects only.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it, in the convention "exact".
    neurons
        By layer.
    strength
        1 replaces effects by their mean, 0 does nothing; between, effects shrink.

    Raises
    ------
    SecondLensError
        Another model's lens or an "official" one, or neurons that do not exist.
    """

    @undisturbed
    def __init__(
        self, clip: Clip, lens: Lens, neurons: Mapping[int, Sequence[int]], strength: float = 1.0
    ) -> None:
        lens.check_model(clip)
        lens.check_exact()
        lens.check_value("AblatedClip")
        self.clip, self.strength = clip, strength
        self._parts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._mean = torch.zeros(clip.dim, dtype=clip.compute_dtype, device=clip.device)
        for layer, chosen in neurons.items():
            check_neurons(clip, layer, chosen)
            if not chosen:
                continue
            index = torch.tensor(sorted(set(chosen)), device=clip.device)
            factors = path_factors(clip, layer)
            self._parts[layer] = index, factors.inner[:, index], factors.outer.flatten(0, 1)
            self._mean += lens[layer].mean.to(self._mean)[index].sum(0)

    @property
    def layers(self) -> list[int]:
        """Where neurons are cut."""
        return sorted(self._parts)

    def removed(self, pooled: Pooled) -> Float[Tensor, "images dim"]:
        """The sum over the neurons of effect minus mean effect, for a batch."""
        total = torch.zeros_like(pooled.scale)[:, None]
        for layer, (index, inner, outer) in self._parts.items():
            coefficients = pooled.coefficients[layer][:, :, index].transpose(0, 1)
            heads = torch.bmm(coefficients, inner).transpose(0, 1).flatten(1)
            total = total + heads @ outer
        return total * pooled.scale[:, None] - self._mean

    @undisturbed
    @torch.no_grad()
    def encode_image(self, images: Any) -> Float[Tensor, "images dim"]:
        """Embeddings: unit rows from which the chosen effects are taken, not normalised again."""
        with self.clip.class_token_only():
            if not self._parts:
                return F.normalize(
                    self.clip.encode_image(images).to(self.clip.compute_dtype), dim=-1
                )
            with Capture(self.clip, self.layers) as capture:
                representation = self.clip.encode_image(images)
                pooled = capture.pool(representation)
        embedding = F.normalize(representation.to(self.clip.compute_dtype), dim=-1)
        return embedding - self.strength * self.removed(pooled)


def by_layer(neurons: Iterable[LayerNeuron]) -> dict[int, list[int]]:
    """Neurons as `AblatedClip` takes them."""
    found: dict[int, list[int]] = {}
    for layer, n in neurons:
        found.setdefault(layer, []).append(n)
    return found


def group_effects(
    clip: Clip,
    lens: Lens,
    groups: Sequence[Sequence[LayerNeuron]],
    reader: Reader,
    progress: bool,
) -> Iterator[tuple[list[int], Tensor, Float[Tensor, "images groups dim"]]]:
    """Summed effects of groups of neurons minus their means, second-order or total as the lens has
    them: positions of a batch's images, unit embeddings, effects."""
    if lens.axes is None:
        second_order = GroupEffects(clip, lens, groups)
        for batch in stream(clip, reader, lens.layers, what="audit", progress=progress):
            yield batch.positions, batch.embedding, second_order(batch.pooled)
        return
    total = TotalGroups(clip, lens, groups)
    read = TotalReader(clip, lens.axes.rows, total.layers)
    for totals in read.stream(reader, "audit", progress):
        yield totals.positions, totals.embedding, total(totals)


class TotalGroups:
    """Summed total effects of groups of neurons, minus their means."""

    def __init__(self, clip: Clip, lens: Lens, groups: Sequence[Sequence[LayerNeuron]]) -> None:
        assert lens.axes is not None
        self.axes = lens.axes.rows.to(clip.device)
        self.layers = sorted({layer for group in groups for layer, _ in group})
        self._within = {n: self.axes.new_zeros(len(groups), clip.neurons) for n in self.layers}
        for row, group in enumerate(groups):
            for layer, neuron in group:
                self._within[layer][row, neuron] = 1
        self.mean: Float[Tensor, "groups dim"] = torch.stack(
            [within @ lens[layer].mean.to(within) for layer, within in self._within.items()]
        ).sum(0)

    def __call__(self, totals: Totals) -> Float[Tensor, "images groups dim"]:
        """For a batch of images."""
        sums = [
            torch.einsum("gn,nba->bga", within, totals.effects[layer])
            for layer, within in self._within.items()
        ]
        return torch.stack(sums).sum(0) @ self.axes - self.mean


class GroupEffects:
    """Summed second-order effects of groups of neurons, minus their means.

    A neuron may be in many groups: its effect is computed once, a few neurons at a time.
    """

    def __init__(self, clip: Clip, lens: Lens, groups: Sequence[Sequence[LayerNeuron]]) -> None:
        self._parts: list[tuple[int, list[int], Tensor, Tensor, Tensor]] = []
        self.mean = torch.zeros(len(groups), clip.dim, dtype=clip.compute_dtype, device=clip.device)
        for layer in sorted({layer for group in groups for layer, _ in group}):
            members = [[n for own, n in group if own == layer] for group in groups]
            chosen = sorted({n for group in members for n in group})
            place = {n: i for i, n in enumerate(chosen)}
            within = self.mean.new_zeros(len(groups), len(chosen))
            for row, group in zip(within, members, strict=True):
                row[[place[n] for n in group]] = 1
            self.mean += within @ lens[layer].mean[chosen].to(within)
            factors = path_factors(clip, layer)
            self._parts += [
                (
                    layer,
                    chosen[some],
                    factors.inner[:, chosen[some]],
                    factors.outer,
                    within[:, some],
                )
                for some in chunks(len(chosen), NEURONS_PER_CHUNK)
            ]

    def __call__(self, pooled: Pooled) -> Float[Tensor, "images groups dim"]:
        """For a batch of images."""
        images = len(pooled.scale)
        total = self.mean.new_zeros(len(self.mean), images * self.mean.shape[1])
        for layer, chosen, inner, outer, within in self._parts:
            coefficients = pooled.coefficients[layer][:, :, chosen] * pooled.scale[:, None, None]
            # U of a few neurons at a time: that of all of them is rarely affordable
            rows = torch.bmm(inner, outer).transpose(0, 1)
            total += within @ torch.bmm(coefficients.permute(2, 0, 1), rows).flatten(1)
        effects: Tensor = total.unflatten(1, (images, -1)).transpose(0, 1)
        return effects - self.mean
