"""What a pass over images tells of an edit before anything is changed.

How a path's carrier is guessed from what its head reads, and which second-order effects the edit
is meant to take away.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...data.reader import Reader
from ...devices import CPU
from ...effects.capture import Pooled, norm_statistics
from ...effects.streaming import stream
from ...effects.value_paths import path_factors
from ...errors import SecondLensError
from ...models.readers import normalises
from ...models.view import Clip, hooked
from ..auditing.ablated_clip import LayerNeuron
from .edits import Edit

RIDGE = 1e-4
"""Of the mean variance of a token's channels, added to each: a fit over few tokens stays finite."""


def exact(tensor: Tensor) -> Tensor:
    """The same numbers in float64, on the CPU, which always has it."""
    return tensor.to(CPU).double()


@dataclass(eq=False)
class CarrierFit:
    """Least squares of p / sigma of some neurons on what a head reads, token by token.

    Sums over tokens, each weighted by how much the head looks at it; what is read has a 1 behind.
    """

    gram: Float[Tensor, "extended extended"]
    products: Float[Tensor, "extended neurons"]
    squares: Float[Tensor, " neurons"]

    @classmethod
    def none(cls, width: int, neurons: int) -> "CarrierFit":
        """Of no token yet."""
        zeros = partial(torch.zeros, dtype=torch.float64)
        size = width + 1
        return cls(gram=zeros(size, size), products=zeros(size, neurons), squares=zeros(neurons))

    def see(
        self,
        read: Float[Tensor, "images tokens width"],
        carrier: Float[Tensor, "images tokens neurons"],
        weights: Float[Tensor, "images tokens"],
    ) -> None:
        """A batch more."""
        extended = F.pad(read, (0, 1), value=1.0).flatten(0, 1)
        weighted = extended * weights.flatten()[:, None]
        carrier = carrier.flatten(0, 1)
        self.gram += weighted.T @ extended
        self.products += weighted.T @ carrier
        self.squares += weights.flatten() @ carrier.square()

    def solved(
        self,
    ) -> tuple[Float[Tensor, "width neurons"], Float[Tensor, " width"], Float[Tensor, " neurons"]]:
        """Coefficients, the mean of what is read, and the share of the variance that is told."""
        total = self.gram[-1, -1]
        mean, level = self.gram[:-1, -1] / total, self.products[-1] / total
        covariance = self.gram[:-1, :-1] / total - torch.outer(mean, mean)
        crossed = self.products[:-1] / total - torch.outer(mean, level)
        variance = self.squares / total - level.square()
        ridge = RIDGE * covariance.diagonal().mean()
        beta = torch.linalg.solve(covariance + ridge * torch.eye(len(mean)).to(mean), crossed)
        left = variance - 2 * (beta * crossed).sum(0) + (beta * (covariance @ beta)).sum(0)
        return beta, mean, 1 - left / variance.clamp(min=torch.finfo(variance.dtype).tiny)


class CutEffects:
    """Neurons and paths of one layer that an edit cuts, as heads carry them to the output."""

    def __init__(self, clip: Clip, changes: Edit, layer: int) -> None:
        place = [(j, h) for j, own in clip.attentions(layer).items() for h in range(own.heads)]
        self.layer = layer
        whole = [n for at, n in changes.neurons if at == layer]
        by_path = [path for path in changes.paths if path[0] == layer]
        self._chosen = [*whole, *dict.fromkeys(path[1] for path in by_path)]
        factors = path_factors(clip, layer)
        self._counts = factors.inner.new_zeros(len(place), len(self._chosen))
        self._counts[:, : len(whole)] = 1
        for _, n, j, h in by_path:
            self._counts[place.index((j, h)), self._chosen.index(n)] = 1
        self._inner = factors.inner[:, self._chosen]
        self._outer = factors.outer.flatten(0, 1)

    def removed(self, pooled: Pooled) -> Float[Tensor, "images dim"]:
        """Second-order effects that are cut, summed, for a batch of images."""
        coefficients = pooled.coefficients[self.layer][:, :, self._chosen] * self._counts
        heads = torch.bmm(coefficients.transpose(0, 1), self._inner).transpose(0, 1).flatten(1)
        return heads @ self._outer * pooled.scale[:, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What one pass over the images tells."""

    positions: list[int]
    """Of the images that were read, in the source."""
    carriers: dict[tuple[int, int], CarrierFit]
    """By block and head of the paths; neurons in the order of `by_head`."""
    plain: Float[Tensor, "images dim"]
    """Unit embeddings as they are."""
    without: Float[Tensor, "images dim"]
    """The same without the second-order effects that are cut, minus their mean over images."""


def by_head(changes: Edit) -> dict[tuple[int, int], list[LayerNeuron]]:
    """Neurons of the paths through each head, by block and head."""
    found: dict[tuple[int, int], list[LayerNeuron]] = {}
    for path in changes.paths:
        found.setdefault(path[2:], []).append(path[:2])
    return found


def see(clip: Clip, changes: Edit, reader: Reader, progress: bool) -> Seen:
    """Run the images through the model as it is.

    Raises
    ------
    SecondLensError
        None of the pictures can be read.
    """
    cuts = [CutEffects(clip, changes, at) for at in changes.layers if at <= clip.last_effect_layer]
    heads = by_head(changes)
    carriers = {head: CarrierFit.none(clip.width, len(own)) for head, own in heads.items()}
    # where no head reads what is changed, the pass is for the embeddings alone
    layers = [cut.layer for cut in cuts] or [clip.last_effect_layer]
    positions: list[int] = []
    plain, effects = [], []
    with _reading(clip, sorted({j for j, _ in heads})) as read:
        for batch in stream(
            *(clip, reader, layers), keep_activations=True, what="what is cut", progress=progress
        ):
            pooled = batch.pooled
            positions += batch.positions
            plain.append(batch.embedding.cpu())
            removed = torch.zeros_like(batch.embedding)
            for cut in cuts:
                removed += cut.removed(pooled)
            effects.append(removed.cpu())
            for (j, h), neurons in heads.items():
                normalised, sigma = read[j]
                own = [exact(pooled.activations[at][:, :, n]) for at, n in neurons]
                carrier = torch.stack(own, dim=-1) / sigma[..., None]
                looks = exact(pooled.attention_over_sigma[j][:, h]) * sigma
                carriers[j, h].see(normalised, carrier, looks)
    if not plain:
        raise SecondLensError("none of the pictures could be read")
    embeddings, away = torch.cat(plain), torch.cat(effects)
    return Seen(
        positions=positions,
        carriers=carriers,
        plain=embeddings,
        without=embeddings - changes.strength * (away - away.mean(0)),
    )


@contextmanager
def _reading(clip: Clip, blocks: list[int]) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """Inside the `with`, a pass leaves here what the heads of some blocks read of each token, and
    what the norm before them divided it by."""
    attentions = clip.attentions(0)
    read: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(j: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        own = attentions[j]
        tokens = clip.batch_major(own.read_from(inputs, output))
        sigma = tokens.new_ones(tokens.shape[:2])
        if normalises(module):
            states = clip.batch_major(inputs[0])
            _, sigma = norm_statistics(states, own.eps, clip.compute_dtype)
        read[j] = exact(tokens), exact(sigma)

    with hooked([(attentions[j].ln_1, partial(keep, j)) for j in blocks]):
        yield read
