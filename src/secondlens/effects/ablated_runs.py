"""Indirect effects: how the representation moves when neurons are held at their means.

A neuron's layer and everything before it are the same with and without the neuron, so they run
once for each image. What a neuron at its mean changes is the residual stream after its block, by
(mean - activation) * w_n, and the network is run on from there, for groups of neurons at a time.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..arguments import checked
from ..devices import undisturbed
from ..errors import SecondLensError
from ..models.view import Clip, hooked
from ..progress import bars
from ..timing import seconds_on
from .value_paths import chunks

IMAGES_PER_PASS = 64
"""Copies of images that are run on at a time: more are no faster, and take memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stopped:
    """A batch of images after an MLP layer, from where the network can be run on."""

    clip: Clip
    layer: int
    representation: Float[Tensor, "images dim"]
    """With nothing ablated."""
    activation: Float[Tensor, "images tokens neurons"]
    stream: Float[Tensor, "images tokens width"]
    """The residual stream after the layer's block."""

    def without(
        self, neurons: Sequence[int], mean: Float[Tensor, "tokens neurons"]
    ) -> Float[Tensor, "images chosen dim"]:
        """Representations with one neuron at its mean at every token, for each of the neurons."""
        own, held = self.activation[:, :, neurons], mean.to(self.activation)[:, neurons]
        # [images, chosen, tokens, 1], times what each neuron writes
        moved = (held - own).transpose(1, 2)[..., None] * self.rows[neurons, None]
        streams = (self.stream[:, None] + moved.to(self.stream)).flatten(0, 1)
        rows: Tensor = self.run_on(streams).unflatten(0, (len(self.stream), len(neurons)))
        return rows

    def taken(self, places: Int[Tensor, " places"]) -> "Stopped":
        """Some of the images, each as often as its place is there."""
        return replace(
            self,
            representation=self.representation[places],
            activation=self.activation[places],
            stream=self.stream[places],
        )

    def copied(self, copies: int) -> "Stopped":
        """Each image `copies` times, one after another."""
        images = torch.arange(len(self.stream), device=self.stream.device)
        return self.taken(images.repeat_interleave(copies))

    def without_all(self, mean: Float[Tensor, "tokens neurons"]) -> Float[Tensor, "images dim"]:
        """Representations with all neurons of the layer at their means at once."""
        moved = (mean.to(self.activation) - self.activation) @ self.rows
        return self.run_on(self.stream + moved.to(self.stream))

    @property
    def rows(self) -> Float[Tensor, "neurons width"]:
        """What one unit of each neuron's activation writes to the stream."""
        return self.clip.blocks[self.layer].neuron_rows.to(self.activation)

    @torch.no_grad()
    def run_on(self, streams: Float[Tensor, "copies tokens width"]) -> Float[Tensor, "copies dim"]:
        """Representations with other streams after the layer's block."""
        blank = streams.new_zeros(1, 3, *self.clip.image_size, dtype=self.clip.dtype)
        with resumed(self.clip, self.layer, streams), self.clip.class_token_only():
            return self.clip.image_tower(blank)


