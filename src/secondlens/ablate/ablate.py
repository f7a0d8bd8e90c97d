"""Mean-ablation of effects (section 3 of arXiv 2406.04341, Figures 3, 4, 9 and 10, Table 1).

Effects are parts of the normalised embedding, so replacing some of them is a subtraction:
embedding - sum over the replaced neurons of (effect - replacement). What the classifier then says
shows what those effects were for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from rich.progress import track
from torch import Tensor

from ..classify import check_labels
from ..clip.view import Clip
from ..effects.indirect import check_neurons
from ..errors import SecondLensError
from ..images import Reader, as_source
from ..lens import Lens
from .ablation import BASELINE, Ablation, Tally
from .readings import Effects, Reading, SecondOrder
from .reference import Direct, Indirect, Together

EFFECTS = ("second-order", "direct", "indirect", "together")
"""Whose effects: by which path a neuron's effect goes, or all neurons held at their means at once,
which is run and not added up."""

KINDS = ("all", "large", "small", "random", "first component", "unsigned")
"""What is ablated: the effects of all neurons; of those whose centred norm is above their
threshold; of the others; of equally many random ones as are above; and all effects replaced by
mean + their projection on the neuron's direction, or, literally as the paper has it, by mean + the
size of that projection times the direction."""

Recode = Callable[[Float[Tensor, "chosen dim"]], Mapping[str, Float[Tensor, "chosen dim"]]]
"""Vectors to put in place of directions, such as their sparse codes, by name."""


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
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> Ablation:
    """Accuracy of a zero-shot classifier with effects of one layer at a time ablated.

    Second-order effects of all layers take one pass over the images, and never exist outside it.
    Other effects take a pass for each layer; indirect ones a run from the layer on for each image
    and neuron, see `indirect_seconds`.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it; the lens has means, directions and thresholds.
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
    if effect in ("direct", "indirect") and reference is None:
        raise SecondLensError(
            f"{effect} effects need pictures for their means: give some as reference"
        )
    if effect == "together" and (neurons is not None or recode is not None):
        raise SecondLensError("all neurons at once leave none to choose or recode: drop these")
    reader = Reader(source=source, clip=clip, batch_size=batch_size, workers=workers)
    generator = torch.Generator().manual_seed(seed)
    tally = Tally(labels, classifier)
    wanted = _effects(clip, lens, effect, chosen, some, reference, batch_size, workers)
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
            for batch in track(reader, f"{effect} ablations", len(reader)) if progress else reader:
                embedding, readings = effects.read(batch.pixels)
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
    return tally.ablation()


def _effects(
    clip: Clip,
    lens: Lens,
    effect: str,
    layers: Sequence[int],
    neurons: Sequence[int],
    reference: Any,
    batch_size: int,
    workers: int,
) -> Iterator[Effects]:
    """What to read, one after another, each in a pass of its own over the images."""
    if effect == "second-order":
        fitted = {layer: lens[layer] for layer in layers}
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
        pixels = (batch.pixels for batch in reader)
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
