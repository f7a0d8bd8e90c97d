"""Cut what the audit found: which neurons, how far, and what it costs.

One half of some labelled pictures decides, the other half measures. Neurons are ranked by what
their second-order effects do to the margin between the true class and its strongest rival, which is
linear in them. How many are cut, and how strongly, is what helps most where cues mislead and costs
little where they do not; plain alternatives get the same choices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...arguments import checked
from ...data.labelled import Labelled
from ...data.reader import Reader
from ...data.vocabularies import Vocabulary
from ...devices import undisturbed, wide
from ...effects.ablated_runs import indirect
from ...effects.capture import Pooled
from ...effects.streaming import stream
from ...effects.value_paths import path_factors
from ...errors import SecondLensError
from ...intervals import of_mean
from ...lens.lens import Lens
from ...models.view import Clip
from ...storage.files import save_json, whole
from ...storage.validation import Position
from .ablated_clip import AblatedClip, GroupEffects, LayerNeuron, by_layer
from .audits import Audit

Way = tuple[str, int]
"""A method of cutting, and how much it cuts."""

BEFORE = ("nothing", 0, 0.0)
"""Method, count and strength of leaving the model alone."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one way of cutting does, in shares; on the half that decides, then on the other."""

    method: str
    count: Position
    """Of neurons, or of text directions."""
    strength: float
    chosen_usual: float
    chosen_cost: float
    """What it may cost on usual pictures: the far end of the 95 % interval of the change."""
    chosen_unusual: float
    usual: float
    unusual: float
    """Accuracy where cues mislead."""
    fooled: float
    """Share of unusual pictures on which the class that the cue belongs to beats the true one; NaN
    if nobody said which class that is."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The way of cutting that a method chose, measured on the other half."""

    point: Point
    usual_change: tuple[float, float, float]
    """Of the accuracy, with its 95 % interval over pictures; so are the next two."""
    unusual_change: tuple[float, float, float]
    fooled_change: tuple[float, float, float]


class Tradeoff:
    """Accuracies of every way of cutting, from embeddings and what is subtracted from them."""

    def __init__(
        self,
        classifier: Float[Tensor, "classes dim"],
        embeddings: Sequence[Tensor],
        removals: Sequence[Mapping[Way, Tensor]],
        pictures: Sequence[Labelled],
        rivals: Sequence[int] | None,
    ) -> None:
        self.classifier, self.embeddings, self.removals = classifier, embeddings, removals
        self.labels = [torch.tensor(each.labels, device=classifier.device) for each in pictures]
        self.rivals = None if rivals is None else torch.tensor(rivals, device=classifier.device)

    def _scores(self, kind: int, method: str, count: int, strength: float) -> Tensor:
        embedding = self.embeddings[kind]
        if strength:
            embedding = embedding - strength * self.removals[kind][method, count]
        return embedding @ self.classifier.T

    def outcomes(
        self, method: str, count: int, strength: float
    ) -> tuple[Bool[Tensor, " usual"], Bool[Tensor, " unusual"], Bool[Tensor, " unusual"]]:
        """Whether each usual and unusual picture is right, and whether its rival wins."""
        usual, unusual = (self._scores(kind, method, count, strength) for kind in (0, 1))
        true = unusual.gather(1, self.labels[1][:, None])
        fooled = torch.zeros_like(self.labels[1], dtype=torch.bool)
        if self.rivals is not None:
            fooled = (unusual.gather(1, self.rivals[:, None]) > true)[:, 0]
        right = [s.argmax(1) == y for s, y in zip((usual, unusual), self.labels, strict=True)]
        return right[0], right[1], fooled

    def point(self, method: str, count: int, strength: float) -> Point:
        """Shares on either half."""
        usual, unusual, fooled = self.outcomes(method, count, strength)
        before, _, _ = self.outcomes(*BEFORE)
        low, _ = of_mean((usual.float() - before.float())[::2].tolist())
        return Point(
            method=method,
            count=count,
            strength=strength,
            chosen_usual=_share(usual[::2]),
            chosen_cost=-low,
            chosen_unusual=_share(unusual[::2]),
            usual=_share(usual[1::2]),
            unusual=_share(unusual[1::2]),
            fooled=_share(fooled[1::2]) if self.rivals is not None else float("nan"),
        )

    def result(self, point: Point) -> Outcome:
        """Changes on the half that measures, picture by picture."""
        after = self.outcomes(point.method, point.count, point.strength)
        before = self.outcomes(*BEFORE)
        changes = []
        for new, old in zip(after, before, strict=True):
            difference = (new.float() - old.float())[1::2].tolist()
            changes.append((sum(difference) / len(difference), *of_mean(difference)))
        if self.rivals is None:
            changes[2] = (float("nan"),) * 3
        return Outcome(
            point=point,
            usual_change=changes[0],
            unusual_change=changes[1],
            fooled_change=changes[2],
        )


def _share(right: Bool[Tensor, " images"]) -> float:
    return float(right.float().mean())


