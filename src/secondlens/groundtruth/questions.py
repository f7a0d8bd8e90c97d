"""Questions, and what each answer is worth, item by item.

An item is one unit, name, pair or picture, with a value of 0 to 1 (correlations: -1 to 1), a group
to tell apart in the table, and a word for the list of what a contestant gets wrong.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..registry import Registry
from .bounds import true_edges, true_places
from .contestants import Claim, Contestant
from .exam import Exam

QUIET = 0.01
"""Share of the network's largest true spread below which a claimed effect counts as none."""
DECLARED = 0.05
"""Share of a contestant's strongest edge in a network from which on it counts as an edge."""
HOT = 0.5
"""Share of a heat-map's largest value from which on a patch counts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What one contestant said of one network; None for what it has no answer to."""

    effects: Tensor | None = None
    classes: list[str] | None = None
    names: list[list[Claim]] | None = None
    edges: Tensor | None = None
    places: Tensor | None = None
    seconds: float = 0.0


def answers(contestant: Contestant, exam: Exam) -> Answers:
    """Ask a contestant everything that it answers; nobody has to find edges or places where there
    are none."""
    began = time.perf_counter()
    asked = {"effects", "classes", "names"}
    asked |= {"edges"} if exam.program.edges else set()
    asked |= {"places"} if exam.program.places else set()
    said: dict[str, Any] = {}
    for kind in ("effects", "classes", "names", "edges", "places"):
        answer: Callable[[Exam], Any] | None = getattr(contestant, kind)
        said[kind] = answer(exam) if answer is not None and kind in asked else None
    return Answers(**said, seconds=time.perf_counter() - began)


@dataclass(frozen=True, kw_only=True)
class Item:
    """What one answer is worth."""

    value: float
    group: str
    what: str


Items = list[Item] | None
"""None where a contestant does not answer, or the network has nothing to ask."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """How answers are scored."""

    of: Callable[[Exam, Answers], Items]
    kind: Literal["share", "mean"] = "share"
    """Shares of right items have Wilson's interval, means a bootstrap over items."""


questions: Registry[Question] = Registry("question", "questions")
"""By name, in the order of the table."""


def question(name: str, help: str, kind: Literal["share", "mean"] = "share") -> Callable[..., Any]:
    """A decorator: register a function that scores answers."""

    def decorate(of: Callable[[Exam, Answers], Items]) -> Callable[[Exam, Answers], Items]:
        questions.register(name, partial(Question, of=of, kind=kind), help=help)
        return of

    return decorate


@question("effect", "correlation with the ablation of one unit, over pictures", "mean")
def effect(exam: Exam, said: Answers) -> Items:
    """Along the word on which the unit truly acts most; 0 for a contestant that claims nothing."""
    if said.effects is None:
        return None
    return [
        Item(
            value=correlation(said.effects[:, word, number], exam.ablated[:, word, number]),
            group=unit.acts,
            what=unit.name,
        )
        for number, (unit, word) in enumerate(zip(exam.units, exam.main_words, strict=True))
        if unit.acts is not None
    ]


def correlation(claimed: Tensor, true: Tensor) -> float:
    """Pearson's, and 0 where what is claimed varies by rounding alone."""
    claimed, true = claimed.double() - claimed.mean(), true - true.mean()
    if claimed.norm() < 1e-9 * true.norm():
        return 0.0
    return float(claimed @ true / (claimed.norm() * true.norm()))


@question("no effect", "units without effect in total that are said to have none")
def no_effect(exam: Exam, said: Answers) -> Items:
    """Those that are undone, repaired, dead or always on."""
    if said.effects is None:
        return None
    bar = QUIET * exam.ablated.std(0).amax()
    spread = said.effects.std(0).amax(0)
    return [
        Item(value=float(spread[number] < bar), group=unit.part, what=unit.name)
        for number, unit in enumerate(exam.units)
        if unit.acts is None
    ]


@question("path", "units whose strongest class of paths is named")
def path(exam: Exam, said: Answers) -> Items:
    """Value, key, query, later MLP, norm, higher or direct."""
    if said.classes is None:
        return None
    return [
        Item(value=float(found == unit.acts), group=unit.acts, what=f"{unit.name}: {found}")
        for unit, found in zip(exam.units, said.classes, strict=True)
        if unit.acts is not None
    ]


@question("name precision", "names that are true")
def name_precision(exam: Exam, said: Answers) -> Items:
    """Of all names, those of idle units too, for which none is true."""
    if said.names is None:
        return None
    return [
        Item(
            value=float(claim.feature in planted),
            group=unit.part,
            what=f"{unit.name}: {claim.feature}",
        )
        for unit, claims, planted in zip(exam.units, said.names, exam.planted, strict=True)
        for claim in claims
    ]


