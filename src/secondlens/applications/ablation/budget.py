"""The effect budget: how much of what a neuron does is direct, second-order, and neither.

A neuron's total effect is indirect: what changes in the representation when it is held at its mean
at every token. The direct and the second-order part are those of the same change, activation minus
mean. What they do not explain is the remainder: changed attention patterns and LayerNorm scales,
later MLPs, attention to attention. It is a part like the others, and always shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...arguments import checked
from ...data.reader import Batch, Reader, in_parts
from ...data.sources import as_source
from ...devices import undisturbed
from ...effects.ablated_runs import check_neurons, effects_of, stop_after
from ...effects.capture import Capture, Pooled
from ...effects.value_paths import output_map, path_factors
from ...errors import SecondLensError
from ...lens.lens import Lens
from ...models.view import Clip
from ...progress import bars

PARTS = ("direct", "second-order", "remainder")
TOTAL = "total"


@dataclass(frozen=True, kw_only=True, eq=False)
class Budget:
    """The parts of the total effects of some neurons of one layer, over a data set."""

    layer: int
    neurons: tuple[int, ...]
    images: int
    gram: Float[Tensor, "chosen 4 4"]
    """Mean over images of the inner products of direct, second-order, remainder and total."""

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
    def of_layer(self) -> Float[Tensor, "3"]:
        """Shares of all neurons together, each counting by the energy of its total effect."""
        whole = self.gram.sum(0)
        return whole[:3, 3] / whole[3, 3]


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
    progress
        Show a progress bar with the time left.

    Raises
    ------
    SecondLensError
        Another model's lens, no such layer or neuron, none at all, or no readable image.
    """
    lens.check_model(clip)
    clip.check_layer(layer)
    if not neurons:
        raise SecondLensError("no neurons have no effects: give at least one")
    check_neurons(clip, layer, neurons)
    held = lens[layer].activation_mean.to(clip.device)
    parts = _Split(clip, layer, list(neurons), held)
    reader = Reader(source=as_source(images), clip=clip, batch_size=batch_size, workers=workers)
    gram, count = torch.zeros((), device=clip.device), 0
    with bars(progress) as shown:
        bar = shown.add_task("effect budget", total=len(reader.source.ids) * len(neurons))

        def measured(batch: Batch) -> Tensor:
            # the hooks must be gone before the network is run on
            with Capture(clip, [layer], keep_activations=True) as capture:
                stopped = stop_after(clip, batch.on(clip.device), layer)
                pooled = capture.pool(stopped.representation)
            direct, second = parts(pooled)
            grams = []
            for some, total in effects_of(stopped, neurons, held):
                shown.advance(bar, total.shape[0] * total.shape[1])
                rest = total - direct[:, some] - second[:, some]
                rows = torch.stack([direct[:, some], second[:, some], rest, total], dim=2)
                grams.append(torch.einsum("bnpd,bnqd->npq", rows, rows))
            return torch.cat(grams)

        for batch, found in in_parts(reader, clip, measured):
            gram = gram + found
            count += len(batch.positions)
    if not count:
        raise SecondLensError("none of the pictures could be read")
    return Budget(layer=layer, neurons=tuple(neurons), images=count, gram=gram.cpu() / count)


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
        rows = clip.blocks[layer].neuron_rows.to(clip.compute_dtype)[neurons]
        self.straight = rows @ output_map(clip, clip.compute_dtype, centred=True)
        self.paths = path_factors(clip, layer).rows(neurons)

    def __call__(
        self, pooled: Pooled
    ) -> tuple[Float[Tensor, "images chosen dim"], Float[Tensor, "images chosen dim"]]:
        moved = (pooled.activations[self.layer] - self.held)[:, :, self.neurons]
        scale = pooled.scale[:, None, None]
        direct = scale * moved[:, 0, :, None] * self.straight
        attention = torch.cat(list(pooled.attention_over_sigma.values()), dim=1)
        coefficients = torch.bmm(attention, moved.to(attention)).permute(2, 0, 1)
        return direct, scale * torch.bmm(coefficients, self.paths).transpose(0, 1)