OURS = "neurons of the cues"
"""The method whose choice is the defence."""


@dataclass(frozen=True, kw_only=True)
class Defence:
    """What was chosen, and everything that was tried."""

    neurons: tuple[LayerNeuron, ...]
    strength: float
    before: Point
    results: tuple[Outcome, ...]
    """By method, ours first."""
    points: tuple[Point, ...]
    weights_hash: str = ""
    """`Clip.weights_hash` of the model; empty in what version 0.1 wrote."""

    def __post_init__(self) -> None:
        if len(self.methods) != len(self.results):
            raise ValueError("it has no result of some method, or more than one")

    @property
    def methods(self) -> list[str]:
        """In the order of the results."""
        return list(dict.fromkeys([OURS, *(point.method for point in self.points)]))

    def cut(self, clip: Clip, lens: Lens) -> AblatedClip:
        """The defended image encoder, at the cost of a forward pass."""
        return AblatedClip(clip, lens, by_layer(self.neurons), self.strength)

    def save(self, folder: str | Path) -> None:
        """Write `defence.json` and the trade-off curves, `defence.png`, into a folder."""
        plot(self, Path(folder) / "defence.png")
        save_json(Path(folder) / "defence.json", asdict(self))


def plot(defence: Defence, path: Path) -> None:
    """Accuracy where cues mislead against usual accuracy: all that was tried, on the half that
    measures, and what each method chose."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for i, (method, result) in enumerate(zip(defence.methods, defence.results, strict=True)):
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
    with whole(path) as partial:
        figure.savefig(partial, dpi=130, format="png")


def summary(defence: Defence) -> list[dict[str, Any]]:
    """What was chosen and what it did, one row for each method."""
    return [
        {"method": method, **asdict(result)}
        for method, result in zip(defence.methods, defence.results, strict=True)
    ]


@torch.no_grad()
def rival_margins(
    clip: Clip,
    lens: Lens,
    classifier: Float[Tensor, "classes dim"],
    kinds: Sequence[Labelled],
    batch_size: int | None,
    progress: bool,
) -> dict[LayerNeuron, float]:
    """How much each neuron favours the strongest rival over the true class, on the half that
    decides: its mean over usual pictures plus that over unusual ones."""
    factors = {layer: path_factors(clip, layer) for layer in lens.layers}
    total = {layer: classifier.new_zeros(clip.neurons) for layer in lens.layers}
    for pictures in kinds:
        half = range(0, len(pictures), 2)
        reader = Reader(source=pictures.source, clip=clip, batch_size=batch_size, positions=half)
        for batch in stream(clip, reader, lens.layers, what="harm", progress=progress):
            labels = torch.tensor([pictures.labels[p] for p in batch.positions])
            scores = batch.embedding @ classifier.T
            towards = _rivals(scores, labels.to(scores.device), classifier)
            for layer, own in factors.items():
                found = _products(batch.pooled, layer, own.inner, own.outer, towards)
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
) -> list[LayerNeuron]:
    """All neurons in the order of their harm by indirect effects, as an alternative to compare
    with: over so many pictures of each kind, of the half that decides.

    The network runs once for each neuron and picture.

    Raises
    ------
    SecondLensError
        None of these pictures can be read.
    """
    harm: dict[LayerNeuron, float] = {}
    for pictures in kinds:
        classifier = pictures.classes.embed(clip)
        half = range(0, len(pictures), 2)[:images]
        reader = Reader(source=pictures.source, clip=clip, batch_size=images, positions=half)
        if (batch := next(iter(reader), None)) is None:
            raise SecondLensError(
                f"none of the first {len(half)} pictures that decide of {pictures.name} can be "
                "read: take more"
            )
        pixels = batch.on(clip.device)
        scores = F.normalize(clip.encode_image(pixels).to(classifier), dim=-1) @ classifier.T
        labels = torch.tensor([pictures.labels[p] for p in batch.positions], device=scores.device)
        towards = _rivals(scores, labels, classifier)
        for layer in lens.layers:
            mean, every = lens[layer].activation_mean, range(clip.neurons)
            effects = indirect(clip, pixels, layer, every, mean, progress=progress)
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


COUNTS = (8, 16, 32, 64, 128, 256, 512)
"""Neurons to cut, tried one after another."""
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""What effects minus their means are multiplied with before they are subtracted: 1 replaces effects
by their mean, more makes up for what else carries the cue."""
COST = 0.01
"""Of the accuracy on usual pictures, that a defence may cost, with a confidence of 97.5 %."""

RANDOM, PROJECTED = "random neurons", "text projected out"


