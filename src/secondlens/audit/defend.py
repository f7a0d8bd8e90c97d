"""Cut what the audit found: which neurons, how far, and what it costs.

One half of some labelled pictures decides, the other half measures. Neurons are ranked by what
their second-order effects do to the margin between the true class and its strongest rival, which is
linear in them. How many are cut, and how strongly, is what helps most where cues mislead and costs
little where they do not; plain alternatives get the same choices.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.progress import track
from torch import Tensor

from ..capture import Capture
from ..classify import Labelled
from ..clip.view import Clip
from ..errors import SecondLensError
from ..images import Reader
from ..lens import Lens
from ..texts import Vocabulary
from .audit import Audit
from .cut import GroupEffects, Neuron
from .defence import OURS, Defence
from .harm import harm_of
from .trial import BEFORE, Point, Trial, Way

COUNTS = (8, 16, 32, 64, 128, 256, 512)
"""Neurons to cut, tried one after another."""
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""What effects minus their means are multiplied with before they are subtracted: 1 replaces effects
by their mean, more makes up for what else carries the cue."""
COST = 0.01
"""Of the accuracy on usual pictures, that a defence may cost, with a confidence of 97.5 %."""

RANDOM, PROJECTED = "random neurons", "text projected out"


def defend(
    clip: Clip,
    lens: Lens,
    audit: Audit,
    usual: Labelled,
    unusual: Labelled,
    *,
    rivals: Sequence[int] | None = None,
    others: Mapping[str, Sequence[Neuron]] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> Defence:
    """Choose neurons of the audit's cues to cut, on one half of the pictures; measure on the other.

    Candidates are the neurons of cues that push some class, with an interval above 0. They are cut
    in the order of how much they harm the true class's margin, summed over both kinds of pictures.
    Beside them: random neurons; the cues' texts projected out of the embedding; and `others`.

    Parameters
    ----------
    clip, lens, audit
        A model, a lens fitted on it, and an audit of both.
    usual, unusual
        Labelled pictures with the classes of the audit: as they usually are, and with misleading
        cues. Even positions decide, odd ones measure.
    rivals
        The class that each unusual picture's cue belongs to.
    others
        More orders of neurons to cut, by name.
    seed
        Of the random neurons.

    Raises
    ------
    SecondLensError
        Another model's lens or audit, classes that differ, too few pictures or rivals, one that
        cannot be read, neurons that the lens does not have, or no cue to cut.
    """
    kinds = usual, unusual
    _check(clip, lens, audit, kinds, rivals)
    pushes = (audit.effect - audit.spread).nan_to_num(-1.0) > 0
    guilty = pushes.any(dim=0).nonzero()[:, 0].tolist()
    candidates = sorted({n for cue in guilty for n in audit.neurons[cue]})
    if not candidates:
        raise SecondLensError("the audit found no cue that pushes a class: there is nothing to cut")
    if missing := {layer for layer, _ in candidates} - set(lens.layers):
        raise SecondLensError(
            f"the audit has neurons of layer {min(missing)}, which is not in this lens: give the "
            "lens of the audit"
        )
    classifier = usual.classes.embed(clip)
    harm = harm_of(clip, lens, classifier, kinds, batch_size, progress)
    generator = torch.Generator().manual_seed(seed)
    every = [(layer, n) for layer in lens.layers for n in range(clip.neurons)]
    orders: dict[str, Sequence[Neuron]] = {
        OURS: sorted(candidates, key=lambda each: -harm[each]),
        RANDOM: [every[i] for i in torch.randperm(len(every), generator=generator)],
        **(others or {}),
    }
    cues = Vocabulary(
        name="cues",
        labels=tuple(audit.cues[cue] for cue in guilty),
        prompts=tuple(audit.prompts[cue] for cue in guilty),
    )
    groups = {
        (method, count): order[:count]
        for method, order in orders.items()
        for count in _counts(order)
    }
    measured = [_removed(clip, lens, each, groups, batch_size, progress) for each in kinds]
    mean = measured[0][0][::2].mean(0)
    for embeddings, removal in measured:
        removal[PROJECTED, len(cues)] = _projected(clip, embeddings - mean, classifier, cues)
    ways = measured[0][1]
    trial = Trial(classifier, [m[0] for m in measured], [m[1] for m in measured], kinds, rivals)
    points = tuple(
        trial.point(method, count, strength) for method, count in ways for strength in STRENGTHS
    )
    before = trial.point(*BEFORE)
    results = tuple(
        trial.result(_best([*(p for p in points if p.method == method), before]))
        for method in [*orders, PROJECTED]
    )
    chosen = results[0].point
    return Defence(
        neurons=tuple(orders[OURS][: chosen.count]),
        strength=chosen.strength,
        before=before,
        results=results,
        points=points,
    )


def _check(
    clip: Clip,
    lens: Lens,
    audit: Audit,
    kinds: Sequence[Labelled],
    rivals: Sequence[int] | None,
) -> None:
    lens.check_model(clip)
    if audit.model["weights"] != clip.weights_hash:
        raise SecondLensError(f"this audit is of another model than {clip.name}: audit it first")
    for pictures in kinds:
        if pictures.classes.labels != audit.classes:
            raise SecondLensError(
                f"the classes of {pictures.name} are not those of the audit: give the same ones"
            )
        if len(pictures) < 4:
            raise SecondLensError(f"{pictures.name} has {len(pictures)} pictures: give at least 4")
    if rivals is not None and len(rivals) != len(kinds[1]):
        raise SecondLensError(
            f"there are {len(kinds[1])} unusual pictures and {len(rivals)} rivals: give as many"
        )


def _counts(order: Sequence[Neuron]) -> list[int]:
    """How many of an order to cut: all of one that is shorter than the least count."""
    return [count for count in COUNTS if count <= len(order)] or [len(order)]


def _best(points: Sequence[Point]) -> Point:
    """The best where cues mislead, of those that cost little, by the half that decides."""
    allowed = [point for point in points if point.chosen_cost <= COST]
    return max(allowed, key=lambda point: (point.chosen_unusual, point.chosen_usual))


@torch.no_grad()
def _removed(
    clip: Clip,
    lens: Lens,
    pictures: Labelled,
    groups: Mapping[Way, Sequence[Neuron]],
    batch_size: int,
    progress: bool,
) -> tuple[Float[Tensor, "images dim"], dict[Way, Float[Tensor, "images dim"]]]:
    """Embeddings, and what cutting each group takes out of them."""
    effects = GroupEffects(clip, lens, list(groups.values()))
    reader = Reader(source=pictures.source, clip=clip, batch_size=batch_size)
    embeddings, removed = [], []
    with Capture(clip, lens.layers) as capture:
        for batch in track(reader, "cuts", len(reader)) if progress else reader:
            representation = clip.encode_image(batch.pixels)
            embeddings.append(F.normalize(representation.to(clip.compute_dtype), dim=-1))
            removed.append(effects(capture.pool(representation)))
    reader.check_read()
    return torch.cat(embeddings), dict(zip(groups, torch.cat(removed).unbind(1), strict=True))


def _projected(
    clip: Clip,
    centred: Float[Tensor, "images dim"],
    classifier: Float[Tensor, "classes dim"],
    cues: Vocabulary,
) -> Float[Tensor, "images dim"]:
    """What of embeddings lies along the texts of the cues, mean class subtracted.

    Embeddings are centred on the mean of the usual pictures that decide.
    """
    rows = cues.embed(clip) - classifier.mean(0)
    basis = torch.linalg.qr(rows.T).Q
    along: Tensor = centred @ basis @ basis.T
    return along
