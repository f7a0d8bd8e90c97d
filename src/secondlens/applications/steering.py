"""Steering: neurons turned up or down, or a direction pushed, and what the model then says.

The change is made in the network, after one block, and everything later sees it. What comes of it
is read as people use a CLIP: scores of texts for each picture, and the ranking of pictures for each
text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..arguments import checked
from ..data.reader import FEW_IMAGES, Batch, Reader, in_parts
from ..data.sources import as_source
from ..devices import undisturbed
from ..effects.ablated_runs import Stopped, check_neurons, stop_after
from ..effects.all_paths import chosen_directions
from ..errors import SecondLensError
from ..models.view import Clip
from ..progress import tracked


@dataclass(frozen=True, kw_only=True, eq=False)
class Steered:
    """Scores of pictures for some texts as they are, and steered by each amount.

    A score is the product of a picture's unit embedding with the text's, on the CPU.
    """

    image_ids: tuple[str, ...]
    skipped: dict[str, str]
    """Why pictures are missing, by id."""
    times: tuple[float, ...]
    before: Float[Tensor, "images texts"]
    after: Float[Tensor, "times images texts"]

    @property
    def change(self) -> Float[Tensor, "times texts"]:
        """Of the mean score over pictures."""
        return (self.after - self.before).mean(1)

    @property
    def flipped(self) -> Float[Tensor, " times"]:
        """Share of pictures whose best text is another one than before."""
        return (self.after.argmax(-1) != self.before.argmax(-1)).double().mean(-1)

    @property
    def places_before(self) -> Int[Tensor, "images texts"]:
        """Place of each picture in a text's ranking, from 0 for the best."""
        return places(self.before)

    @property
    def places_after(self) -> Int[Tensor, "times images texts"]:
        """As `places_before`, steered."""
        return torch.stack([places(each) for each in self.after])

    @property
    def rank_correlation(self) -> Float[Tensor, "times texts"]:
        """Spearman's, between a text's rankings before and after; 1 for a single picture."""
        count = len(self.before)
        moved = (self.places_after - self.places_before).double().square().sum(1)
        return 1 - 6 * moved / max(1, count * (count**2 - 1))


def places(scores: Float[Tensor, "images texts"]) -> Int[Tensor, "images texts"]:
    """Place of each picture in a text's ranking, from 0; of equal ones, the first comes first."""
    order = scores.argsort(dim=0, descending=True, stable=True)
    return order.argsort(dim=0)


@checked
@undisturbed
@torch.no_grad()
def steer(
    clip: Clip,
    images: Any,
    layer: int,
    times: Sequence[float],
    texts: Sequence[str] | None = None,
    *,
    neurons: Sequence[int] | None = None,
    direction: "Float[Tensor, ' width'] | None" = None,
    directions: Tensor | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Steered:
    """Scores and rankings of pictures with neurons, or a direction, taken some times.

    The network runs once for each picture, and from the layer on once more for each amount.

    Parameters
    ----------
    clip
        The model.
    images
        What `fit` takes.
    layer
        Any MLP layer.
    times
        Amounts. The activations of neurons become so many times what they are, at every token: 0
        turns them off, and 1 leaves them alone. Of a direction, so many times it is added to the
        residual stream after the block, at every token: 0 leaves it alone.
    texts
        Whose scores and rankings are wanted: their unit embeddings.
    neurons
        Which ones of the layer, all of them at once.
    direction
        Instead, what is added: a row as wide as the residual stream. To push a neuron where it is
        silent, give what it writes, `clip.blocks[layer].neuron_rows[neuron]`.
    directions
        Rows of the embedding in place of texts, as `paths` takes them.

    Raises
    ------
    SecondLensError
        Neurons and a direction, or neither; no such layer or neuron; a direction of another width;
        amounts that are missing or not finite; what `paths` says of texts and directions; or no
        picture that can be read.
    """
    clip.check_layer(layer, last=True)
    if not times or not all(map(torch.isfinite, torch.tensor([*times], dtype=torch.float64))):
        raise SecondLensError(f"amounts to steer by are finite numbers, such as 0 and 2: {times}")
    change = _change(clip, layer, neurons, direction)
    rows = chosen_directions(clip, texts, directions).to(clip.compute_dtype)
    source = as_source(images)
    reader = Reader(source=source, clip=clip, batch_size=batch_size or FEW_IMAGES, workers=workers)

    def scored(batch: Batch) -> tuple[Tensor, Tensor]:
        stopped = stop_after(clip, batch.on(clip.device), layer)
        amounts = [stopped.run_on(change(stopped, amount)) for amount in times]
        found = torch.stack([stopped.representation, *amounts]).to(rows)
        scores = (F.normalize(found, dim=-1) @ rows.T).cpu()
        return scores[0], scores[1:]

    positions: list[int] = []
    before, after = [], []
    for batch, found in in_parts(tracked(reader, "steering", progress), clip, scored):
        positions += batch.positions
        before.append(found[0])
        after.append(found[1])
    if not positions:
        raise SecondLensError("none of the pictures could be read")
    return Steered(
        image_ids=tuple(source.ids[position] for position in positions),
        skipped=dict(reader.skipped),
        times=tuple(float(amount) for amount in times),
        before=torch.cat(before),
        after=torch.cat(after, dim=1),
    )


def _change(
    clip: Clip, layer: int, neurons: Sequence[int] | None, direction: Tensor | None
) -> Callable[[Stopped, float], Float[Tensor, "images tokens width"]]:
    """What the stream after the layer becomes, by amount."""
    if (neurons is None) == (direction is None):
        raise SecondLensError("either neurons or a direction is steered: give one of the two")
    if direction is not None:
        if direction.shape != (clip.width,) or not direction.isfinite().all():
            raise SecondLensError(
                f"a direction to steer along is {clip.width} finite numbers, one for each channel "
                f"of the residual stream, and this is {list(direction.shape)}"
            )
        return lambda stopped, amount: stopped.stream + amount * direction.to(stopped.stream)
    if not neurons:
        raise SecondLensError("no neurons leave nothing to steer: give at least one")
    check_neurons(clip, layer, neurons)
    some = sorted(set(neurons))

    def scaled(stopped: Stopped, amount: float) -> Tensor:
        moved = (amount - 1) * stopped.activation[:, :, some] @ stopped.rows[some]
        return stopped.stream + moved.to(stopped.stream)

    return scaled
