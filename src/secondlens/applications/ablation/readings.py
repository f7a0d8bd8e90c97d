"""What ablation reads of a batch of images: effects of a layer's neurons, minus their means.

That is how large every effect is, how far it goes along some vectors, and the sum of those that
are chosen in each image. For second-order effects none of it needs the effects themselves: norms
and products are those of coordinates, and a sum over neurons goes through each head once.

A lens knows means, directions and thresholds of second-order effects only. For direct and indirect
effects, the same statistics are taken over the pictures of a reference, which is held in memory as
coordinates.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...effects.ablated_runs import Stopped, effects_of, stop_after
from ...effects.capture import Capture, Post, read_post
from ...effects.total_effects import TotalReader
from ...effects.value_paths import (
    NEURONS_PER_CHUNK,
    OFFICIAL_SCALE,
    PathFactors,
    chunks,
    extended_coefficients,
    image_scale,
    isometry,
    output_map,
    path_factors,
)
from ...errors import SecondLensError, UnsupportedModel
from ...lens.layer import Axes, LayerLens, both_stages, layer_lens
from ...lens.moments import top_count
from ...models.view import Clip, hooked

PATHS_PER_SUM = 16
"""Paths whose masked coefficients are held at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """Effects of a layer's chosen neurons on a batch, minus their means, in parts of the unit
    embedding."""

    norms: Float[Tensor, "images chosen"]
    along: Float[Tensor, "images chosen vectors"]
    """Products with each neuron's vectors."""
    sum: Callable[[Tensor | None], Tensor]
    """The effects added up over the neurons that a mask [images, chosen] chooses, or over all:
    [images, dim]."""


Read = tuple[Float[Tensor, "images dim"], dict[int, Reading]]
"""Unit embeddings of a batch, and the readings of each layer."""


Vectors = Mapping[int, Float[Tensor, "chosen vectors dim"]]
"""By layer, what the effects of each neuron are projected on."""


class Effects(ABC):
    """A kind of effects of chosen neurons, read batch by batch inside a `with`."""

    directions: dict[int, Float[Tensor, "chosen dim"]]
    """By layer, unit rows."""
    thresholds: dict[int, Float[Tensor, " chosen"]]
    """By layer: a norm above it is significant."""
    vectors: Vectors

    def __enter__(self) -> "Effects":
        return self

    def __exit__(self, *exception: object) -> None:  # noqa: B027
        """Take hooks away, if there are any."""

    def aim(self, vectors: Vectors) -> None:
        """Say what effects are projected on, before anything is read."""
        self.vectors = vectors

    @abstractmethod
    def read(self, pixels: Tensor) -> Read:
        """The readings of a batch."""


class SecondOrder(Effects):
    """Second-order effects of several layers, from one forward pass.

    Parameters
    ----------
    clip
        The model.
    layers
        What a lens knows of the layers to read.
    convention
        Of that lens.
    neurons
        The chosen ones.
    """

    def __init__(
        self,
        clip: Clip,
        layers: Mapping[int, LayerLens],
        convention: str,
        neurons: Sequence[int],
    ) -> None:
        self.clip, self.convention, self.neurons = clip, convention, neurons
        self.unit = OFFICIAL_SCALE if convention == "official" else 1.0
        self.means = {n: each.mean[neurons] / self.unit for n, each in layers.items()}
        self.directions = {n: each.directions[neurons] for n, each in layers.items()}
        self.thresholds = {n: each.threshold[neurons] / self.unit for n, each in layers.items()}
        self.capture = Capture(clip, layers)
        self._paths: dict[int, _Paths] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Effects":
        self._stack.enter_context(self.clip.class_token_only())
        self._stack.enter_context(self.capture)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def aim(self, vectors: Vectors) -> None:
        """Say what effects are projected on, before anything is read."""
        for layer, mean in self.means.items():
            factors = path_factors(self.clip, layer, self.convention)
            self._paths[layer] = _Paths(factors, self.neurons, mean, vectors[layer])

    def read(self, pixels: Tensor) -> Read:
        """The readings of a batch."""
        representation = self.clip.encode_image(pixels)
        pooled = self.capture.pool(representation)
        scale = image_scale(pooled, self.convention) / self.unit
        readings = {}
        for layer, paths in self._paths.items():
            coefficients = extended_coefficients(pooled, layer, self.convention)
            if len(self.neurons) < self.clip.neurons:
                coefficients = coefficients[:, :, self.neurons]
            readings[layer] = paths.reading(coefficients, scale)
        return F.normalize(representation.to(self.clip.compute_dtype), dim=-1), readings


