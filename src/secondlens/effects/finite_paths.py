"""All paths of a finite change: what neurons do between their means and their activations.

The classes of `all_paths` belong to a derivative. What a change of the stream by delta does, from a
base to the point where the image is, is the integral of the derivative along the way there,

    r(1) - r(0) = integral over x from 0 to 1 of  r'(x) delta,      r(x) with delta taken x times,

and so do the classes, which are integrated with Gauss's nodes. What the nodes miss is the remainder
against two runs of the network, and always there. One neuron needs few nodes. A whole layer moves
LayerNorms and attention so far that its derivative alone says little.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import checked
from ..devices import undisturbed
from ..errors import SecondLensError
from ..models.view import Clip, hooked
from .ablated_runs import Stopped, check_mean, check_neurons, resumed, stop_after
from .all_paths import CLASSES, Gradients, chosen_directions, forward
from .linearised import Linearised, Tape
from .value_paths import chunks

NODES = (1, 2, 3, 4, 6, 8, 12, 16)
"""Numbers of nodes that are tried, one after another."""
COPIES_PER_PASS = 16
"""Of images, one for each neuron: fewer than where the network is only run on, because what each
block does is kept."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FinitePaths:
    """What some neurons of one layer do along directions when they go from their means to their
    activations, in the units of the normalised embedding. Classes and remainder add up to `total`,
    over neurons too where these moved together."""

    effects: Float[Tensor, "images directions chosen 7"]
    """By class, in the order of `all_paths.CLASSES`."""
    total: Float[Tensor, "images directions *chosen"]
    """Of two runs of the network; of each neuron where they moved one by one."""
    remainder: Float[Tensor, "images directions *chosen"]
    """What the nodes miss of it."""
    nodes: int

    @property
    def missed(self) -> float:
        """Root mean square of the remainder over that of the total; 0 where nothing happens."""
        total = self.total.square().mean().sqrt()
        return float(self.remainder.square().mean().sqrt() / total) if total else 0.0


@checked
@undisturbed
@torch.no_grad()
def finite_paths(
    clip: Clip,
    images: Any,
    layer: int,
    neurons: Sequence[int],
    mean: Float[Tensor, "tokens neurons"],
    texts: Sequence[str] | None = None,
    *,
    directions: Tensor | None = None,
    together: bool = False,
    tolerance: float = 0.001,
    nodes: int | None = None,
) -> FinitePaths:
    """Effects by class of path of a finite change, from means to activations.

    With the fewest of `NODES` whose remainder is below the tolerance, or with the most of them.
    Each node costs one forward and one backward pass, for each neuron where they move one by one.

    Parameters
    ----------
    clip
        The model.
    images
        What `Clip.prepare` takes, all in one pass.
    layer
        Any MLP layer.
    neurons
        Which ones of the layer, in the order of the result.
    mean
        The activation that each neuron comes from, by token and neuron, as `indirect` takes it.
    texts, directions
        As `paths` takes them.
    together
        Whether all the neurons move at once, such as a whole layer, rather than one by one.
    tolerance
        Root mean square of the remainder over that of the total.
    nodes
        So many nodes instead, whatever the remainder is.

    Raises
    ------
    SecondLensError
        No such layer or neuron, none at all, a mean of another shape, a tolerance or nodes that are
        not positive, what `paths` says of directions and models, or images that `Clip.prepare`
        refuses.
    """
    clip.check_layer(layer, last=True)
    check_neurons(clip, layer, neurons)
    check_mean(clip, mean)
    if not neurons:
        raise SecondLensError("no neurons have no effects: give at least one")
    if not tolerance > 0:
        raise SecondLensError(f"a tolerance must be more than 0, and it is {tolerance}")
    if nodes is not None and nodes < 1:
        raise SecondLensError(f"an integral needs at least 1 node, and it has {nodes}")
    wanted = chosen_directions(clip, texts, directions)
    stopped = stop_after(clip, clip.prepare(images), layer)
    change = (stopped.activation - mean.to(stopped.activation))[:, :, neurons]
    move = _together if together else _one_by_one
    tried = NODES if nodes is None else (nodes,)
    found = move(stopped, change, neurons, wanted, tried[0])
    for more in tried[1:]:
        if found.missed <= tolerance:
            break
        found = move(stopped, change, neurons, wanted, more)
    return found


