"""A run of the bench: every contestant on every network, and the scores of all of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..arguments import checked
from ..devices import undisturbed
from ..errors import SecondLensError
from ..intervals import of_mean, wilson
from ..progress import tracked
from .calibration import Calibration, calibrated
from .exam import exam
from .program import IDLE, Program
from .questions import Item, Question, answers, questions
from .registry import contestants, networks
from .settings import LEAST_NAMED, NAMED, TESTED

WRONG = 0.9
"""Value of an item below which it is listed as wrong."""
MOST_WRONG = 12
"""Items that are listed of one question and contestant."""
DRAWS = 500
"""Of bootstraps."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A mean over items, with its 95 % interval."""

    value: float
    low: float
    high: float
    items: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contestant on one question."""

    question: str
    contestant: str
    score: Score
    by_network: dict[str, Score]
    by_group: dict[str, Score]
    wrong: tuple[str, ...]
    """The worst items, each with its network."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Results:
    """All that a run found. The same seed gives the same numbers, but for `seconds`."""

    seed: int
    programs: tuple[Program, ...]
    rows: tuple[Row, ...]
    calibrations: dict[str, Calibration]
    """By contestant that gives names."""
    seconds: dict[str, float]
    """By contestant, over all networks; what several need counts for the first of them."""

    @property
    def units(self) -> int:
        """Of all networks."""
        return sum(len(each.units) for each in self.programs)

    @property
    def idle(self) -> int:
        """Units that respond to nothing."""
        return sum(unit.part in IDLE for each in self.programs for unit in each.units)

    def row(self, question: str, contestant: str) -> Row | None:
        """The row of a contestant, None if it has no answer."""
        found = [r for r in self.rows if (r.question, r.contestant) == (question, contestant)]
        return found[0] if found else None


@checked
@undisturbed
def run_bench(
    names: Sequence[str] | None = None,
    among: Sequence[str] | None = None,
    *,
    seed: int = 0,
    named: int = NAMED,
    tested: int = TESTED,
    progress: bool = False,
) -> Results:
    """Ask contestants everything about networks whose units are known.

    Parameters
    ----------
    names
        Networks; by default all that are registered.
    among
        Contestants; by default all that are registered.
    seed
        Of pictures, directions of weights, and random answers.
    named, tested
        Pictures that names are looked for in, and of all other questions.
    progress
        Show a progress bar.

    Raises
    ------
    SecondLensError
        No such network or contestant, none at all, or too few pictures.
    """
    chosen = [networks[each] for each in (networks.names if names is None else names)]
    asked = [contestants[each] for each in (contestants.names if among is None else among)]
    if not chosen or not asked:
        raise SecondLensError("a bench needs networks and contestants: name at least one of each")
    if named < LEAST_NAMED or tested < 2:
        raise SecondLensError(
            f"{named} pictures to name on and {tested} to test on are too few: give at least "
            f"{LEAST_NAMED} and 2"
        )
    items: dict[tuple[str, str], dict[str, list[Item]]] = {}
    claims: dict[str, dict[str, list[tuple[float, bool]]]] = {}
    seconds = {each.name: 0.0 for each in asked}
    programs = []
    for network in tracked(chosen, "networks", progress, len(chosen)):
        one = exam(network(), seed, named=named, tested=tested)
        programs.append(one.program)
        for contestant in asked:
            said = answers(contestant(), one)
            seconds[contestant.name] += said.seconds
            for each in questions:
                found = each().of(one, said)
                if found:
                    own = items.setdefault((each.name, contestant.name), {})
                    own[network.name] = found
            if said.names is not None:
                claims.setdefault(contestant.name, {})[network.name] = [
                    (claim.evidence, claim.feature in planted)
                    for some, planted in zip(said.names, one.planted, strict=True)
                    for claim in some
                ]
    rows = tuple(
        _row(each.name, contestant.name, each(), items[each.name, contestant.name])
        for each in questions
        for contestant in asked
        if (each.name, contestant.name) in items
    )
    sure = {name: calibrated(own) for name, own in claims.items()}
    return Results(
        seed=seed,
        programs=tuple(programs),
        rows=rows,
        calibrations={name: each for name, each in sure.items() if each is not None},
        seconds=seconds,
    )


def _row(name: str, contestant: str, asked: Question, items: dict[str, list[Item]]) -> Row:
    every = [item for some in items.values() for item in some]
    worst = sorted(
        (item.value, f"{network}: {item.what}")
        for network, some in items.items()
        for item in some
        if item.value < WRONG
    )
    groups = {group: [i for i in every if i.group == group] for group in _groups(every)}
    return Row(
        question=name,
        contestant=contestant,
        score=_score(every, asked),
        by_network={network: _score(some, asked) for network, some in items.items()},
        by_group={group: _score(some, asked) for group, some in groups.items()},
        wrong=tuple(what for _, what in worst[:MOST_WRONG]),
    )


def _groups(items: list[Item]) -> list[str]:
    return list(dict.fromkeys(item.group for item in items if item.group))


def _score(items: list[Item], asked: Question) -> Score:
    values = np.array([item.value for item in items])
    if asked.kind == "share":
        low, high = wilson(int(values.sum()), len(values))
    else:
        low, high = of_mean(values, DRAWS)
    return Score(value=float(values.mean()), low=low, high=high, items=len(values))


def as_document(results: Results) -> dict[str, Any]:
    """All that a run found, as JSON holds it: the same for the same seed, so without the time."""
    return {
        "seed": results.seed,
        "networks": {
            program.name: {
                "units": [asdict(unit) for unit in program.units],
                "edges": sorted(program.edges),
                "words": list(program.words),
            }
            for program in results.programs
        },
        "units": results.units,
        "idle": results.idle,
        "scores": [asdict(row) for row in results.rows],
        "calibration": {
            name: {
                "names": len(each.true),
                "stated": float(np.mean(each.stated)),
                "true": float(np.mean(each.true)),
                "gap": each.gap,
                "error": each.error,
            }
            for name, each in results.calibrations.items()
        },
    }
