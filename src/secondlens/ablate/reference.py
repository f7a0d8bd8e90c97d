"""Direct and indirect effects as ablation reads them, with means from reference pictures.

A lens knows means, directions and thresholds of second-order effects only. For other effects, the
same statistics are taken over the pictures of a reference, which is held in memory as coordinates.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..capture import norm_statistics
from ..clip.view import Clip, class_token, hooked
from ..effects.indirect import Stopped, effects_of, stop_after
from ..effects.paths import NEURONS_PER_CHUNK, chunks, output_map
from ..errors import SecondLensError
from ..lens import LayerLens
from ..lens.layer import both_passes, layer_lens
from ..statistics import top_count
from .readings import Effects, Read, Reading


class Direct(Effects):
    """Reads direct effects of one layer inside a `with`: those of a neuron lie on one line.

    Parameters
    ----------
    clip, layer
        Any MLP layer of a model.
    neurons
        The chosen ones.
    reference
        Batches of pixels that means, thresholds and signs of directions come from.
    """

    def __init__(
        self, clip: Clip, layer: int, neurons: Sequence[int], reference: Iterable[Tensor]
    ) -> None:
        self.clip, self.layer, self.neurons = clip, clip.check_layer(layer, last=True), neurons
        rows = clip.blocks[layer].neuron_rows.to(clip.compute_dtype)[neurons]
        rows = rows @ output_map(clip, clip.compute_dtype, centred=True)
        self.lengths, self.lines = rows.norm(dim=-1), F.normalize(rows, dim=-1)
        self._stack = ExitStack()
        self._seen: dict[str, Tensor] = {}
        with self:
            z = stacked([self._coordinates(pixels)[1] for pixels in reference])
        self.fitted = lens_of(z[:, :, None], self.lines[:, :, None])
        self.directions = {layer: self.fitted.directions}
        self.thresholds = {layer: self.fitted.threshold}

    def __enter__(self) -> "Effects":
        clip, block = self.clip, self.clip.blocks[self.layer]

        def see_activation(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            self._seen["activation"] = clip.batch_major(output)[:, 0]

        def see_output(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            self._seen["class token"] = class_token(inputs[0])

        self._stack.enter_context(clip.class_token_only())
        hooks = [(block.activation, see_activation), (clip.ln_post, see_output)]
        self._stack.enter_context(hooked(hooks))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        self._seen.clear()

    def read(self, pixels: Tensor) -> Read:
        """The readings of a batch."""
        embedding, z = self._coordinates(pixels)
        away = z - (self.fitted.mean * self.lines).sum(-1)
        reading = Reading(
            norms=away.abs(),
            along=away[:, :, None] * (self.vectors[self.layer] * self.lines[:, None]).sum(-1),
            sum=lambda mask: (away if mask is None else away * mask) @ self.lines,
        )
        return embedding, {self.layer: reading}

    def _coordinates(self, pixels: Tensor) -> tuple[Tensor, Float[Tensor, "images chosen"]]:
        """Unit embeddings, and each effect as its place on its neuron's line."""
        dtype = self.clip.compute_dtype
        representation = self.clip.encode_image(pixels).to(dtype)
        _, sigma = norm_statistics(self._seen["class token"].to(dtype), self.clip.post_eps)
        activation = self._seen["activation"].to(dtype)[:, self.neurons]
        scale = 1 / (sigma * representation.norm(dim=-1))
        return F.normalize(representation, dim=-1), activation * self.lengths * scale[:, None]


