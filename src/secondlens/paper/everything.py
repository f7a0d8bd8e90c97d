"""Everything that one study gives: every result that it has data for, and all on one page."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from ..errors import SecondLensError
from ..naming import shown
from ..report.page import data_uri, write_page
from .registry import APART, results
from .results import Result, cell, of_paper, publish
from .study import Study


def reproduce_all(study: Study, console: Console) -> tuple[list[Result], dict[str, str], Path]:
    """The results that the study has data for, why others are left out, and a page with both.

    A line is printed as each is done or left out.

    Raises
    ------
    SecondLensError
        There are none.
    """
    made: list[Result] = []
    left_out: dict[str, str] = {}
    with suppress(SecondLensError):  # every result that needs it says what is missing
        study.lens  # noqa: B018 - of all layers, before a result asks for one of them alone
    for number, member in enumerate(results, start=1):
        apart = APART.get(member.name)
        second = study.demo or study.second_model is not None
        if apart is not None and not (second and apart.by_second):
            left_out[member.name] = apart.how
            continue
        try:
            made.append(publish(member(study), study.out, console))
            done = f"{member.name} is done ({number} of {len(results.names)})"
            console.print(done, markup=False, highlight=False)
        except SecondLensError as error:
            left_out[member.name] = str(error)
            console.print(f"{member.name} is left out: {error}", markup=False, highlight=False)
    if not made:
        raise SecondLensError(next(reversed(left_out.values())))
    page = study.out / "index.html"
    write_report(made, left_out, page)
    return made, left_out, page


def write_report(found: Iterable[Result], left_out: Mapping[str, str], path: Path) -> None:
    """One page with every result that was made, and why the others were not."""
    write_page(
        path,
        "reproduce.html",
        title="The paper, reproduced",
        results=[(each, _picture(each)) for each in found],
        left_out={name: shown(reason) for name, reason in left_out.items()},
        cell=cell,
        of_paper=of_paper,
    )


def _picture(result: Result) -> str | None:
    return None if result.picture is None else data_uri(result.picture, "png")
