"""What changed between a model and its edited or fine-tuned copy, on the same pictures.

Both have the same neurons, so each effect of one is compared with that of the other. A neuron has
moved as far as its second-order effect has, root mean square over pictures; which class it pulls
more than before is the change of the effect along that class, against the mean of the others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ...arguments import checked
from ...data.reader import Reader
from ...data.sources import as_source
from ...data.vocabularies import Vocabulary
from ...devices import undisturbed
from ...effects.capture import Capture, Pooled
from ...effects.streaming import stream
from ...effects.value_paths import PathFactors, chunks, path_factors
from ...errors import SecondLensError
from ...intervals import Z
from ...lens.layer import NeuronId
from ...models.view import Clip
from ...storage.files import save_json
from ..auditing.audits import margins

NEURONS_PER_CHUNK = 64
TOP_IMAGES = 8
"""Pictures that are kept of each neuron: those on which its effect has changed most."""


@dataclass(frozen=True, kw_only=True)
class Moved(NeuronId):
    """A neuron, and how far its effect has moved."""

    change: float
    """Root mean square of the change over pictures, in unit embeddings."""
    low: float
    """Its 95 % interval over pictures."""
    high: float
    before: float
    """Root mean square of the effect before."""
    images: tuple[str, ...]
    """Ids of the pictures on which it has moved most, the farthest first."""
    pulls: tuple[tuple[str, float, float], ...]
    """(class, change of the effect along it, half its 95 % interval): the class that gained most,
    and the one that lost most; empty without classes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Difference:
    """Two models on the same pictures. Tensors are on the CPU."""

    before: str
    after: str
    """Names of the models."""
    classes: tuple[str, ...]
    image_ids: tuple[str, ...]
    skipped: dict[str, str]
    """Why pictures are missing, by id."""
    agreement: float
    """Mean cosine of the two embeddings of a picture."""
    flipped: float
    """Share of pictures whose best class is another one; NaN without classes."""
    square: dict[int, Float[Tensor, " neurons"]]
    """Mean squared change of effects, by layer."""
    spread: dict[int, Float[Tensor, " neurons"]]
    """Half its 95 % interval over pictures."""
    energy: dict[int, Float[Tensor, " neurons"]]
    """Mean squared effect before."""
    pulls: dict[int, Float[Tensor, "neurons classes"]]
    """Mean change of effects along each class, against the mean of the others."""
    pull_spread: dict[int, Float[Tensor, "neurons classes"]]
    """Half its 95 % interval."""
    top_images: dict[int, Int[Tensor, "neurons top"]]
    """Positions in `image_ids` where a neuron has moved most, the farthest first."""

    def moved(self, count: int | None = None) -> list[Moved]:
        """Return neurons in the order of their change, the largest first."""
        places = [(layer, n) for layer, each in self.square.items() for n in range(len(each))]
        order = torch.cat([*self.square.values()]).argsort(descending=True, stable=True)
        return [self._moved(*places[i]) for i in order[:count].tolist()]

    def _moved(self, layer: int, neuron: int) -> Moved:
        square, spread = float(self.square[layer][neuron]), float(self.spread[layer][neuron])
        pulls = []
        if self.classes:
            own, half = self.pulls[layer][neuron], self.pull_spread[layer][neuron]
            ends = (int(own.argmax()), int(own.argmin()))
            pulls = [(self.classes[c], float(own[c]), float(half[c])) for c in ends]
        return Moved(
            layer=layer,
            neuron=neuron,
            change=square**0.5,
            low=max(0.0, square - spread) ** 0.5,
            high=(square + spread) ** 0.5,
            before=float(self.energy[layer][neuron]) ** 0.5,
            images=tuple(self.image_ids[i] for i in self.top_images[layer][neuron].tolist()),
            pulls=tuple(pulls),
        )

    def save(self, path: str | Path, count: int | None = None) -> None:
        """Write a JSON file with the neurons that moved most, by default all."""
        save_json(path, self.document(count))

    def document(self, count: int | None = None) -> dict[str, Any]:
        """What `save` writes."""
        return {
            "before": self.before,
            "after": self.after,
            "images": len(self.image_ids),
            "skipped": self.skipped,
            "agreement": self.agreement,
            "flipped": None if self.flipped != self.flipped else self.flipped,
            "layers": {
                str(layer): {
                    "change": float(each.mean()) ** 0.5,
                    "before": float(self.energy[layer].mean()) ** 0.5,
                }
                for layer, each in self.square.items()
            },
            "neurons": [vars(each) for each in self.moved(count)],
        }


