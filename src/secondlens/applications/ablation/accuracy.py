"""Mean-ablation of effects (section 3 of arXiv 2406.04341, Figures 3, 4, 9 and 10, Table 1).

Effects are parts of the normalised embedding, so replacing some of them is a subtraction:
embedding - sum over the replaced neurons of (effect - replacement). What the classifier then says
shows what those effects were for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...arguments import checked
from ...data.labelled import check_labels, ranks
from ...data.reader import Batch, Reader, in_parts
from ...data.sources import as_source
from ...devices import undisturbed
from ...effects.ablated_runs import check_neurons
from ...errors import SecondLensError
from ...intervals import of_mean
from ...lens.lens import Lens
from ...models.view import Clip
from ...progress import tracked
from ...storage.checkpoints import load_tensors, save_tensors
from ...storage.validation import check_positions, reading
from .readings import Direct, Effects, Indirect, Read, Reading, SecondOrder, Together, Total

BASELINE = (-1, "nothing")
"""The key of what was left alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ablation:
    """How many classes scored above the true one, without ablation and with each kind of it."""

    ranks: dict[tuple[int, str], Int[Tensor, " images"]]
    """By (layer, kind), and `BASELINE`: 0 is right."""
    significant: dict[int, Int[Tensor, " images"]]
    """Neurons of each image whose effect is above their threshold, by layer."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Id -> reason, of images that could not be read and do not count, and of what was left out."""

    @property
    def layers(self) -> list[int]:
        """The layers that were ablated."""
        return sorted({layer for layer, _ in self.ranks} - {BASELINE[0]})

    @property
    def kinds(self) -> list[str]:
        """What was ablated, in order."""
        return list(dict.fromkeys(kind for _, kind in self.ranks if kind != BASELINE[1]))

    def correct(self, layer: int, kind: str, top: int = 1) -> np.ndarray:
        """Whether the true class is among the `top` best, for each image."""
        return (self.ranks[layer, kind] < top).cpu().numpy()

    def accuracy(self, layer: int, kind: str, top: int = 1) -> float:
        """Top-1, or top-`top`, as a share."""
        return float(self.correct(layer, kind, top).mean())

    def baseline(self, top: int = 1) -> float:
        """The accuracy with nothing ablated."""
        return self.accuracy(*BASELINE, top)

    def interval(self, layer: int, kind: str, top: int = 1) -> tuple[float, float]:
        """95 % bootstrap interval of an accuracy, over images."""
        return of_mean(self.correct(layer, kind, top))

    def cost(self, layer: int, kind: str, top: int = 1) -> tuple[float, tuple[float, float]]:
        """Baseline minus accuracy, on the same images, and its 95 % bootstrap interval."""
        paired = self.correct(*BASELINE, top).astype(float) - self.correct(layer, kind, top)
        return float(paired.mean()), of_mean(paired)

    def merge(self, other: "Ablation") -> "Ablation":
        """Both, where they are of the same images."""
        return Ablation(
            ranks={**self.ranks, **other.ranks},
            significant={**self.significant, **other.significant},
            skipped={**self.skipped, **other.skipped},
        )

    def save(self, path: Path) -> None:
        """Write it to a safetensors file."""
        ranked = {f"ranks/{layer}/{kind}": found for (layer, kind), found in self.ranks.items()}
        counts = {f"significant/{layer}": found for layer, found in self.significant.items()}
        save_tensors(path, ranked | counts)

    @classmethod
    def load(cls, path: Path) -> "Ablation":
        """What `save` wrote.

        Raises
        ------
        SecondLensError
            There is none, or it is damaged.
        """
        ranked, counts = {}, {}
        with reading(str(path), "remove it, then run again"):
            for key, tensor in load_tensors(path).items():
                what, layer, *kind = key.split("/", 2)
                if tensor.ndim != 1 or tensor.dtype != torch.int64:
                    raise ValueError(f"{key} is {tensor.dtype} {list(tensor.shape)}")
                check_positions(tensor, 2**24, key)
                if what == "ranks":
                    ranked[int(layer), kind[0]] = tensor
                else:
                    counts[int(layer)] = tensor
            if len({len(each) for each in (*ranked.values(), *counts.values())}) > 1:
                raise ValueError("it tells of different numbers of images")
        return cls(ranks=ranked, significant=counts)


