"""What a reproduction found, and the one place that prints and writes it."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..formatting import fixed, number
from ..storage.files import save_csv, save_json, save_picture, whole_folder

Row = dict[str, Any]
"""A cell by column: text, numbers, or None where there is nothing."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A choice that a number depends on, as it is here and in the paper."""

    name: str
    ours: str
    paper: str
    harmless: bool = False
    """Whether the paper's numbers may stand beside ours though this differs: where the paper leaves
    it open, or where it is so in other rows only."""

    def __str__(self) -> str:
        return f"{self.name}: {self.ours} (paper: {self.paper})"


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """A table or figure of the paper, measured again."""

    name: str
    """Such as "table1"; files are called so."""
    title: str
    rows: Sequence[Row]
    """All with the same columns; those whose names begin with "paper" hold the paper's numbers."""
    settings: Sequence[Setting]
    notes: Sequence[str] = ()
    """How to read it: one sentence each."""
    picture: Image.Image | None = None
    details: Sequence[Row] = field(default=())
    """More than a page can show, such as a row for each neuron: a CSV of its own."""
    compact: Sequence[Row] | None = None
    """What a page has room for, where that is less than the rows."""
    divided_by: Sequence[str] = ()
    """Columns of what is shown that divide it into tables: rows of a table stand together."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What was counted and chosen on the way, by name, for programs: what JSON can hold."""
    earlier: Mapping[str, Any] = field(default_factory=dict)
    """What its JSON had in version 0.1 and the form has elsewhere; there until 0.3."""

    @property
    def differing(self) -> list[Setting]:
        """The settings that are not the paper's."""
        return [each for each in self.settings if each.ours != each.paper]

    @property
    def comparable(self) -> bool:
        """Whether the paper's numbers are of the same experiment; else they are shown in grey."""
        return all(each.harmless for each in self.differing)

    @property
    def shown(self) -> Sequence[Row]:
        """What terminals and pages show."""
        return self.rows if self.compact is None else self.compact


def cell(value: Any) -> str:
    """As a table shows it: one decimal, and two digits of what is below 1."""
    if value is None:
        return ""
    if isinstance(value, float) and abs(value) >= 1:
        return fixed(value, 1)
    return number(value)


def show(result: Result, console: Console) -> None:
    """Print a result as a table or several, with the settings that differ."""
    divided = result.divided_by
    for values, rows in groupby(result.shown, lambda row: [str(row[name]) for name in divided]):
        title = ", ".join([f"{result.name}: {result.title}", *values])
        kept = [{k: v for k, v in row.items() if k not in divided} for row in rows]
        console.print(_table(title, kept, console.width, grey=not result.comparable))
    for note in result.notes:
        console.print(note, markup=False, highlight=False)
    if result.differing:
        console.print("Differs from the paper:")
    for setting in result.differing:
        console.print(f"  {setting}", markup=False, highlight=False)


def of_paper(column: str) -> bool:
    """Whether a column holds what the paper prints, by its name."""
    return column.startswith("paper")


def _table(title: str, rows: Sequence[Row], width: int, *, grey: bool) -> Table:
    table = Table(title=escape(title))
    columns = {name: [cell(row[name]) for row in rows] for name in rows[0]}
    columns = {name: texts for name, texts in columns.items() if any(texts)}
    # of a cell of several lines, each has the column's width
    lines = {
        name: [each for text in texts for each in text.split("\n")]
        for name, texts in columns.items()
    }
    wanted = sum(3 + max(map(len, (name, *lines[name]))) for name in columns)
    for name in columns:
        numeric = all(isinstance(row[name], int | float | None) for row in rows)
        heading = name
        if wanted >= width:  # or rich cuts words, where lines could be broken between
            longest = max(map(len, (*name.split(), *lines[name])))
            heading = textwrap.fill(name, longest, break_long_words=False)
        style = "dim" if grey and of_paper(name) else None
        table.add_column(
            escape(heading), justify="right" if numeric else "left", style=style, header_style=style
        )
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(escape, cells))
    return table


def as_document(result: Result) -> dict[str, Any]:
    """For NAME.json, and what `--json` prints: the one form that all results have.

    It has `title`, `rows` (a cell by column), `notes`, `settings` (name, ours, paper, and whether a
    difference is harmless), `comparable` and, where there are any, `facts` by name.
    """
    form: dict[str, Any] = {
        "title": result.title,
        "rows": [dict(row) for row in result.rows],
        "notes": list(result.notes),
        "settings": [asdict(each) for each in result.settings],
        "comparable": result.comparable,
    }
    if result.facts:
        form["facts"] = dict(result.facts)
    return {**form, **result.earlier}


def write(result: Result, out: Path) -> list[Path]:
    """NAME.csv, NAME.json, NAME.png and NAME-details.csv in a folder, all of them or none."""
    names = [f"{result.name}.csv", f"{result.name}.json"]
    with whole_folder(out) as folder:
        save_csv(folder / names[0], result.rows)
        save_json(folder / names[1], as_document(result))
        if result.details:
            names.append(f"{result.name}-details.csv")
            save_csv(folder / names[-1], result.details)
        if result.picture is not None:
            names.append(f"{result.name}.png")
            save_picture(folder / names[-1], result.picture)
    return [out / name for name in names]


def publish(result: Result, out: Path, console: Console) -> Result:
    """Print a result, write its files into a folder, and print where they are."""
    show(result, console)
    for path in write(result, out):
        console.print(str(path), markup=False, highlight=False)
    return result


def drawn(figure: Figure) -> Image.Image:
    """A matplotlib figure as a picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")