@checked
@undisturbed
def defend(
    clip: Clip,
    lens: Lens,
    audit: Audit,
    usual: Labelled,
    unusual: Labelled,
    *,
    rivals: Sequence[int] | None = None,
    others: Mapping[str, Sequence[LayerNeuron]] | None = None,
    batch_size: int | None = None,
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
        Labelled pictures: as they usually are, and with misleading cues. Their classes are matched
        by name, in whatever order; those of the usual pictures, which must be in the audit, are
        what is chosen from. Even positions decide, odd ones measure.
    rivals
        The class that each unusual picture's cue belongs to, as a row of the classes of `unusual`.
        Without it, nobody can tell which pictures are fooled, and what says so is NaN.
    others
        More orders of neurons to cut, by name.
    seed
        Of the random neurons.

    Raises
    ------
    SecondLensError
        Another model's lens or audit, a class that is not known, too few pictures or rivals, one
        that cannot be read, neurons that the lens does not have, or no cue to cut.
    """
    _check_known(usual, audit.classes, "the audit")
    unusual, rivals = _in_classes_of(usual, unusual, rivals)
    kinds = usual, unusual
    _check(clip, lens, audit, kinds, rivals)
    rows = [audit.classes.index(name) for name in usual.classes.labels]
    pushes = (audit.effect - audit.spread)[rows].nan_to_num(-1.0) > 0
    guilty = pushes.any(dim=0).nonzero()[:, 0].tolist()
    candidates = sorted({n for cue in guilty for n in audit.neurons[cue]})
    if not candidates:
        raise SecondLensError("the audit found no cue that pushes a class: there is nothing to cut")
    if missing := {layer for layer, _ in candidates} - set(lens.layers):
        raise SecondLensError(
            f"the audit has neurons of layer {min(missing)}, which is not in this lens: give the "
            "lens of the audit"
        )
    if beyond := [(layer, n) for layer, n in candidates if not 0 <= n < clip.neurons]:
        layer, neuron = beyond[0]
        raise SecondLensError(
            f"the audit has neuron {neuron} of layer {layer}, which has {clip.neurons} neurons: "
            "give the lens of the audit"
        )
    classifier = usual.classes.embed(clip)
    harm = rival_margins(clip, lens, classifier, kinds, batch_size, progress)
    generator = torch.Generator().manual_seed(seed)
    every = [(layer, n) for layer in lens.layers for n in range(clip.neurons)]
    orders: dict[str, Sequence[LayerNeuron]] = {
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
    trial = Tradeoff(classifier, [m[0] for m in measured], [m[1] for m in measured], kinds, rivals)
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
        weights_hash=clip.weights_hash,
    )


def _check(
    clip: Clip,
    lens: Lens,
    audit: Audit,
    kinds: Sequence[Labelled],
    rivals: Sequence[int] | None,
) -> None:
    lens.check_model(clip)
    lens.check_value("a defence")
    if audit.model.get("weights") != clip.weights_hash:
        raise SecondLensError(f"this audit is of another model than {clip.name}: audit it first")
    for pictures in kinds:
        if len(pictures) < 4:
            raise SecondLensError(f"{pictures.name} has {len(pictures)} pictures: give at least 4")
    if rivals is not None and len(rivals) != len(kinds[1]):
        raise SecondLensError(
            f"there are {len(kinds[1])} unusual pictures and {len(rivals)} rivals: give as many"
        )


def _check_known(pictures: Labelled, known: Sequence[str], of: str) -> None:
    """Raise `SecondLensError` that names a class of some pictures which is not known elsewhere."""
    if missing := [name for name in pictures.classes.labels if name not in known]:
        raise SecondLensError(
            f"{pictures.name} has {len(missing)} classes that are not those of {of}, "
            f"{missing[0]!r} first, and classes are matched by name: name them alike, or audit "
            "these pictures first"
        )


def _in_classes_of(
    usual: Labelled, unusual: Labelled, rivals: Sequence[int] | None
) -> tuple[Labelled, Sequence[int] | None]:
    """The unusual pictures and their rivals, with rows of the classes of the usual ones."""
    names, known = unusual.classes.labels, usual.classes.labels
    if names == known:
        return unusual, rivals
    _check_known(unusual, known, usual.name)
    row = [known.index(name) for name in names]
    labels = tuple(row[label] for label in unusual.labels)
    rivals = None if rivals is None else [row[rival] for rival in rivals]
    return replace(unusual, labels=labels, classes=usual.classes), rivals


def _counts(order: Sequence[LayerNeuron]) -> list[int]:
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
    groups: Mapping[Way, Sequence[LayerNeuron]],
    batch_size: int | None,
    progress: bool,
) -> tuple[Float[Tensor, "images dim"], dict[Way, Float[Tensor, "images dim"]]]:
    """Embeddings, and what cutting each group takes out of them."""
    effects = GroupEffects(clip, lens, list(groups.values()))
    reader = Reader(source=pictures.source, clip=clip, batch_size=batch_size)
    embeddings, removed = [], []
    for batch in stream(clip, reader, lens.layers, what="cuts", progress=progress):
        embeddings.append(batch.embedding)
        removed.append(effects(batch.pooled))
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
    basis = torch.linalg.qr(wide(rows.T)).Q.to(rows)
    along: Tensor = centred @ basis @ basis.T
    return along
