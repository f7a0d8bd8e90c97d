"""The effect budget: how much of what a neuron does is direct, second-order, and neither.

A neuron's total effect is indirect: what changes in the representation when it is held at its mean
at every token. The direct and the second-order part are those of the same change, activation minus
mean. What they do not explain is the remainder: changed attention patterns and LayerNorm scales,
later MLPs, attention to attention. It is a part like the others, and always shown.

With nodes, it is split by class of path: what the neuron does by each class on the way from its
mean to its activation, see `finite_paths`. The last part of the split is what is missing then: what
the nodes miss, and the little by which direct and second-order effects change on the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...arguments import checked
from ...data.reader import Batch, Reader, in_parts
from ...data.sources import as_source
from ...devices import undisturbed
from ...effects.ablated_runs import Stopped, check_neurons, effects_of, stop_after
from ...effects.all_paths import HIGHER
from ...effects.capture import Capture, Pooled
from ...effects.finite_paths import COPIES_PER_PASS, moved_embeddings
from ...effects.value_paths import chunks, output_map, path_factors
from ...errors import SecondLensError
from ...lens.lens import Lens
from ...models.readers import AttentionPool
from ...models.view import Clip
from ...progress import bars

PARTS = ("direct", "second-order", "remainder")
TOTAL = "total"
SPLIT = ("higher", "query", "key", "mlp", "norm", "missed")
"""Of the remainder."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Budget:
    """The parts of the total effects of some neurons of one layer, over a data set."""

    layer: int
    neurons: tuple[int, ...]
    images: int
    gram: Float[Tensor, "chosen 4 4"]
    """Mean over images of the inner products of direct, second-order, remainder and total."""
    split: Float[Tensor, "chosen 7 7"] | None = None
    """The same of the parts of `SPLIT` and the total; None where no nodes were asked for."""
    along: Float[Tensor, "images chosen 3"] | None = None
    """Of each image, along a direction of its own: the second-order effect, all paths together but
    what is missed, and the total."""

    @property
    def shares(self) -> Float[Tensor, "chosen 3"]:
        """<part, total> / <total, total>, in the order of `PARTS`: they add up to 1, and a part
        that works against the total is negative. NaN for a neuron without effect."""
        return self.gram[:, :3, 3] / self.gram[:, 3:, 3]

    @property
    def sizes(self) -> Float[Tensor, "chosen 4"]:
        """Root mean square norms, in parts of the unit embedding, the total last. They do not add
        up: parts may cancel."""
        return self.gram.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()

    @property
    def cosines(self) -> Float[Tensor, "chosen 3"]:
        """Between each part and the total, over all images at once."""
        return self.gram[:, :3, 3] / (self.sizes[:, :3] * self.sizes[:, 3:])

    @property
    def split_shares(self) -> Float[Tensor, "chosen 6"]:
        """As `shares`, of the parts of `SPLIT`: they add up to the share of the remainder."""
        assert self.split is not None
        return self.split[:, :6, 6] / self.split[:, 6:, 6]

    @property
    def split_of_layer(self) -> Float[Tensor, "6"]:
        """As `of_layer`, of the parts of `SPLIT`."""
        assert self.split is not None
        whole = self.split.sum(0)
        return whole[:6, 6] / whole[6, 6]

    @property
    def correlations(self) -> tuple[float, float]:
        """Pearson's, over images and neurons, with the total along each image's direction: of
        second-order effects, and of all paths. NaN where nothing varies."""
        assert self.along is not None
        second, everything, total = self.along.flatten(0, 1).double().T
        return _correlation(second, total), _correlation(everything, total)

    @property
    def of_layer(self) -> Float[Tensor, "3"]:
        """Shares of all neurons together, each counting by the energy of its total effect."""
        whole = self.gram.sum(0)
        return whole[:3, 3] / whole[3, 3]


def _correlation(a: Float[Tensor, " pairs"], b: Float[Tensor, " pairs"]) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / (a.norm() * b.norm()))