class Tally:
    """Collects the ranks of true classes, batch by batch."""

    def __init__(self, labels: Sequence[int], classifier: Float[Tensor, "classes dim"]) -> None:
        self.labels, self.classifier = torch.tensor(labels), classifier
        self._ranks: dict[tuple[int, str], list[Tensor]] = {}
        self._significant: dict[int, list[Tensor]] = {}

    def see(self, key: tuple[int, str], embedding: Tensor, positions: Sequence[int]) -> None:
        """The embeddings of a batch after one kind of ablation."""
        labels = self.labels[positions].to(embedding.device)
        found = ranks(embedding, self.classifier.to(embedding), labels)
        self._ranks.setdefault(key, []).append(found.cpu())

    def see_significant(self, layer: int, counts: Int[Tensor, " images"]) -> None:
        """How many neurons are significant in each image of a batch."""
        self._significant.setdefault(layer, []).append(counts.cpu())

    def ablation(self) -> Ablation:
        """All that was seen.

        Raises
        ------
        SecondLensError
            Nothing.
        """
        if not self._ranks:
            raise SecondLensError("none of the pictures could be read")
        return Ablation(
            ranks={key: torch.cat(parts) for key, parts in self._ranks.items()},
            significant={layer: torch.cat(parts) for layer, parts in self._significant.items()},
        )


EFFECTS = ("second-order", "direct", "indirect", "together")
"""Whose effects: by which path a neuron's effect goes, or all neurons held at their means at once,
which is run and not added up. In place of second-order effects stand the total ones of a lens over
all paths."""

KINDS = ("all", "large", "small", "random", "first component", "unsigned")
"""What is ablated: the effects of all neurons; of those whose centred norm is above their
threshold; of the others; of equally many random ones as are above; and all effects replaced by
mean + their projection on the neuron's direction, or, literally as the paper has it, by mean + the
size of that projection times the direction."""

Recode = Callable[[Float[Tensor, "chosen dim"]], Mapping[str, Float[Tensor, "chosen dim"]]]
"""Vectors to put in place of directions, such as their sparse codes, by name."""


