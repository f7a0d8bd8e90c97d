"""Which neurons a neuron reads from and writes to, by the weights alone, and whether they fire
together."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import checked
from ..data.reader import Reader
from ..data.sources import as_source
from ..devices import undisturbed, wide
from ..effects.ablated_runs import check_neurons
from ..effects.edges import Sources
from ..effects.linearised import check_paths
from ..effects.virtual_weights import Found, inputs, outputs
from ..errors import SecondLensError
from ..lens.layer import NeuronId
from ..lens.lens import Lens
from ..models.view import Clip, hooked
from ..progress import tracked
from .summary import label


@dataclass(frozen=True, kw_only=True)
class Connection(NeuronId):
    """Another neuron, and how strongly the weights connect it."""

    title: str
    """In words, as the lens has it; empty without a lens."""
    head: tuple[int, int] | None
    """The block and head through whose values it goes; None for the residual stream alone."""
    weight: float
    """Virtual weight: input of the reader for each unit of the writer's activation, where all
    scales of LayerNorm are 1 and the head takes all of the writer's token."""
    coactivation: float | None
    """Correlation of both activations: over images and tokens, or, through a head, over images of
    the means over tokens. None without images, or where one of the two never changes."""


@dataclass(frozen=True, kw_only=True)
class Connections:
    """The strongest connections of a neuron."""

    neuron: NeuronId
    inputs: tuple[Connection, ...]
    """Neurons that it reads from over the residual stream, the strongest first by size."""
    outputs: tuple[Connection, ...]
    """Neurons that it writes to."""
    inputs_by_heads: tuple[Connection, ...]
    """The same through one head, which brings them from other tokens."""
    outputs_by_heads: tuple[Connection, ...]

    def document(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return asdict(self)


@checked
@undisturbed
@torch.no_grad()
def connections(
    clip: Clip,
    lens: Lens | None,
    layer: int,
    neuron: int,
    images: Any = None,
    *,
    top: int = 10,
    progress: bool = False,
) -> Connections:
    """Find the neurons that one neuron reads from and writes to, by virtual weights.

    Weights need no images. Whether two neurons are ever active together, without which a weight
    does nothing, does.

    Parameters
    ----------
    clip
        The model.
    lens
        Which says what neurons fire on; None for numbers alone.
    layer, neuron
        Any MLP layer, and the neuron in it.
    images
        What `fit` takes, for the co-activation; None to leave it out.
    top
        Connections of each kind.

    Raises
    ------
    SecondLensError
        No such layer or neuron, fewer than 1 connection, a lens of another model, a model of a kind
        that `linearise` refuses, or no picture that can be read.
    """
    check_paths(clip)
    if lens is not None:
        lens.check_model(clip)
    clip.check_layer(layer, last=True)
    check_neurons(clip, layer, [neuron])
    if top < 1:
        raise SecondLensError(f"at least 1 connection must be asked for, not {top}")
    kinds = [
        _strongest(lens, each(clip, layer, neuron), top, heads=heads)
        for heads in (False, True)
        for each in (inputs, outputs)
    ]
    if images is not None:
        reader = Reader(source=as_source(images), clip=clip)
        others = sorted({(each.layer, each.neuron) for kind in kinds for each in kind})
        together = _coactivation(clip, reader, (layer, neuron), others, progress)
        kinds = [[_with(each, together) for each in kind] for kind in kinds]
    return Connections(
        neuron=NeuronId(layer=layer, neuron=neuron),
        inputs=tuple(kinds[0]),
        outputs=tuple(kinds[1]),
        inputs_by_heads=tuple(kinds[2]),
        outputs_by_heads=tuple(kinds[3]),
    )


def _strongest(
    lens: Lens | None, found: Iterable[Found], top: int, *, heads: bool
) -> list[Connection]:
    best: list[Connection] = []
    for layer, block, head, weights in found:
        if (block is None) == heads:
            continue
        for neuron in weights.abs().topk(min(top, len(weights))).indices.tolist():
            best.append(
                Connection(
                    layer=layer,
                    neuron=neuron,
                    title="",
                    head=None if block is None or head is None else (block, head),
                    weight=float(weights[neuron]),
                    coactivation=None,
                )
            )
        best = sorted(best, key=lambda each: -abs(each.weight))[:top]
    if lens is None:
        return best
    return [
        replace(each, title=label(lens, each.layer, each.neuron)) if each.layer in lens else each
        for each in best
    ]


def _coactivation(
    clip: Clip,
    reader: Reader,
    neuron: tuple[int, int],
    others: Sequence[tuple[int, int]],
    progress: bool,
) -> dict[tuple[int, int], Float[Tensor, "2"]]:
    """Correlations with other neurons, over images and tokens, and over images alone."""
    chosen = [neuron, *others]
    by_layer = {layer: [n for each, n in chosen if each == layer] for layer, _ in chosen}
    place = {each: row for row, each in enumerate(chosen)}
    moments = [_Moments(len(chosen)), _Moments(len(chosen))]
    for batch in tracked(reader, "co-activation", progress):
        seen = Sources(clip)
        with hooked([], seen.hooks()):
            clip.encode_image(batch.on(clip.device))
        rows: list[Tensor] = [torch.empty(0)] * len(chosen)
        for layer, neurons in by_layer.items():
            activations = wide(seen.activations[layer][:, :, neurons]).cpu()
            for each, column in zip(neurons, activations.unbind(-1), strict=True):
                rows[place[layer, each]] = column
        both = torch.stack(rows, dim=-1)
        moments[0].add(both.flatten(0, 1))
        moments[1].add(both.mean(1))
    if not moments[0].count:
        raise SecondLensError("none of the pictures could be read")
    return dict(
        zip(others, torch.stack([each.first() for each in moments], dim=1)[1:], strict=True)
    )


class _Moments:
    """Means and products of centred numbers, merged batch by batch (Chan, Golub and LeVeque)."""

    def __init__(self, numbers: int) -> None:
        self.count = 0
        self.mean = torch.zeros(numbers, dtype=torch.float64)
        self.products = torch.zeros(numbers, numbers, dtype=torch.float64)

    def add(self, rows: Float[Tensor, "rows numbers"]) -> None:
        """Take more rows in."""
        count, mean = len(rows), rows.double().mean(0)
        centred, step = rows.double() - mean, mean - self.mean
        total = self.count + count
        self.products += centred.T @ centred + torch.outer(step, step) * self.count * count / total
        self.mean += step * count / total
        self.count = total

    def first(self) -> Float[Tensor, " numbers"]:
        """Correlations of the first number with all; NaN where one never changes."""
        deviations = self.products.diagonal().sqrt()
        return self.products[0] / (deviations[0] * deviations)


def _with(each: Connection, together: dict[tuple[int, int], Tensor]) -> Connection:
    found = float(together[each.layer, each.neuron][0 if each.head is None else 1])
    return replace(each, coactivation=found if found == found else None)
