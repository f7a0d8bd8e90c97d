"""Cut what the audit found: which neurons, how far, and what it costs.

One half of some labelled pictures decides, the other half measures. Neurons are ranked by what
their second-order effects do to the margin between the true class and its strongest rival, which is
linear in them. How many are cut, and how strongly, is what helps most where cues mislead and costs
little where they do not; plain alternatives get the same choices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor

from ..capture import Capture, Pooled
from ..classify import Labelled
from ..clip.view import Clip
from ..effects.indirect import indirect
from ..effects.paths import path_factors
from ..errors import SecondLensError
from ..images import Reader
from ..lens import Lens
from ..storage.files import save_json
from ..texts import Vocabulary
from .audit import Audit
from .cut import Cut, GroupEffects
from .trial import Point, Result, Trial

COUNTS = (8, 16, 32, 64, 128, 256, 512)
"""Neurons to cut, tried one after another."""
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""What effects minus their means are multiplied with before they are subtracted: 1 replaces effects
by their mean, more makes up for what else carries the cue."""
COST = 0.01
"""Of the accuracy on usual pictures, that a defence may cost, with a confidence of 97.5 %."""

Neuron = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Defence:
    """What was chosen, and everything that was tried."""

    neurons: tuple[Neuron, ...]
    strength: float
    before: Point
    results: tuple[Result, ...]
    """By method, ours first."""
    points: tuple[Point, ...]

    def cut(self, clip: Clip, lens: Lens) -> Cut:
        """The defended image encoder, at the cost of a forward pass."""
        return Cut(clip, lens, by_layer(self.neurons), self.strength)

    def save(self, folder: str | Path) -> None:
        """Write `defence.json` and the trade-off curves, `defence.png`, into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        plot(self, folder / "defence.png")
        save_json(folder / "defence.json", asdict(self))


def by_layer(neurons: Sequence[Neuron]) -> dict[int, list[int]]:
    """(layer, neuron) pairs as neurons by layer."""
    found: dict[int, list[int]] = {}
    for layer, n in neurons:
        found.setdefault(layer, []).append(n)
    return found


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
        Another model's lens or audit, classes that differ, too few pictures, or no cue to cut.
    """
    lens.check_model(clip)
    if audit.model["weights"] != clip.weights_hash:
        raise SecondLensError(f"this audit is of another model than {clip.name}: audit it first")
    for pictures in (usual, unusual):
        if pictures.classes.labels != audit.classes:
            raise SecondLensError(f"the classes of {pictures.name} are not those of the audit")
        if len(pictures) < 4:
            raise SecondLensError(f"{pictures.name} has {len(pictures)} pictures: give at least 4")
    if rivals is not None and len(rivals) != len(unusual):
        raise SecondLensError(f"there are {len(unusual)} unusual pictures and {len(rivals)} rivals")
    guilty = [cue for cue, low in enumerate((audit.effect - audit.spread).unbind(1)) if _any(low)]
    candidates = sorted({n for cue in guilty for n in audit.neurons[cue]})
    if not candidates:
        raise SecondLensError("the audit found no cue that pushes a class: there is nothing to cut")
    classifier = usual.classes.embed(clip)
    harm = _harm(clip, lens, classifier, (usual, unusual), batch_size, progress)
    generator = torch.Generator().manual_seed(seed)
    every = [(layer, n) for layer in lens.layers for n in range(clip.neurons)]
    orders: dict[str, Sequence[Neuron]] = {
        "neurons of the cues": sorted(candidates, key=lambda each: -harm[each]),
        "random neurons": [every[i] for i in torch.randperm(len(every), generator=generator)],
        **(others or {}),
    }
    groups = [
        (method, order[:count])
        for method, order in orders.items()
        for count in COUNTS
        if count <= len(order)
    ]
    measured = [
        _removed(clip, lens, pictures, [g for _, g in groups], batch_size, progress)
        for pictures in (usual, unusual)
    ]
    sizes = {(method, len(group)): i for i, (method, group) in enumerate(groups)}
    removals = [{key: r[:, i] for key, i in sizes.items()} for _, r in measured]
    cues = Vocabulary(
        name="cues",
        labels=tuple(audit.cues[cue] for cue in guilty),
        prompts=tuple(audit.prompts[cue] for cue in guilty),
    )
    for (embedding, _), removal in zip(measured, removals, strict=True):
        removal |= _projections(clip, embedding, measured[0][0], classifier, cues)
    trial = Trial(classifier, [m[0] for m in measured], removals, (usual, unusual), rivals)
    points = tuple(trial.point(*key, strength) for key in removals[0] for strength in STRENGTHS)
    before = trial.point("nothing", 0, 0.0)
    methods = ["neurons of the cues", *(m for m in orders if m != "neurons of the cues")]
    results = tuple(
        trial.result(_best(before, [p for p in points if p.method == method] + [before]))
        for method in [*methods, "text projected out"]
    )
    chosen = results[0].point
    return Defence(
        neurons=tuple(orders["neurons of the cues"][: chosen.count]),
        strength=chosen.strength,
        before=before,
        results=results,
        points=points,
    )


