"""Edits written into the weights of a model, and how far they are from what was asked for.

A neuron with the activation p at a token, drawn to one mean m over all tokens with the strength s,
has the activation p + s (m - p). It writes its row w of the MLP's output that often, so the same
numbers come of the row (1 - s) w and the bias + s m w: this is exact.

A path of a neuron through a head carries p / sigma times a fixed vector u to the head's value. A
weight of the head sees the normalised token y and not p, so p / sigma is replaced by its best
linear guess from y, with coefficients beta (`CarrierFit`). The value of the head then loses
s u beta^T (y - mean of y), which changes its weight by - s u beta^T and its bias by
+ s (beta^T mean of y) u.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...arguments import checked
from ...data.reader import Batch, Reader, in_parts
from ...data.sources import as_source
from ...devices import undisturbed
from ...errors import SecondLensError, UnsupportedModel
from ...lens.lens import Lens
from ...models.blocks import Attention
from ...models.readers import normalises
from ...models.view import Clip, hooked
from ...progress import tracked
from ..auditing.ablated_clip import LayerNeuron
from .edits import Edit, NeuronPath
from .streams import CarrierFit, Seen, by_head, exact, see


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far embeddings of an edited model are from what they were to be."""

    aim: str
    """What they were to be, in words."""
    moved: float
    """Root mean square by which the aim moves unit embeddings."""
    missed: float
    """Root mean square between the unit embeddings of the edited model and the aim's."""

    @property
    def share(self) -> float:
        """Of the movement, that is missed: 0 is exact, and 1 as far off as no edit at all; NaN if
        the aim moves nothing, but for rounding."""
        return self.missed / self.moved if self.moved > ROUNDING else float("nan")


ROUNDING = 1e-6
"""Of a unit embedding in float32."""
TOKEN_MEANS = "activations drawn to a mean of their own at each token"
SECOND_ORDER = "second-order effects alone taken from embeddings, as audits and defences do"


@dataclass(frozen=True, kw_only=True, eq=False)
class Edited:
    """A model whose weights were changed, and what is known of the change."""

    clip: Clip
    """The changed model: a copy, as ordinary as the model itself."""
    edit: Edit
    before: str
    """Name of the model that was changed."""
    before_hash: str
    """`Clip.weights_hash` of it."""
    means: dict[LayerNeuron, float]
    """To which each neuron is drawn, at all tokens."""
    explained: dict[NeuronPath, float]
    """Share of the variance of p / sigma, over tokens by how much the head looks at them, that the
    weights of a path's head see: 1 is exact."""
    distances: tuple[Distance, ...]
    """Empty without images."""
    images: int
    """How many told the distances."""