class Indirect(Effects):
    """Reads indirect effects of one layer: a run of the network from it on for each neuron.

    Parameters
    ----------
    clip, layer, neurons
        As for `Direct`.
    reference
        Batches of pixels that means, thresholds and directions come from.
    activation_mean
        What each neuron is held at.
    """

    def __init__(
        self,
        clip: Clip,
        layer: int,
        neurons: Sequence[int],
        reference: Iterable[Tensor],
        activation_mean: Float[Tensor, "tokens neurons"],
    ) -> None:
        self.clip, self.layer, self.neurons = clip, clip.check_layer(layer, last=True), neurons
        self.activation_mean = activation_mean
        z = stacked([self._effects(stop_after(clip, pixels, layer)) for pixels in reference])
        identity = torch.eye(clip.dim, dtype=z.dtype, device=z.device)
        self.fitted = lens_of(z, identity.expand(len(neurons), -1, -1))
        self.directions = {layer: self.fitted.directions}
        self.thresholds = {layer: self.fitted.threshold}

    def read(self, pixels: Tensor) -> Read:
        """The readings of a batch."""
        stopped = stop_after(self.clip, pixels, self.layer)
        away = self._effects(stopped) - self.fitted.mean
        reading = Reading(
            norms=away.norm(dim=-1),
            along=torch.einsum("bnd,nvd->bnv", away, self.vectors[self.layer]),
            sum=lambda mask: (away if mask is None else away * mask[:, :, None]).sum(1),
        )
        return unit_embedding(stopped), {self.layer: reading}

    def _effects(self, stopped: Stopped) -> Float[Tensor, "images chosen dim"]:
        found = effects_of(stopped, self.neurons, self.activation_mean)
        return torch.cat([effects for _, effects in found], dim=1)


class Together(Effects):
    """Reads what happens when all neurons of a layer are held at their means at once.

    The layer counts as one neuron, whose effect is (r - r without it) / norm of r.
    """

    def __init__(
        self, clip: Clip, layer: int, activation_mean: Float[Tensor, "tokens neurons"]
    ) -> None:
        self.clip, self.layer = clip, clip.check_layer(layer, last=True)
        self.activation_mean = activation_mean
        like = activation_mean.new_zeros(1, clip.dim, dtype=clip.compute_dtype)
        self.directions, self.thresholds = {layer: like}, {layer: like[:, 0]}

    def read(self, pixels: Tensor) -> Read:
        """The readings of a batch."""
        stopped = stop_after(self.clip, pixels, self.layer)
        original = stopped.representation.to(self.clip.compute_dtype)
        without = stopped.without_all(self.activation_mean).to(original)
        effect = (original - without) / original.norm(dim=-1, keepdim=True)
        reading = Reading(
            norms=effect.norm(dim=-1, keepdim=True),
            along=torch.einsum("bd,nvd->bnv", effect, self.vectors[self.layer]),
            sum=lambda mask: effect if mask is None else effect * mask,
        )
        return unit_embedding(stopped), {self.layer: reading}


def stacked(batches: list[Tensor]) -> Float[Tensor, "images chosen *rank"]:
    """What the batches of a reference hold, in one.

    Raises
    ------
    SecondLensError
        There are none.
    """
    if not batches:
        raise SecondLensError("none of the reference pictures could be read")
    return torch.cat(batches)


def unit_embedding(stopped: Stopped) -> Float[Tensor, "images dim"]:
    """With nothing ablated."""
    return F.normalize(stopped.representation.to(stopped.clip.compute_dtype), dim=-1)


def lens_of(
    z: Float[Tensor, "images chosen rank"], basis: Float[Tensor, "chosen dim rank"]
) -> LayerLens:
    """What coordinates in memory tell of a layer, a few neurons at a time; top images as `fit`.

    `activation_mean` is empty: effects of this kind do not say it.
    """
    top, parts = top_count(None, len(z)), []
    for some in chunks(z.shape[1], NEURONS_PER_CHUNK):
        none = z.new_zeros(0, z[:, some].shape[1])
        parts.append(layer_lens(*both_passes(z[:, some], top), basis[some], none))
    return LayerLens(
        **{
            field.name: torch.cat(
                [getattr(part, field.name) for part in parts],
                dim=1 if field.name == "activation_mean" else 0,
            )
            for field in fields(LayerLens)
        }
    )