class _Paths:
    """The data-independent half of one layer's second-order effects."""

    def __init__(
        self,
        factors: PathFactors,
        neurons: Sequence[int],
        mean: Float[Tensor, "chosen dim"],
        vectors: Float[Tensor, "chosen vectors dim"],
    ) -> None:
        whole = len(neurons) == factors.neurons
        self.inner = factors.inner if whole else factors.inner[:, neurons]
        self.outer, self.shared, self.mean = factors.outer, factors.shared, mean
        # bases are needed once, a few neurons at a time: all of them can take gigabytes
        transforms, means, within = [], [], []
        for some in chunks(len(neurons), NEURONS_PER_CHUNK):
            found = isometry(factors.rows(neurons[some]))
            transforms.append(found.transform)
            means.append(torch.bmm(mean[some, None], found.basis)[:, 0])
            within.append(torch.bmm(vectors[some].to(found.basis), found.basis))
        self.transform, self.mean_z = torch.cat(transforms), torch.cat(means)
        self.vectors = torch.cat(within)

    def reading(
        self,
        coefficients: Float[Tensor, "images extended chosen"],
        scale: Float[Tensor, " images"],
    ) -> Reading:
        images, _, count = coefficients.shape
        norms = coefficients.new_empty(images, count)
        along = coefficients.new_empty(images, count, self.vectors.shape[1])
        # a few neurons at a time, whose coordinates stay in the cache
        for some in chunks(count, NEURONS_PER_CHUNK):
            # one copy, where bmm would make one for each neuron
            by_neuron = coefficients[:, :, some].permute(2, 0, 1).contiguous()
            z = torch.bmm(by_neuron, self.transform[some].mT)
            z = z.mul_(scale[:, None]).sub_(self.mean_z[some][:, None])
            norms[:, some] = torch.linalg.vector_norm(z, dim=-1).T
            for v, vector in enumerate(self.vectors[some].unbind(1)):
                # rows, not bmm: a bmm with a single column is many times slower
                along[:, some, v] = (z * vector[:, None]).sum(-1).T

        def add_up(mask: Bool[Tensor, "images chosen"] | None) -> Float[Tensor, "images dim"]:
            means = self.mean.sum(0) if mask is None else mask.to(self.mean) @ self.mean
            return self._added_up(coefficients, mask) * scale[:, None] - means

        return Reading(norms=norms, along=along, sum=add_up)

    def _added_up(
        self,
        coefficients: Float[Tensor, "images extended chosen"],
        mask: Bool[Tensor, "images chosen"] | None,
    ) -> Float[Tensor, "images dim"]:
        """Sum of the masked neurons' effects without the image's scale, one block at a time."""
        paths = len(self.inner)
        total = coefficients.new_zeros(len(coefficients), self.outer.shape[-1])
        for heads in chunks(paths, PATHS_PER_SUM):
            own = coefficients[:, :paths][:, heads]
            own = own if mask is None else own * mask[:, None]
            total += torch.bmm(
                torch.bmm(own.transpose(0, 1), self.inner[heads]), self.outer[heads]
            ).sum(0)
        if len(self.shared):
            count = coefficients.shape[-1] if mask is None else mask.sum(1, keepdim=True)
            total += (coefficients[:, paths:, 0] * count) @ self.shared
        return total