@question("name recall", "planted features that are named")
def name_recall(exam: Exam, said: Answers) -> Items:
    """Of all units that respond to anything."""
    if said.names is None:
        return None
    return [
        Item(
            value=float(feature in {claim.feature for claim in claims}),
            group=unit.part,
            what=f"{unit.name}: {feature}",
        )
        for unit, claims, planted in zip(exam.units, said.names, exam.planted, strict=True)
        for feature in sorted(planted)
    ]


@question("two features", "polysemous units of which both features are named")
def two_features(exam: Exam, said: Answers) -> Items:
    """Units that fire on either of two unrelated features."""
    if said.names is None:
        return None
    return [
        Item(
            value=float(planted <= {claim.feature for claim in claims}),
            group=unit.part,
            what=unit.name,
        )
        for unit, claims, planted in zip(exam.units, said.names, exam.planted, strict=True)
        if unit.part == "polysemous"
    ]


@question("polysemy", "units rightly said to fire on one feature or on several")
def polysemy(exam: Exam, said: Answers) -> Items:
    """By the number of names, of units that respond to anything."""
    if said.names is None:
        return None
    return [
        Item(
            value=float((len({claim.feature for claim in claims}) > 1) == (len(planted) > 1)),
            group="several" if len(planted) > 1 else "one",
            what=unit.name,
        )
        for unit, claims, planted in zip(exam.units, said.names, exam.planted, strict=True)
        if planted
    ]


@question("idle unnamed", "dead and always-on units that get no name")
def idle_unnamed(exam: Exam, said: Answers) -> Items:
    """They respond to nothing."""
    if said.names is None:
        return None
    return [
        Item(value=float(not claims), group=unit.part, what=unit.name)
        for unit, claims, planted in zip(exam.units, said.names, exam.planted, strict=True)
        if not planted
    ]


@question("cue", "area under the ROC curve of units that carry the cue against others", "mean")
def cue(exam: Exam, said: Answers) -> Items:
    """Units are ranked by how much more they add to one class rather than the other where the cue
    is. An item is the share of other units that a carrier is ranked above."""
    if said.effects is None or exam.program.cue is None:
        return None
    feature, towards, away = exam.program.cue
    there = exam.testing.has(feature).any(1)
    margin = said.effects[:, exam.words.index(towards)] - said.effects[:, exam.words.index(away)]
    score = (margin[there].mean(0) - margin[~there].mean(0)).abs()
    carries = torch.tensor([unit.cue for unit in exam.units])
    others = score[~carries]
    return [
        Item(
            value=float((others < own).double().mean() + 0.5 * (others == own).double().mean()),
            group=unit.acts or "",
            what=unit.name,
        )
        for unit, own in zip(exam.units, score, strict=True)
        if unit.cue
    ]


def _declared(exam: Exam, said: Answers) -> Tensor:
    assert said.edges is not None
    strength = said.edges.abs() * _later(exam)
    return strength > DECLARED * strength.max()


def _later(exam: Exam) -> Tensor:
    """Pairs in which the second unit is in a later layer."""
    layers = torch.tensor([unit.layer for unit in exam.units])
    return layers[:, None] < layers


@question("edge precision", "edges said that there are")
def edge_precision(exam: Exam, said: Answers) -> Items:
    """Edges whose strength is above 5 % of the strongest in the network."""
    if said.edges is None:
        return None
    true = true_edges(exam)
    return [
        Item(value=float(true[n, m]), group="", what=f"{exam.units[n].name} → {exam.units[m].name}")
        for n, m in _declared(exam, said).nonzero().tolist()
    ]


@question("edge recall", "edges there that are said")
def edge_recall(exam: Exam, said: Answers) -> Items:
    """As `edge_precision`."""
    if said.edges is None:
        return None
    declared = _declared(exam, said)
    return [
        Item(
            value=float(declared[n, m]),
            group="",
            what=f"{exam.units[n].name} → {exam.units[m].name}",
        )
        for n, m in true_edges(exam).nonzero().tolist()
    ]


@question("place", "intersection over union of patches, mean of there and elsewhere", "mean")
def place(exam: Exam, said: Answers) -> Items:
    """Patches above half of a map's largest value, in pictures that hold the word's feature."""
    if said.places is None:
        return None
    true = true_places(exam) > 0
    largest = said.places.amax((2, 3), keepdim=True)
    found = (said.places > HOT * largest) & (largest > 0)
    both = _overlap(found, true) / 2 + _overlap(~found, ~true) / 2
    words = list(exam.program.places)
    return [
        Item(value=float(both[image, number]), group="", what=words[number])
        for image, number in true.any(3).any(2).nonzero().tolist()
    ]


def _overlap(found: Tensor, true: Tensor) -> Tensor:
    union = (found | true).sum((2, 3))
    return (found & true).sum((2, 3)).double() / union.clamp(min=1)
