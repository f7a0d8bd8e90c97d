"""`secondlens groundtruth`: what methods say of neurons that are known."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from ..formatting import counted, fixed
from ..groundtruth.registry import contestants, networks
from ..groundtruth.settings import LEAST_NAMED, NAMED, TESTED
from .options import PATH, Group, console, hold_new, json_option, note, print_json
from .together import check_together, when

if TYPE_CHECKING:
    from ..groundtruth.running import Results, Score


@click.group(cls=Group)
def groundtruth() -> None:
    """Ask methods that explain neurons about networks whose neurons are known.

    The networks are vision transformers with weights written by hand: detectors, polysemous units,
    units that act through keys, queries, norms or later units only, repaired, dead and doubled
    ones, and spurious cues. Pictures are drawn, and labels are known for every patch.

    Example: secondlens groundtruth run --all
    """


@groundtruth.command("list")
@json_option
def list_networks(as_json: bool) -> None:
    """List the networks with their units, edges and what they are for.

    Example: secondlens groundtruth list
    """
    found = [(member, member()) for member in networks]
    if as_json:
        print_json(
            {
                member.name: {
                    "help": member.help,
                    "units": {unit.name: unit.part for unit in program.units},
                    "edges": sorted(program.edges),
                    "words": list(program.words),
                }
                for member, program in found
            }
        )
        return
    total = sum(len(program.units) for _, program in found)
    table = Table(title=f"{counted(total, 'unit')} of {counted(len(found), 'network')}")
    for name in ("network", "units", "edges", "what it is for"):
        table.add_column(name, justify="right" if name in ("units", "edges") else "left")
    for member, program in found:
        table.add_row(member.name, str(len(program.units)), str(len(program.edges)), member.help)
    console.print(table)


@groundtruth.command()
@click.option("--all", "every", is_flag=True, help="Every network.")
@click.option(
    "--network",
    "chosen",
    multiple=True,
    type=click.Choice(networks.names),
    help="One network; repeatable, in place of --all.",
)
@click.option(
    "--contestant",
    "among",
    multiple=True,
    type=click.Choice(contestants.names),
    help="One method; repeatable. By default all of them.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Of pictures, weights and random answers.",
)
@click.option(
    "--named",
    type=click.IntRange(LEAST_NAMED),
    default=NAMED,
    show_default=True,
    help="Pictures that names are looked for in.",
)
@click.option(
    "--tested",
    type=click.IntRange(2),
    default=TESTED,
    show_default=True,
    help="Pictures of all other questions.",
)
@click.option(
    "--out", type=PATH, help="A new folder for results.json and a page with the networks drawn."
)
@json_option
def run(
    every: bool,
    chosen: tuple[str, ...],
    among: tuple[str, ...],
    seed: int,
    named: int,
    tested: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Ask every method everything, and score the answers.

    Scores are means over units, names, edges or pictures, with 95 % intervals: Wilson's for shares,
    a bootstrap for means. The same seed gives the same scores.

    Example: secondlens groundtruth run --network keys --contestant "all paths"
    """
    check_together(
        when(every and bool(chosen), "--all and --network exclude each other: drop one"),
        when(not every and not chosen, "no networks are chosen: give --all, or --network"),
    )
    hold_new(out)
    from ..groundtruth.page import write_results
    from ..groundtruth.running import as_document, run_bench
    from ..storage.files import save_json, whole_folder

    results = run_bench(
        chosen or None, among or None, seed=seed, named=named, tested=tested, progress=True
    )
    document = as_document(results)
    if out is not None:
        with whole_folder(out) as folder:
            save_json(folder / "results.json", document)
            write_results(folder / "page.html", results)
    times = ", ".join(f"{name} {fixed(each, 1)}" for name, each in results.seconds.items())
    note(f"seconds by method, over all networks: {times}")
    if as_json:
        print_json(document | {"page": None if out is None else out / "page.html"})
        return
    for table in score_tables(results):
        console.print(table)
    if out is not None:
        console.print(f"Page: {out / 'page.html'}", markup=False, highlight=False)


TOGETHER = (
    ("What units do to the output", ("effect", "no effect", "path", "cue")),
    ("What units respond to", ("name precision", "name recall", "two features", "idle unnamed")),
    ("Several features, edges, places", ("polysemy", "edge precision", "edge recall", "place")),
)
"""Questions that share a table, with its title."""


def score_tables(results: "Results") -> list[Table]:
    """Scores of each question by method, effects by class of path, and the calibration of names."""
    found = []
    others = {row.question for row in results.rows} - {q for _, some in TOGETHER for q in some}
    for title, asked in (*TOGETHER, *(("Others", (each,)) for each in sorted(others))):
        rows = {(r.contestant, r.question): r.score for r in results.rows if r.question in asked}
        found.append(_table(title, rows, asked, results))
    paths = {
        (row.contestant, group): score
        for row in results.rows
        if row.question == "effect"
        for group, score in row.by_group.items()
    }
    classes = tuple(dict.fromkeys(group for _, group in paths))
    found.append(_table("Effect, by the class of path that carries it", paths, classes, results))
    sure = Table(title="How sure: probabilities learnt on other networks")
    for name in ("method", "names", "stated", "true", "difference", "in bins"):
        sure.add_column(name, justify="left" if name == "method" else "right")
    for name, each in results.calibrations.items():
        stated, true = (sum(some) / len(some) for some in (each.stated, each.true))
        cells = (fixed(value, 3) for value in (stated, true, each.gap, each.error))
        sure.add_row(name, str(len(each.true)), *cells)
    if results.calibrations:
        found.append(sure)
    return [table for table in found if table.row_count]


def _table(
    title: str, scores: "dict[tuple[str, str], Score]", columns: Any, results: "Results"
) -> Table:
    """A row for each method that has any of the scores."""
    table = Table(title=title)
    table.add_column("method")
    shown = [column for column in columns if any(column == each for _, each in scores)]
    for column in shown:
        table.add_column(column, justify="right")
    for name in results.seconds:
        own = [scores.get((name, column)) for column in shown]
        if any(own):
            table.add_row(name, *("" if each is None else _cell(each) for each in own))
    return table


def _cell(score: "Score") -> str:
    return f"{fixed(score.value, 3)} ({fixed(score.low, 2)} to {fixed(score.high, 2)})"