def _together(
    stopped: Stopped, change: Tensor, neurons: Sequence[int], directions: Tensor, nodes: int
) -> FinitePaths:
    rows = stopped.clip.blocks[stopped.layer].neuron_rows.to(change)[neurons]

    def at(gradients: Gradients) -> Tensor:
        return gradients.of_neurons(change, rows)

    effects, total = _integrated(stopped, change @ rows, directions, nodes, at)
    return FinitePaths(
        effects=effects, total=total, remainder=total - effects.sum((2, 3)), nodes=nodes
    )


def _one_by_one(
    stopped: Stopped, change: Tensor, neurons: Sequence[int], directions: Tensor, nodes: int
) -> FinitePaths:
    rows = stopped.clip.blocks[stopped.layer].neuron_rows.to(change)[neurons]
    images = len(change)
    effects, totals = [], []
    for chunk in chunks(len(neurons), max(1, COPIES_PER_PASS // images)):
        # [images * some, tokens, width]: a copy of each image for each neuron
        write = (change[:, :, chunk].transpose(1, 2)[..., None] * rows[chunk, None]).flatten(0, 1)
        some = write.shape[0] // images
        at = partial(Gradients.of_write, write=write)
        found, total = _integrated(stopped.copied(some), write, directions, nodes, at)
        effects.append(found.unflatten(0, (images, some)).transpose(1, 2))
        totals.append(total.unflatten(0, (images, some)).transpose(1, 2))
    by_neuron, total = torch.cat(effects, dim=2), torch.cat(totals, dim=2)
    return FinitePaths(
        effects=by_neuron, total=total, remainder=total - by_neuron.sum(-1), nodes=nodes
    )


def _integrated(
    stopped: Stopped,
    write: Float[Tensor, "images tokens width"],
    directions: Float[Tensor, "directions dim"],
    nodes: int,
    at: Callable[[Gradients], Tensor],
) -> tuple[Tensor, Float[Tensor, "images directions"]]:
    """What `at` gives, integrated on the way to the images, and the whole change."""
    length = stopped.representation.to(write).norm(dim=-1)
    found = torch.zeros(())
    for tower, weight in _on_the_way(stopped, write, length, nodes):
        gradients = Gradients(tower, directions)
        for later in reversed(range(stopped.layer + 1, stopped.clip.layers)):
            block = tower.blocks[later]
            gradients.take_back(block, gradients.worth(block.neuron_rows))
        found = found.to(write.device) + weight * at(gradients)
    moved = whole_change(stopped, write)
    return found, moved @ directions.to(moved).T


@torch.no_grad()
def moved_embeddings(
    stopped: Stopped, write: Float[Tensor, "images tokens width"], nodes: int
) -> Float[Tensor, "images 7 dim"]:
    """Whole embeddings of a finite change by class of path.

    Goes forward, which gives every direction at once at the price of about eight encodings a node.

    Parameters
    ----------
    stopped
        The pictures after the change.
    write
        What the change adds to the stream after the block.
    nodes
        Of the integral.
    """
    length = stopped.representation.to(write).norm(dim=-1)
    found = write.new_zeros(len(write), len(CLASSES), stopped.clip.dim)
    for tower, weight in _on_the_way(stopped, write, length, nodes):
        found += weight * forward(tower, stopped.layer, write[:, :, None])[:, 0]
    return found


def _on_the_way(
    stopped: Stopped, write: Tensor, length: Float[Tensor, " images"], nodes: int
) -> Iterator[tuple[Linearised, float]]:
    """The network at Gauss's nodes between the change undone and done, and their weights."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    for place, weight in zip((1 + places) / 2, weights / 2, strict=True):
        yield run_on(stopped, stopped.stream - (1 - place) * write, length), weight


@torch.no_grad()
def whole_change(
    stopped: Stopped, write: Float[Tensor, "images tokens width"]
) -> Float[Tensor, "images dim"]:
    """What a change of the stream does to the representation, over its length."""
    length = stopped.representation.to(write).norm(dim=-1)
    base = run_on(stopped, stopped.stream - write, length).representation
    change: Tensor = (stopped.representation.to(base) - base) / length[:, None]
    return change


def run_on(
    stopped: Stopped,
    streams: Float[Tensor, "images tokens width"],
    length: Float[Tensor, " images"],
) -> Linearised:
    """The derivative of the network after `stopped.layer`, with other streams there."""
    clip = stopped.clip
    tape = Tape(clip)
    blank = streams.new_zeros(1, 3, *clip.image_size, dtype=clip.dtype)
    with resumed(clip, stopped.layer, streams.to(stopped.stream)), hooked(tape.hooks()):
        representation = clip.image_tower(blank)
    return tape.linearised(representation, length)