@checked
@undisturbed
@torch.no_grad()
def budget(
    clip: Clip,
    lens: Lens,
    images: Any,
    layer: int,
    neurons: Sequence[int],
    *,
    nodes: int = 0,
    directions: "Float[Tensor, 'texts dim'] | None" = None,
    batch_size: int = 16,
    workers: int = 0,
    progress: bool = False,
) -> Budget:
    """Divide the total effects of neurons into direct, second-order and remainder.

    The network runs on from the layer once for each image and neuron: see
    `indirect.indirect_seconds` for how long that takes, and `indirect.sample` for some neurons.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it, which has the means that neurons are held at.
    images
        What `fit` takes.
    layer
        One with second-order effects.
    neurons
        Which of its neurons.
    nodes
        Of the integral that splits the remainder by class of path; one is enough for single
        neurons, and costs about nine times what the budget costs without. 0 leaves it whole.
    directions
        Rows of the embedding, such as those of classes: what is foretold of an image is compared
        with what happens along its best one minus their mean. By default along its own embedding.
    progress
        Show a progress bar with the time left.

    Raises
    ------
    SecondLensError
        Another model's lens, no such layer or neuron, none at all, fewer than no nodes, directions
        of another width, a model whose classes of paths cannot be told apart (see `linearise`), or
        no readable image.
    """
    lens.check_model(clip)
    lens.check_value("a budget")
    clip.check_layer(layer)
    if not neurons:
        raise SecondLensError("no neurons have no effects: give at least one")
    check_neurons(clip, layer, neurons)
    if nodes < 0:
        raise SecondLensError(f"nodes must be 0 or more, and they are {nodes}")
    if directions is not None and directions.shape[1:] != (clip.dim,):
        raise SecondLensError(
            f"directions are rows of the embedding, [texts, {clip.dim}], and these are "
            f"{list(directions.shape)}"
        )
    held = lens[layer].activation_mean.to(clip.device)
    parts = _Split(clip, layer, list(neurons), held)
    reader = Reader(source=as_source(images), clip=clip, batch_size=batch_size, workers=workers)
    gram, count = torch.zeros((), device=clip.device), 0
    split, along = torch.zeros((), device=clip.device), []
    with bars(progress) as shown:
        bar = shown.add_task("effect budget", total=len(reader.source.ids) * len(neurons))

        def measured(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
            # the hooks must be gone before the network is run on
            with Capture(clip, [layer], keep_activations=True) as capture:
                stopped = stop_after(clip, batch.on(clip.device), layer)
                pooled = capture.pool(stopped.representation)
            direct, second = parts(pooled)
            grams, splits, lines = [], [], []
            for some, total in effects_of(stopped, neurons, held):
                shown.advance(bar, total.shape[0] * total.shape[1])
                rest = total - direct[:, some] - second[:, some]
                rows = torch.stack([direct[:, some], second[:, some], rest, total], dim=2)
                grams.append(torch.einsum("bnpd,bnqd->npq", rows, rows))
                if not nodes:
                    continue
                classes = _by_class(stopped, neurons[some], held, nodes)
                own = classes[:, :, HIGHER:]
                missed = rest - own.sum(2)
                rows = torch.cat([own, missed[:, :, None], total[:, :, None]], dim=2)
                splits.append(torch.einsum("bnpd,bnqd->npq", rows, rows))
                compared = torch.stack([second[:, some], classes.sum(2), total], dim=2)
                lines.append(
                    torch.einsum("bncd,bd->bnc", compared, _own_direction(stopped, directions))
                )
            if not nodes:
                return torch.cat(grams), split, torch.zeros(())
            return torch.cat(grams), torch.cat(splits), torch.cat(lines, dim=1)

        for batch, (found, of_rest, line) in in_parts(reader, clip, measured):
            gram, split = gram + found, split + of_rest
            along.append(line.cpu())
            count += len(batch.positions)
    if not count:
        raise SecondLensError("none of the pictures could be read")
    return Budget(
        layer=layer,
        neurons=tuple(neurons),
        images=count,
        gram=gram.cpu() / count,
        split=split.cpu() / count if nodes else None,
        along=torch.cat(along) if nodes else None,
    )


def _by_class(
    stopped: Stopped,
    neurons: Sequence[int],
    held: Float[Tensor, "tokens neurons"],
    nodes: int,
) -> Float[Tensor, "images chosen 7 dim"]:
    """What each neuron does between its mean and its activation, by class of path."""
    change = (stopped.activation - held)[:, :, neurons].transpose(1, 2)
    # a copy of each image for each neuron
    write = (change[..., None] * stopped.rows[neurons, None]).flatten(0, 1)
    places = torch.arange(len(change), device=write.device).repeat_interleave(len(neurons))
    found = [
        moved_embeddings(stopped.taken(places[some]), write[some], nodes)
        for some in chunks(len(write), COPIES_PER_PASS)
    ]
    together: Tensor = torch.cat(found).unflatten(0, (len(change), len(neurons)))
    return together


def _own_direction(
    stopped: Stopped, directions: Float[Tensor, "texts dim"] | None
) -> Float[Tensor, "images dim"]:
    """Along which each image is looked at."""
    unit = F.normalize(stopped.representation.to(stopped.clip.compute_dtype), dim=-1)
    if directions is None:
        return unit
    rows = directions.to(unit)
    return rows[(unit @ rows.T).argmax(-1)] - rows.mean(0)


class _Split:
    """Direct and second-order effects of chosen neurons' activations minus their means."""

    def __init__(
        self,
        clip: Clip,
        layer: int,
        neurons: Sequence[int],
        held: Float[Tensor, "tokens neurons"],
    ) -> None:
        self.layer, self.neurons, self.held = layer, neurons, held
        self.reader = clip.reader
        rows = clip.blocks[layer].neuron_rows.to(clip.compute_dtype)[neurons]
        self.straight = rows.new_zeros(len(rows), clip.dim)
        if not isinstance(clip.reader, AttentionPool):  # past which nothing is direct
            self.straight = rows @ output_map(clip, clip.compute_dtype, centred=True)
        self.paths = path_factors(clip, layer).rows(neurons)

    def __call__(
        self, pooled: Pooled
    ) -> tuple[Float[Tensor, "images chosen dim"], Float[Tensor, "images chosen dim"]]:
        moved = (pooled.activations[self.layer] - self.held)[:, :, self.neurons]
        scale = pooled.scale[:, None, None]
        read = self.reader.direct(moved, pooled.post_token_sigma, pooled.place)
        direct = scale * read[:, :, None] * self.straight
        attention = torch.cat(list(pooled.attention_over_sigma.values()), dim=1)
        coefficients = torch.bmm(attention, moved.to(attention)).permute(2, 0, 1)
        return direct, scale * torch.bmm(coefficients, self.paths).transpose(0, 1)