@torch.no_grad()
def stop_after(clip: Clip, images: Any, layer: int) -> Stopped:
    """Run images through the network, keeping what running on from an MLP layer needs.

    Parameters
    ----------
    clip
        The model.
    images
        What `Clip.prepare` takes, all in one pass.
    layer
        Any MLP layer.
    """
    clip.check_images("ablated runs")
    block, seen = clip.blocks[layer], dict[str, Tensor]()

    def see_activation(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen["activation"] = clip.batch_major(inputs[0]).to(clip.compute_dtype)

    def see_stream(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen["stream"] = clip.batch_major(output)

    with hooked([(block.module, see_stream)], [(block.mlp_output, see_activation)]):
        representation = clip.encode_image(images)
    return Stopped(clip=clip, layer=layer, representation=representation, **seen)


@checked
@undisturbed
def indirect(
    clip: Clip,
    images: Any,
    layer: int,
    neurons: Sequence[int],
    mean: Float[Tensor, "tokens neurons"],
    *,
    progress: bool = False,
) -> Float[Tensor, "images chosen dim"]:
    """Indirect effects: (r - r with the neuron at its mean at every token) / norm of r.

    The network runs on from `layer` once for each image and neuron, a bounded number of them at a
    time: `indirect_seconds` says beforehand how long that takes.

    Parameters
    ----------
    clip
        The model.
    images
        What `Clip.prepare` takes.
    layer
        Any MLP layer.
    neurons
        Which ones of the layer, in the order of the result.
    mean
        The activation to put in place of each neuron's own, by token and neuron.
    progress
        Show a progress bar with the time left.

    Raises
    ------
    SecondLensError
        No such layer or neuron, a mean of another shape, or images that `Clip.prepare` refuses.
    """
    clip.check_layer(layer, last=True)
    check_neurons(clip, layer, neurons)
    check_mean(clip, mean)
    pixels = clip.prepare(images)
    effects = pixels.new_empty(len(pixels), len(neurons), clip.dim, dtype=clip.compute_dtype)
    with bars(progress) as shown:
        bar = shown.add_task("indirect effects", total=len(pixels) * len(neurons))
        for some in chunks(len(pixels), IMAGES_PER_PASS):
            stopped = stop_after(clip, pixels[some], layer)
            for chunk, found in effects_of(stopped, neurons, mean):
                effects[some, chunk] = found
                shown.advance(bar, found.shape[0] * found.shape[1])
    return effects


def effects_of(
    stopped: Stopped, neurons: Sequence[int], mean: Float[Tensor, "tokens neurons"]
) -> Iterator[tuple[slice, Float[Tensor, "images some dim"]]]:
    """Indirect effects for a batch, with the places in `neurons` that they belong to."""
    original = stopped.representation.to(stopped.clip.compute_dtype)
    length = original.norm(dim=-1)[:, None, None]
    for chunk in chunks(len(neurons), max(1, IMAGES_PER_PASS // len(original))):
        ablated = stopped.without(neurons[chunk], mean).to(original)
        yield chunk, (original[:, None] - ablated) / length


@undisturbed
def indirect_seconds(clip: Clip, layer: int) -> float:
    """Measured seconds of one image and neuron in `indirect`, the best of three small groups."""
    stopped = stop_after(clip, torch.zeros(8, 3, *clip.image_size), layer)
    group = list(range(min(clip.neurons, IMAGES_PER_PASS // 8)))
    mean = stopped.activation[0]
    seconds = []
    for _ in range(3):
        began = seconds_on(clip.device)
        stopped.without(group, mean)
        seconds.append(seconds_on(clip.device) - began)
    return min(seconds) / (8 * len(group))


def check_neurons(clip: Clip, layer: int, neurons: Sequence[int]) -> None:
    """Raise `SecondLensError` for a neuron that the layer does not have."""
    if bad := [n for n in neurons if not 0 <= n < clip.neurons]:
        raise SecondLensError(
            f"layer {layer} has no neuron {bad[0]}: choose from 0 to {clip.neurons - 1}"
        )


def check_mean(clip: Clip, mean: Float[Tensor, "tokens neurons"]) -> None:
    """Raise `SecondLensError` unless there is an activation for each token and neuron."""
    if mean.shape != (clip.tokens, clip.neurons):
        raise SecondLensError(
            f"mean needs a row for each token and a column for each neuron, "
            f"[{clip.tokens}, {clip.neurons}], and it is {list(mean.shape)}"
        )


def sample(clip: Clip, count: int | None, seed: int = 0) -> list[int]:
    """Neurons of a layer drawn at random, sorted; all of them without a count.

    Raises
    ------
    SecondLensError
        More than the layer has, or none.
    """
    if count is None:
        return list(range(clip.neurons))
    if not 1 <= count <= clip.neurons:
        raise SecondLensError(f"a layer has {clip.neurons} neurons: sample 1 to so many of them")
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(clip.neurons, generator=generator)[:count].tolist())


@contextmanager
def resumed(clip: Clip, layer: int, streams: Tensor) -> Iterator[None]:
    """Inside the `with`, a pass of the image tower runs on from `streams` [copies, tokens, width]:
    block `layer` gives them, whatever it sees, and those before it do nothing."""

    def nothing(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x

    def given(*_: Any, **__: Any) -> Tensor:
        return clip.as_module(streams)

    with ExitStack() as stack:
        for j, block in enumerate(clip.blocks[: layer + 1]):
            stack.callback(_put_back, block.module, vars(block.module).get("forward"))
            block.module.forward = given if j == layer else nothing
        yield


def _put_back(module: nn.Module, forward: Any) -> None:
    del module.forward
    if forward is not None:
        module.forward = forward