class Total(Effects):
    """Total effects of several layers over all paths, along the axes of a lens.

    Parameters
    ----------
    clip
        The model.
    layers
        What a lens knows of the layers to read, over all paths.
    axes
        Of that lens.
    neurons
        The chosen ones.
    """

    def __init__(
        self, clip: Clip, layers: Mapping[int, LayerLens], axes: Axes, neurons: Sequence[int]
    ) -> None:
        self.neurons = neurons
        self.reader = TotalReader(clip, axes.rows, list(layers))
        self.axes = self.reader.axes
        self.means = {n: each.mean[neurons].to(self.axes) for n, each in layers.items()}
        self.directions = {n: each.directions[neurons] for n, each in layers.items()}
        self.thresholds = {n: each.threshold[neurons] for n, each in layers.items()}

    def read(self, pixels: Tensor) -> Read:
        """The readings of a batch."""
        totals = self.reader.read(pixels)
        readings = {}
        for layer, mean in self.means.items():
            away = totals.effects[layer][self.neurons] - (mean @ self.axes.T)[:, None]
            within = self.vectors[layer].to(away) @ self.axes.T
            readings[layer] = Reading(
                norms=away.norm(dim=-1).T,
                along=torch.bmm(away, within.mT).transpose(0, 1),
                sum=partial(self._added_up, away),
            )
        return totals.embedding, readings

    def _added_up(
        self,
        away: Float[Tensor, "chosen images axes"],
        mask: Bool[Tensor, "images chosen"] | None,
    ) -> Float[Tensor, "images dim"]:
        chosen = away.sum(0) if mask is None else torch.einsum("nba,bn->ba", away, mask.to(away))
        return chosen @ self.axes


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

    Raises
    ------
    SecondLensError
        No such layer, a model without direct effects, or one whose direct effects bend.
    """

    def __init__(
        self, clip: Clip, layer: int, neurons: Sequence[int], reference: Iterable[Tensor]
    ) -> None:
        if clip.head is not None:
            raise UnsupportedModel(
                f"direct effects of {clip.name} cannot be ablated: its head is an MLP, so that "
                "those of a neuron do not lie on one line"
            )
        self.clip, self.layer, self.neurons = clip, clip.check_layer(layer, last=True), neurons
        clip.check_direct("direct effects")
        rows = clip.blocks[layer].neuron_rows.to(clip.compute_dtype)[neurons]
        rows = rows @ output_map(clip, clip.compute_dtype, centred=True)
        self.lengths, self.lines = rows.norm(dim=-1), F.normalize(rows, dim=-1)
        self._stack = ExitStack()
        self._activation: Tensor | None = None
        self._post: Post | None = None
        with self:
            z = stacked([self._coordinates(pixels)[1].cpu() for pixels in reference])
        self.fitted = lens_of(z[:, :, None], self.lines[:, :, None])
        self.directions = {layer: self.fitted.directions}
        self.thresholds = {layer: self.fitted.threshold}

    def __enter__(self) -> "Effects":
        clip, block = self.clip, self.clip.blocks[self.layer]

        def see_activation(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._activation = clip.batch_major(inputs[0])

        def see_output(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            self._post = read_post(clip, inputs[0], output)

        self._stack.enter_context(clip.class_token_only())
        before = [(block.mlp_output, see_activation)]
        self._stack.enter_context(hooked([(clip.ln_post, see_output)], before))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        self._activation = self._post = None

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
        assert self._activation is not None and self._post is not None
        read = self.clip.reader.direct(self._activation.to(dtype), self._post.token_sigma)
        activation = read[:, self.neurons]
        scale = 1 / (self._post.sigma * representation.norm(dim=-1))
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
        parts = [self._effects(stop_after(clip, pixels, layer)).cpu() for pixels in reference]
        identity = torch.eye(clip.dim, dtype=clip.compute_dtype, device=clip.device)
        self.fitted = lens_of(stacked(parts), identity.expand(len(neurons), -1, -1))
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
        like = torch.zeros(1, clip.dim, dtype=clip.compute_dtype, device=clip.device)
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

    Coordinates are many and stay on the CPU: a few neurons of them at a time go to the device of
    the basis, where the result is. `activation_mean` is empty: effects of this kind do not say it.
    """
    top, parts = top_count(None, len(z)), []
    for some in chunks(z.shape[1], NEURONS_PER_CHUNK):
        here = z[:, some].to(basis.device)
        none = here.new_zeros(0, here.shape[1])
        parts.append(layer_lens(*both_stages(here, top), basis[some], none))
    return LayerLens(
        **{
            field.name: torch.cat(
                [getattr(part, field.name) for part in parts],
                dim=1 if field.name == "activation_mean" else 0,
            )
            for field in fields(LayerLens)
        }
    )