@checked
@undisturbed
@torch.no_grad()
def ablate(
    clip: Clip,
    lens: Lens,
    images: Any,
    labels: Sequence[int],
    classifier: Float[Tensor, "classes dim"],
    *,
    effect: str = "second-order",
    layers: Sequence[int] | None = None,
    neurons: Sequence[int] | None = None,
    recode: Recode | None = None,
    shrunk: bool = False,
    reference: Any = None,
    batch_size: int | None = None,
    workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> Ablation:
    """Accuracy of a zero-shot classifier with effects of one layer at a time ablated.

    Second-order effects of all layers take one pass over the images, and never exist outside it;
    so do total ones, and cost about 1.3 encodings for each axis of the lens.
    Other effects take a pass for each layer; indirect ones a run from the layer on for each image
    and neuron, see `indirect_seconds`.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it; the lens has means, directions and thresholds. With
        `Lens.over("all")`, total effects stand in place of second-order ones.
    images
        What `fit` takes.
    labels
        The class of each image, as a row of `classifier`.
    classifier
        Unit embeddings of the classes.
    effect
        One of `EFFECTS`.
    layers
        By default all layers of the lens.
    neurons
        Ablate only these; by default all.
    recode
        Makes vectors to replace directions by, such as `recode.TextCodes`: each of its names is
        one more kind of ablation.
    shrunk
        Project effects on the replaced direction and not on the neuron's own, as the published
        code does, which shrinks what a poor code gives back by the square of its length.
    reference
        Pictures for the statistics of direct and indirect effects, which a lens does not have: what
        `fit` takes, best those of the fit.
    seed
        For the random neurons.

    Raises
    ------
    SecondLensError
        Another model's lens, labels that do not fit the images or classes, no such effect, layer
        or neuron, none at all, no reference where one is needed, or no picture that can be read.
    """
    lens.check_model(clip)
    source = as_source(images)
    check_labels(labels, len(source.ids), len(classifier))
    chosen = lens.layers if layers is None else list(layers)
    if effect not in EFFECTS:
        raise SecondLensError(f"no effect {effect!r}: choose one of {', '.join(EFFECTS)}")
    if not chosen:
        raise SecondLensError("no layers leave nothing to ablate: give at least one")
    if neurons is not None:
        if not neurons:
            raise SecondLensError("no neurons leave nothing to ablate: give at least one")
        for layer in chosen:
            check_neurons(clip, layer, neurons)
    some = list(range(clip.neurons)) if neurons is None else list(neurons)
    if reference is not None:
        reference = as_source(reference)
    elif effect in ("direct", "indirect"):
        raise SecondLensError(
            f"{effect} effects need pictures for their means: give some as reference"
        )
    if effect == "together" and (neurons is not None or recode is not None):
        raise SecondLensError("all neurons at once leave none to choose or recode: drop these")
    reader = Reader(source=source, clip=clip, batch_size=batch_size, workers=workers)
    generator = torch.Generator().manual_seed(seed)
    tally = Tally(labels, classifier)
    wanted = _effects(
        clip, lens.to(clip.device), effect, chosen, some, reference, batch_size, workers
    )
    for number, effects in enumerate(wanted):
        instead: dict[int, Mapping[str, Tensor]] = {
            layer: {} if recode is None else recode(directions)
            for layer, directions in effects.directions.items()
        }
        effects.aim(
            {
                layer: torch.stack([own, *(instead[layer].values() if shrunk else ())], dim=1)
                for layer, own in effects.directions.items()
            }
        )
        with effects:
            batches = tracked(reader, f"{effect} ablations", progress)
            read = partial(_read, clip, effects)
            for batch, (embedding, readings) in in_parts(batches, clip, read):
                if number == 0:
                    tally.see(BASELINE, embedding, batch.positions)
                for layer, reading in readings.items():
                    if effect == "together":
                        tally.see((layer, "all"), embedding - reading.sum(None), batch.positions)
                        continue
                    large = reading.norms > effects.thresholds[layer]
                    tally.see_significant(layer, large.sum(1))
                    own = effects.directions[layer]
                    for kind, removed in removals(
                        reading, large, own, instead[layer], shrunk, generator
                    ):
                        tally.see((layer, kind), embedding - removed, batch.positions)
    return replace(tally.ablation(), skipped=dict(reader.skipped))


def _read(clip: Clip, effects: Effects, batch: Batch) -> Read:
    return effects.read(batch.on(clip.device))


def _effects(
    clip: Clip,
    lens: Lens,
    effect: str,
    layers: Sequence[int],
    neurons: Sequence[int],
    reference: Any,
    batch_size: int | None,
    workers: int,
) -> Iterator[Effects]:
    """What to read, one after another, each in a pass of its own over the images."""
    if effect == "second-order":
        fitted = {layer: lens[layer] for layer in layers}
        if lens.axes is not None:
            yield Total(clip, fitted, lens.axes, neurons)
        else:
            yield SecondOrder(clip, fitted, lens.convention, neurons)
        return
    for layer in layers:
        mean = lens[layer].activation_mean
        if effect == "together":
            yield Together(clip, layer, mean)
            continue
        reader = Reader(
            source=as_source(reference), clip=clip, batch_size=batch_size, workers=workers
        )
        pixels = (batch.on(clip.device) for batch in reader)
        if effect == "direct":
            yield Direct(clip, layer, neurons, pixels)
        else:
            yield Indirect(clip, layer, neurons, pixels, mean)


def removals(
    reading: Reading,
    large: Bool[Tensor, "images chosen"],
    directions: Float[Tensor, "chosen dim"],
    instead: Mapping[str, Float[Tensor, "chosen dim"]],
    shrunk: bool,
    generator: torch.Generator,
) -> Iterator[tuple[str, Float[Tensor, "images dim"]]]:
    """What leaves the embeddings, by kind."""
    everything, significant = reading.sum(None), reading.sum(large)
    yield "all", everything
    yield "large", significant
    yield "small", everything - significant
    # as many neurons of each image, and none of them chosen for its effect
    order = torch.randperm(large.shape[1], generator=generator)
    yield "random", reading.sum(large[:, order.to(large.device)])
    along = reading.along.unbind(-1)
    yield "first component", everything - along[0] @ directions
    yield "unsigned", everything - along[0].abs() @ directions
    for place, (name, vectors) in enumerate(instead.items(), start=1):
        yield name, everything - along[place if shrunk else 0] @ vectors
