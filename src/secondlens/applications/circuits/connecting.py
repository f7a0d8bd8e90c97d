"""Connections of a neuron that no image changes: virtual weights with neurons of other layers.

Through identities, one unit of neuron n adds to what a later neuron m reads

    <C w_n, g_2 W_m> / sigma_2,

and through the values of one head of a block between them, up to m's own,

    <C( (g_1 C w_n) V_h O_h ), g_2 W_m> A_h / (sigma_1 sigma_2).

The products are weights of the model; attention and scales are of an image and are left out, so
that weights of one kind can be compared among each other. Beside them stands how often the two
neurons are active in the same images, which says whether a connection is used.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...arguments import checked
from ...data.reader import Reader
from ...data.sources import as_source
from ...devices import undisturbed
from ...effects.ablated_runs import check_neurons
from ...effects.edges import Sources
from ...effects.linearised import check_paths, neuron_inputs
from ...errors import SecondLensError
from ...lens.lens import Lens
from ...models.blocks import Block
from ...models.view import Clip, hooked
from ...progress import tracked
from ...words.summary import label


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Another neuron, and how it is connected."""

    layer: int
    neuron: int
    title: str
    """What it fires on, as the lens has it."""
    weight: float
    """Of the way that is largest in size."""
    head: tuple[int, int] | None
    """The layer and number of the head on that way; None if it is identities alone."""
    coactivation: float
    """Correlation of the mean activations over images; NaN if no images were given."""


@dataclass(frozen=True, kw_only=True)
class Connections:
    """The strongest connections of one neuron, by size of their weights."""

    layer: int
    neuron: int
    inputs: tuple[Connection, ...]
    """Of earlier layers: what makes it fire or keeps it from firing."""
    outputs: tuple[Connection, ...]
    """Of later layers: what it makes fire or keeps from firing."""


@checked
@undisturbed
@torch.no_grad()
def connections(
    clip: Clip,
    lens: Lens | None,
    layer: int,
    neuron: int,
    *,
    images: Any = None,
    top: int = 10,
    progress: bool = False,
) -> Connections:
    """Find the neurons with which a neuron has the largest virtual weights.

    Parameters
    ----------
    clip
        The model.
    lens
        Which says what neurons fire on; None for numbers alone.
    layer, neuron
        Any neuron of an MLP.
    images
        What `fit` takes, for `Connection.coactivation`.
    top
        Inputs and outputs that are wanted.

    Raises
    ------
    SecondLensError
        No such neuron, no connections wanted, a lens of another model, a model of a kind that
        `linearise` refuses, or no image that can be read.
    """
    check_paths(clip)
    clip.check_layer(layer, last=True)
    check_neurons(clip, layer, [neuron])
    if top < 1:
        raise SecondLensError(f"at least 1 connection must be asked for, not {top}")
    if lens is not None:
        lens.check_model(clip)
    found = {}
    for side, ways in (
        ("inputs", input_weights(clip, layer, neuron)),
        ("outputs", output_weights(clip, layer, neuron)),
    ):
        found[side] = _strongest(clip, ways, top)
    others = [(l, n) for side in found.values() for l, n, _, _ in side]
    together = _coactivation(clip, images, (layer, neuron), others, progress)
    named = {
        side: tuple(
            Connection(
                layer=l,
                neuron=n,
                title=label(lens, l, n) if lens is not None and l in lens.layers else "",
                weight=weight,
                head=head,
                coactivation=together[l, n],
            )
            for l, n, weight, head in each
        )
        for side, each in found.items()
    }
    return Connections(layer=layer, neuron=neuron, inputs=named["inputs"], outputs=named["outputs"])


Way = tuple[int, tuple[int, int] | None, Float[Tensor, " neurons"]]
"""A layer, the head on the way there or None, and the weights with all neurons of the layer."""


def output_weights(clip: Clip, layer: int, neuron: int) -> Iterator[Way]:
    """Virtual weights from a neuron to those of all later layers, by way."""
    write = _centred(clip.blocks[layer].neuron_rows[neuron].to(clip.compute_dtype))
    carried = []
    for later in range(layer + 1, clip.layers):
        block = clip.blocks[later]
        carried += [((later, head), row) for head, row in enumerate(_through(block, write))]
        read = _read(block)
        yield later, None, read @ write
        for head, row in carried:
            yield later, head, read @ row


def input_weights(clip: Clip, layer: int, neuron: int) -> Iterator[Way]:
    """Virtual weights from all neurons of earlier layers to a neuron, by way."""
    read = _centred(_read(clip.blocks[layer])[neuron])
    wanted = []
    for earlier in reversed(range(layer)):
        block = clip.blocks[earlier + 1]
        wanted += [((earlier + 1, head), row) for head, row in enumerate(_through_back(block, read))]
        rows = clip.blocks[earlier].neuron_rows.to(read)
        yield earlier, None, rows @ read
        for head, row in wanted:
            yield earlier, head, rows @ row


def _read(block: Block) -> Float[Tensor, "neurons width"]:
    """What neurons read of the stream, but for its mean and scale."""
    inputs = neuron_inputs(block)
    return inputs * block.ln_2.weight.detach().to(inputs)  # type: ignore[operator]


def _through(block: Block, write: Float[Tensor, " width"]) -> Float[Tensor, "heads width"]:
    """A change of the stream, centred, through the values of each head."""
    heads = torch.einsum("hew,w->he", block.value.to(write), write * block.gain.to(write))
    return _centred(torch.einsum("he,hew->hw", heads, block.output.to(write)))


def _through_back(block: Block, read: Float[Tensor, " width"]) -> Float[Tensor, "heads width"]:
    heads = torch.einsum("hew,w->he", block.output.to(read), read)
    return _centred(torch.einsum("he,hew->hw", heads, block.value.to(read)) * block.gain.to(read))


def _strongest(
    clip: Clip, ways: Iterator[Way], top: int
) -> list[tuple[int, int, float, tuple[int, int] | None]]:
    """Neurons by their largest weight of any way, the largest first."""
    best: dict[tuple[int, int], tuple[float, tuple[int, int] | None]] = {}
    for layer, head, weights in ways:
        for neuron in weights.abs().topk(min(top, len(weights))).indices.tolist():
            weight = float(weights[neuron])
            if abs(weight) > abs(best.get((layer, neuron), (0.0, None))[0]):
                best[layer, neuron] = weight, head
    order = sorted(best, key=lambda each: (-abs(best[each][0]), each))[:top]
    return [(layer, neuron, *best[layer, neuron]) for layer, neuron in order]


def _coactivation(
    clip: Clip,
    images: Any,
    neuron: tuple[int, int],
    others: list[tuple[int, int]],
    progress: bool,
) -> dict[tuple[int, int], float]:
    if images is None:
        return dict.fromkeys(others, float("nan"))
    every = [neuron, *others]
    found = []
    reader = Reader(source=as_source(images), clip=clip)
    for batch in tracked(reader, "co-activation", progress):
        seen = Sources(clip)
        with hooked([], seen.hooks()):
            clip.encode_image(batch.on(clip.device))
        means = [seen.activations[l][:, :, n].to(clip.compute_dtype).mean(1) for l, n in every]
        found.append(torch.stack(means).cpu())
    if not found:
        raise SecondLensError("none of the pictures could be read")
    values = torch.cat(found, dim=1).double()
    values = values - values.mean(1, keepdim=True)
    size = values.norm(dim=1)
    products = (values[1:] @ values[0]) / (size[1:] * size[0])
    return dict(zip(others, products.tolist(), strict=True))


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=-1, keepdim=True)
