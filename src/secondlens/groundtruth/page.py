"""The page of a run: scores, every network drawn, and what each method gets wrong."""

from dataclasses import dataclass
from pathlib import Path

from ..report.page import data_uri, write_page
from .pictures import draw
from .program import PARTS, Program, Unit
from .questions import questions
from .registry import contestants, networks
from .running import Results, Row

SHOWN = 4
"""Pictures of each network."""
ROW, COLUMN, BOX = 22, 235, 175
"""Pixels of a drawing: from box to box down and across, and the width of a box."""
ROUNDING = 1e-9
"""By which an interval may end below its own score."""
WORST = 6
"""Items that are listed of what a method gets wrong in one question."""
PATHS = ("value", "higher", "query", "key", "mlp", "norm", "direct")


@dataclass(frozen=True, kw_only=True)
class Box:
    """A feature, unit or word in a drawing."""

    x: int
    y: int
    text: str
    kind: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """What leads from one box to another."""

    x1: int
    y1: int
    x2: int
    y2: int
    kind: str


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A network: features at the left, units by layer, words at the right."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]


def drawing(program: Program) -> Drawing:
    """Where each box of a network stands."""
    layers = [layer for layer in range(program.layers) if program.of_layer(layer)]
    columns: list[list[tuple[str, str, str, str]]] = [
        [(f"feature {each}", each, "feature", f"{each} in a patch") for each in program.features],
        *(
            [(f"unit {u.name}", u.name, u.acts or "none", told(u)) for u in program.of_layer(layer)]
            for layer in layers
        ),
        [(f"word {each}", each, "word", f"the text {each}") for each in program.words],
    ]
    tallest = max(map(len, columns))
    boxes: dict[str, Box] = {}
    for number, column in enumerate(columns):
        top = ROW * (tallest - len(column)) // 2
        for place, (key, text, kind, title) in enumerate(column):
            boxes[key] = Box(
                x=number * COLUMN, y=top + place * ROW, text=text, kind=kind, title=title
            )
    lines = [
        *(
            _line(boxes[f"feature {feature}"], boxes[f"unit {unit.name}"], "reads")
            for unit in program.units
            # what is read by another unit first comes from there
            if not any(second == unit.name for _, second in program.edges)
            for feature in unit.features
        ),
        *(_line(boxes[f"unit {n}"], boxes[f"unit {m}"], "edge") for n, m in sorted(program.edges)),
        *(
            _line(boxes[f"unit {unit}"], boxes[f"word {word}"], boxes[f"unit {unit}"].kind)
            for unit, word in sorted(program.outputs)
        ),
    ]
    return Drawing(
        width=(len(columns) - 1) * COLUMN + BOX,
        height=ROW * tallest,
        boxes=tuple(boxes.values()),
        lines=tuple(lines),
    )


def _line(start: Box, end: Box, kind: str) -> Line:
    middle = ROW // 2 - 2
    return Line(x1=start.x + BOX, y1=start.y + middle, x2=end.x, y2=end.y + middle, kind=kind)


def told(unit: Unit) -> str:
    """A unit in a sentence."""
    acts = f"; its effect is of class {unit.acts}" if unit.acts else "; no effect in total"
    return f"layer {unit.layer}, {unit.part}: it {PARTS[unit.part]}{acts}"


def write_results(path: str | Path, results: Results) -> None:
    """Write one self-contained HTML file of a run.

    Parameters
    ----------
    path
        The file; one that exists is replaced once the new one is complete.
    results
        Of `run_bench`.
    """
    asked = [each.name for each in questions if any(r.question == each.name for r in results.rows)]
    methods = list(dict.fromkeys(row.contestant for row in results.rows))
    methods.sort(key=contestants.names.index)
    rows = {(row.question, row.contestant): row for row in results.rows}
    write_page(
        path,
        "groundtruth.html",
        title="Networks whose neurons are known",
        results=results,
        questions=[questions[name] for name in asked],
        methods=[contestants[name] for name in methods],
        rows=rows,
        compared=sum(not contestants[name]().by_truth for name in methods),
        best={name: _best(name, methods, rows) for name in asked},
        paths=PATHS,
        kinds=(*PATHS, "none"),
        networks=[
            (program, networks[program.name].help, drawing(program), _pictures(program, results))
            for program in results.programs
        ],
        wrong=[(contestants[name], _wrong(name, asked, rows)) for name in methods],
    )


def _best(question: str, methods: list[str], rows: dict[tuple[str, str], Row]) -> set[str]:
    """Contestants whose interval reaches the highest score of those that do not cheat."""
    scores = {
        name: rows[question, name].score
        for name in methods
        if (question, name) in rows and not contestants[name]().by_truth
    }
    highest = max((score.value for score in scores.values()), default=0.0)
    return {name for name, score in scores.items() if score.high >= highest - ROUNDING}


def _wrong(
    method: str, asked: list[str], rows: dict[tuple[str, str], Row]
) -> list[tuple[str, tuple[str, ...]]]:
    found = [(name, rows[name, method].wrong) for name in asked if (name, method) in rows]
    return [(name, wrong[:WORST]) for name, wrong in found if wrong]


def _pictures(program: Program, results: Results) -> list[tuple[str, str]]:
    """A few pictures of a network as addresses, with what they hold."""
    drawn = draw(
        *(program.features, SHOWN, results.seed), marked=program.marked, tinted=program.tinted
    )
    return [
        (data_uri(drawn.load(number), "png"), ", ".join(drawn.labels[number]) or "nothing known")
        for number in range(SHOWN)
    ]