def _any(low: Float[Tensor, " classes"]) -> bool:
    return bool((low.nan_to_num(-1.0) > 0).any())


def _best(before: Point, points: Sequence[Point]) -> Point:
    """The best where cues mislead, of those that cost little, by the half that decides."""
    allowed = [p for p in points if p == before or p.chosen_cost <= COST]
    return max(allowed, key=lambda p: (p.chosen_unusual, p.chosen_usual))


@torch.no_grad()
def _harm(
    clip: Clip,
    lens: Lens,
    classifier: Float[Tensor, "classes dim"],
    kinds: Sequence[Labelled],
    batch_size: int,
    progress: bool,
) -> dict[Neuron, float]:
    """How much each neuron favours the strongest rival over the true class, on the half that
    decides: its mean over usual pictures plus that over unusual ones."""
    factors = {layer: path_factors(clip, layer) for layer in lens.layers}
    total = {layer: classifier.new_zeros(clip.neurons) for layer in lens.layers}
    for pictures in kinds:
        half = range(0, len(pictures), 2)
        reader = Reader(source=pictures.source, clip=clip, batch_size=batch_size, positions=half)
        with Capture(clip, lens.layers) as capture:
            for batch in track(reader, "harm", len(reader)) if progress else reader:
                representation = clip.encode_image(batch.pixels)
                pooled = capture.pool(representation)
                labels = torch.tensor([pictures.labels[p] for p in batch.positions])
                scores = F.normalize(representation.to(classifier), dim=-1) @ classifier.T
                towards = _rivals(scores, labels.to(scores.device), classifier)
                for layer, own in factors.items():
                    found = _products(pooled, layer, own.inner, own.outer, towards)
                    found -= towards @ lens[layer].mean.to(towards).T
                    total[layer] += found.sum(0) / len(half)
    return {
        (layer, n): value
        for layer, values in total.items()
        for n, value in enumerate(values.tolist())
    }


@torch.no_grad()
def indirect_order(
    clip: Clip, lens: Lens, kinds: Sequence[Labelled], images: int, *, progress: bool = False
) -> list[Neuron]:
    """All neurons in the order of their harm by indirect effects, as an alternative to compare
    with: over so many pictures of each kind, of the half that decides.

    The network runs once for each neuron and picture.
    """
    harm: dict[Neuron, float] = {}
    for pictures in kinds:
        classifier = pictures.classes.embed(clip)
        half = range(0, len(pictures), 2)[:images]
        reader = Reader(source=pictures.source, clip=clip, batch_size=images, positions=half)
        (batch,) = reader
        scores = F.normalize(clip.encode_image(batch.pixels).to(classifier), dim=-1) @ classifier.T
        labels = torch.tensor([pictures.labels[p] for p in batch.positions], device=scores.device)
        towards = _rivals(scores, labels, classifier)
        for layer in lens.layers:
            mean, every = lens[layer].activation_mean, range(clip.neurons)
            effects = indirect(clip, batch.pixels, layer, every, mean, progress=progress)
            for n, value in enumerate(torch.einsum("bnd,bd->n", effects, towards).tolist()):
                harm[layer, n] = harm.get((layer, n), 0.0) + value / len(labels)
    return sorted(harm, key=lambda each: -harm[each])