@checked
@undisturbed
@torch.no_grad()
def edit(
    clip: Clip,
    lens: Lens,
    changes: Edit,
    images: Any = None,
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> Edited:
    """Write an edit into a copy of a model.

    A neuron is drawn to one mean, that of the lens over images and tokens, which is exact. A path
    of a neuron through a head is changed as well as a linear weight can, and `Edited.explained`
    says how well.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it, which has the layers of the neurons.
    changes
        What is changed.
    images
        What `fit` takes. Paths need them; they also say how far one mean over all tokens is from a
        mean of each token, and all paths of a neuron from its second-order effects.
    batch_size
        Images in a forward pass.

    Raises
    ------
    SecondLensError
        Another model's lens or edit, a layer that the lens does not have, neurons or heads that do
        not exist, paths without images, or no image that can be read.
    UnsupportedModel
        A text tower, or the weights that an edit needs are not there: the MLP's output is not a
        plain Linear layer with a bias, or a head's value has no bias.
    """
    clip.check_images("edits")
    lens.check_model(clip)
    changes.check(clip)
    for layer in {layer for layer, _ in changes.neurons}:
        lens[layer]  # says that it has no such layer
    if changes.paths and images is None:
        raise SecondLensError(
            "an edit of paths through heads is fitted to images: give some, such as those of the "
            "lens"
        )
    changed = copied(clip)
    for layer, _ in changes.neurons:
        _output_of(changed, layer)
    for path in changes.paths:
        _check_path(changed, path)
    reader = seen = None
    if images is not None:
        reader = Reader(source=as_source(images), clip=clip, batch_size=batch_size)
        seen = see(clip, changes, reader, progress)
    means = {
        (layer, n): float(exact(lens[layer].activation_mean[:, n]).mean())
        for layer, n in changes.neurons
    }
    for (layer, n), mean in means.items():
        _draw(_output_of(changed, layer), n, mean, changes.strength)
    explained: dict[NeuronPath, float] = {}
    distances: tuple[Distance, ...] = ()
    if reader is not None and seen is not None:
        explained = _write_paths(clip, changed, changes, seen.carriers)
        distances = _distances(clip, lens, changed, changes, reader, seen, progress)
    return Edited(
        clip=changed,
        edit=changes,
        before=clip.name,
        before_hash=clip.weights_hash,
        means=means,
        explained=explained,
        distances=distances,
        images=0 if seen is None else len(seen.plain),
    )


def copied(clip: Clip) -> Clip:
    """A model with weights of its own; what only reads inputs is shared."""
    shared = (clip.preprocess, clip.tokenizer)
    return copy.deepcopy(clip, {id(each): each for each in shared if each is not None})


def _output_of(clip: Clip, layer: int) -> nn.Linear:
    linear: Any = clip.blocks[layer].mlp_output
    plain = type(linear) is nn.Linear and linear.in_features == clip.neurons
    if not plain or linear.bias is None:
        raise UnsupportedModel(
            f"{clip.name} cannot be edited: the MLP's output of layer {layer} is not a plain "
            "Linear layer with a bias, which an edit is written into"
        )
    found: nn.Linear = linear
    return found


def _draw(linear: nn.Linear, neuron: int, mean: float, strength: float) -> None:
    row = exact(linear.weight[:, neuron])
    linear.bias.copy_(exact(linear.bias) + strength * mean * row)
    linear.weight[:, neuron] = ((1 - strength) * row).to(linear.weight)


def _value_of(clip: Clip, path: NeuronPath) -> tuple[Tensor, Tensor]:
    """Weight and bias of the value of a path's head: views of the model's own, to be written to."""
    layer, _, block, head = path
    attention: Attention = clip.attentions(layer)[block]
    return attention.value[head], attention.value_bias[head]


def _check_path(changed: Clip, path: NeuronPath) -> None:
    """Raise `UnsupportedModel` if nothing can be written into the value of a path's head."""
    layer, _, block, _ = path
    sound = normalises(changed.attentions(layer)[block].ln_1)
    for which in (0, 1):
        # what is made anew when it is asked for, such as zeros for no bias, forgets it
        part = _value_of(changed, path)[which]
        before = part.clone()
        part.add_(1)
        sound = sound and not torch.equal(_value_of(changed, path)[which], before)
        part.copy_(before)
    if not sound:
        raise UnsupportedModel(
            f"{changed.name} cannot be edited by paths: a head's value has no norm before it, or "
            "no weight and bias of its own that a change can be written into"
        )


def _write_paths(
    clip: Clip,
    changed: Clip,
    changes: Edit,
    carriers: Mapping[tuple[int, int], CarrierFit],
) -> dict[NeuronPath, float]:
    """Change the values of heads, and say how well each path is told from what its head reads."""
    explained: dict[NeuronPath, float] = {}
    for (j, h), neurons in by_head(changes).items():
        own = clip.attentions(neurons[0][0])[j]
        value, bias = _value_of(changed, (*neurons[0], j, h))
        beta, mean, shares = carriers[j, h].solved()
        rows = torch.stack([exact(clip.blocks[at].neuron_rows[n]) for at, n in neurons])
        centred = (rows - rows.mean(dim=1, keepdim=True)) * exact(own.gain)
        moved = changes.strength * (exact(own.value[h]) @ centred.T) @ beta.T
        value.copy_(exact(value) - moved)
        bias.copy_(exact(bias) + moved @ mean)
        for neuron, share in zip(neurons, shares.tolist(), strict=True):
            explained[*neuron, j, h] = share
    return explained


def _distances(
    clip: Clip,
    lens: Lens,
    changed: Clip,
    changes: Edit,
    reader: Reader,
    seen: Seen,
    progress: bool,
) -> tuple[Distance, ...]:
    """How far unit embeddings are from what they were to be."""
    # an image that was left out once is left out of all
    reader = replace(reader, positions=seen.positions)
    after, drawn = [], []

    def encode(batch: Batch) -> tuple[Tensor, Tensor]:
        pixels = batch.on(clip.device)
        with drawn_to_token_means(clip, lens, changes):
            aim = clip.encode_image(pixels)
        new = changed.encode_image(pixels)
        return new.to(clip.compute_dtype).cpu(), aim.to(clip.compute_dtype).cpu()

    batches = tracked(reader, "the edited model", progress)
    for _, (new, aim) in in_parts(batches, clip, encode):
        after.append(new)
        drawn.append(aim)
    found = torch.cat(after)
    aims: dict[str, Tensor] = {}
    if not changes.paths:  # of paths, that is no aim
        aims[TOKEN_MEANS] = torch.cat(drawn)
    if min(changes.layers) <= clip.last_effect_layer:
        aims[SECOND_ORDER] = seen.without
    return tuple(
        Distance(aim=name, moved=_rms(aim, seen.plain), missed=_rms(aim, found))
        for name, aim in aims.items()
    )


def _rms(one: Float[Tensor, "images dim"], other: Float[Tensor, "images dim"]) -> float:
    """Root mean square of the distance between unit rows."""
    apart = F.normalize(one.double(), dim=-1) - F.normalize(other.double(), dim=-1)
    return float(apart.square().sum(1).mean().sqrt())


@contextmanager
def drawn_to_token_means(clip: Clip, lens: Lens, changes: Edit) -> Iterator[None]:
    """Inside the `with`, neurons of an edit are drawn to the lens's mean of each token."""

    def draw(layer: int, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        chosen = [n for at, n in changes.neurons if at == layer]
        activation = clip.batch_major(inputs[0]).clone()
        own, mean = activation[..., chosen], lens[layer].activation_mean[:, chosen]
        activation[..., chosen] = own + changes.strength * (mean.to(own) - own)
        return (clip.as_module(activation), *inputs[1:])

    layers = {layer for layer, _ in changes.neurons}
    with hooked([], [(clip.blocks[layer].mlp_output, partial(draw, layer)) for layer in layers]):
        yield