@checked
@undisturbed
@torch.no_grad()
def diff(
    before: Clip,
    after: Clip,
    images: Any,
    layers: "Sequence[int] | Literal['all']" = "all",
    *,
    classes: Vocabulary | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Difference:
    """Compare the effects of all neurons of two models of one shape on the same pictures.

    Parameters
    ----------
    before, after
        A model, and its edited or fine-tuned copy. Pictures are prepared as the first one says.
    images
        What `fit` takes.
    layers
        MLP layers, or "all".
    classes
        Of a zero-shot classifier, whose texts each model embeds itself; the change of a pull is
        along those of the first.
    batch_size
        Images in a forward pass.

    Raises
    ------
    SecondLensError
        Models of two shapes, a single class, or no picture that can be read.
    """
    _check_shapes(before, after)
    if classes is not None and len(classes) < 2:
        raise SecondLensError("a classifier needs at least two classes: give more")
    chosen = before.chosen_layers(layers)
    rows = None if classes is None else [classes.embed(each) for each in (before, after)]
    along = before.projection.new_zeros(0, before.dim) if rows is None else margins(rows[0])
    along = along.to(before.compute_dtype)
    source = as_source(images)
    reader = Reader(source=source, clip=before, batch_size=batch_size)
    sums = {layer: _Sums(before, after, layer, along) for layer in chosen}
    positions: list[int] = []
    cosines, flips = [], []
    for batch in stream(before, reader, chosen, what="both models", progress=progress):
        with Capture(after, chosen) as capture:
            representation = after.encode_image(batch.batch.on(after.device))
            pooled = capture.pool(representation)
        start = len(positions)
        positions += batch.positions
        new = F.normalize(representation.to(batch.embedding), dim=-1)
        cosines.append((batch.embedding * new).sum(-1).cpu())
        if rows is not None:
            best = [
                (each @ own.to(each).T).argmax(1)
                for each, own in zip((batch.embedding, new), rows, strict=True)
            ]
            flips.append((best[0] != best[1]).cpu())
        for each in sums.values():
            each.see(batch.pooled, pooled, start)
    if not positions:
        raise SecondLensError("none of the pictures could be read")
    count = len(positions)
    return Difference(
        before=before.name,
        after=after.name,
        classes=() if classes is None else classes.labels,
        image_ids=tuple(source.ids[position] for position in positions),
        skipped=dict(reader.skipped),
        agreement=float(torch.cat(cosines).double().mean()),
        flipped=float(torch.cat(flips).double().mean()) if flips else float("nan"),
        square={layer: each.square.mean(count) for layer, each in sums.items()},
        spread={layer: each.square.spread(count) for layer, each in sums.items()},
        energy={layer: each.energy.cpu() / count for layer, each in sums.items()},
        pulls={layer: each.pull.mean(count) for layer, each in sums.items()},
        pull_spread={layer: each.pull.spread(count) for layer, each in sums.items()},
        top_images={layer: each.top.cpu() for layer, each in sums.items()},
    )


def _check_shapes(before: Clip, after: Clip) -> None:
    for what in ("layers", "neurons", "dim", "image_size", "tokens"):
        one, other = getattr(before, what), getattr(after, what)
        if one != other:
            raise SecondLensError(
                f"{before.name} and {after.name} differ in their {what.replace('_', ' ')}, {one} "
                f"and {other}: a model is compared with its edited or fine-tuned copy"
            )


class _Moments:
    """Sum and sum of squares over pictures."""

    def __init__(self, like: Tensor) -> None:
        self.total, self.squares = torch.zeros_like(like), torch.zeros_like(like)

    def see(self, some: slice, values: Float[Tensor, "images some *more"]) -> None:
        """A batch more, of some rows."""
        self.total[some] += values.sum(0)
        self.squares[some] += values.square().sum(0)

    def mean(self, count: int) -> Tensor:
        """Over pictures."""
        return self.total.cpu() / count

    def spread(self, count: int) -> Tensor:
        """Half the 95 % interval of the mean; NaN of a single picture."""
        variance = (self.squares.cpu() / count - self.mean(count).square()).clamp(min=0)
        return (
            Z * (variance / (count - 1)).sqrt()
            if count > 1
            else torch.full_like(variance, torch.nan)
        )


class _Sums:
    """What pictures tell of the neurons of a layer."""

    def __init__(
        self, before: Clip, after: Clip, layer: int, along: Float[Tensor, "classes dim"]
    ) -> None:
        self.layer, self.along = layer, along
        self._factors = [path_factors(each, layer) for each in (before, after)]
        none = along.new_zeros(before.neurons)
        self.square, self.energy = _Moments(none), none.clone()
        self.pull = _Moments(along.new_zeros(before.neurons, len(along)))
        self.top = torch.zeros(before.neurons, 0, dtype=torch.int64, device=along.device)
        self._sizes = along.new_zeros(before.neurons, 0)

    def see(self, before: Pooled, after: Pooled, start: int) -> None:
        """A batch more, whose pictures are numbered from `start`."""
        sizes = []
        for some, old, new in self._effects(before, after):
            change = new.to(old) - old
            size = change.square().sum(-1)
            sizes.append(size.T)
            self.square.see(some, size)
            self.energy[some] += old.square().sum((0, 2))
            self.pull.see(some, change @ self.along.T)
        batch = torch.cat(sizes)
        numbers = torch.arange(start, start + batch.shape[1], device=batch.device)
        both = torch.cat([self._sizes, batch], dim=1)
        places = torch.cat([self.top, numbers.expand(len(batch), -1)], dim=1)
        order = both.argsort(dim=1, descending=True, stable=True)[:, :TOP_IMAGES]
        self._sizes, self.top = both.gather(1, order), places.gather(1, order)

    def _effects(
        self, before: Pooled, after: Pooled
    ) -> Iterator[tuple[slice, Float[Tensor, "images some dim"], Float[Tensor, "images some dim"]]]:
        for some in chunks(self._factors[0].neurons, NEURONS_PER_CHUNK):
            old, new = (
                _effect(pooled, self.layer, factors, some)
                for pooled, factors in zip((before, after), self._factors, strict=True)
            )
            yield some, old, new


def _effect(
    pooled: Pooled, layer: int, factors: PathFactors, some: slice
) -> Float[Tensor, "images some dim"]:
    coefficients = pooled.coefficients[layer][:, :, some] * pooled.scale[:, None, None]
    effects: Tensor = torch.bmm(coefficients.permute(2, 0, 1), factors.rows(some)).transpose(0, 1)
    return effects