def _rivals(
    scores: Float[Tensor, "images classes"],
    labels: Int[Tensor, " images"],
    classifier: Float[Tensor, "classes dim"],
) -> Float[Tensor, "images dim"]:
    """The strongest wrong class minus the true one."""
    wrong = scores.scatter(1, labels[:, None], -torch.inf).argmax(1)
    return classifier[wrong] - classifier[labels]


def _products(
    pooled: Pooled, layer: int, inner: Tensor, outer: Tensor, vectors: Float[Tensor, "images dim"]
) -> Float[Tensor, "images neurons"]:
    """<effect, vector> of every neuron, with a vector for each image."""
    reached = torch.einsum("ked,bd->kbe", outer, vectors)
    weights = torch.bmm(reached, inner.mT).transpose(0, 1)
    return (pooled.coefficients[layer] * weights).sum(1) * pooled.scale[:, None]


@torch.no_grad()
def _removed(
    clip: Clip,
    lens: Lens,
    pictures: Labelled,
    groups: Sequence[Sequence[Neuron]],
    batch_size: int,
    progress: bool,
) -> tuple[Float[Tensor, "images dim"], Float[Tensor, "images groups dim"]]:
    """Embeddings, and what cutting each group takes out of them."""
    effects = GroupEffects(clip, lens, groups)
    reader = Reader(source=pictures.source, clip=clip, batch_size=batch_size)
    embeddings, removed = [], []
    with Capture(clip, lens.layers) as capture:
        for batch in track(reader, "cuts", len(reader)) if progress else reader:
            representation = clip.encode_image(batch.pixels)
            embeddings.append(F.normalize(representation.to(clip.compute_dtype), dim=-1))
            removed.append(effects(capture.pool(representation)))
    if reader.skipped:
        unreadable, reason = next(iter(reader.skipped.items()))
        raise SecondLensError(f"the picture {unreadable!r} cannot be read: {reason}")
    return torch.cat(embeddings), torch.cat(removed)


def _projections(
    clip: Clip,
    embedding: Float[Tensor, "images dim"],
    usual: Float[Tensor, "usual dim"],
    classifier: Float[Tensor, "classes dim"],
    cues: Vocabulary,
) -> dict[tuple[str, int], Tensor]:
    """What lies along the texts of the cues, around the mean of the usual pictures that decide."""
    rows = cues.embed(clip) - classifier.mean(0)
    basis = torch.linalg.qr(rows.T).Q
    centred = embedding - usual[::2].mean(0)
    return {("text projected out", len(cues)): centred @ basis @ basis.T}


def plot(defence: Defence, path: Path) -> None:
    """Accuracy where cues mislead against usual accuracy: all that was tried, on the half that
    measures, and what each method chose."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for i, result in enumerate(defence.results):
        method = ("neurons of the cues", *_methods(defence))[i]
        own = [p for p in defence.points if p.method == method]
        x, y = [100 * p.usual for p in own], [100 * p.unusual for p in own]
        axes.scatter(x, y, s=14, alpha=0.45, color=f"C{i}", label=method)
        chosen = result.point
        axes.scatter(
            [100 * chosen.usual], [100 * chosen.unusual], s=110, marker="*", color=f"C{i}",
            edgecolors="black", linewidths=0.6, zorder=3,
        )  # fmt: skip
    before = defence.before
    axes.axvline(100 * before.usual, color="gray", linewidth=0.8)
    axes.axhline(100 * before.unusual, color="gray", linewidth=0.8)
    axes.set_xlabel("accuracy on usual pictures, %")
    axes.set_ylabel("accuracy where cues mislead, %")
    axes.set_title("Cutting cues (lines: nothing cut; stars: chosen on the other half)", size=10)
    axes.legend(fontsize=8)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=130, format="png")
    partial.replace(path)


def _methods(defence: Defence) -> list[str]:
    """The alternatives, in the order of the results."""
    return [
        m for m in dict.fromkeys(p.method for p in defence.points) if m != "neurons of the cues"
    ]


def summary(defence: Defence) -> list[dict[str, Any]]:
    """What was chosen and what it did, one row for each method."""
    names = ["neurons of the cues", *_methods(defence)]
    return [
        {"method": name, **asdict(result)}
        for name, result in zip(names, defence.results, strict=True)
    ]
