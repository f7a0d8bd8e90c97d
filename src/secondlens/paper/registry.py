"""Every table and figure that can be reproduced, and all of them on one page."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ..errors import SecondLensError
from .curves import fig3, fig9, fig10, fig11, fig12
from .distributions import distributions
from .effect_budget import effect_budget
from .fig4 import fig4
from .results import Result, show, write, write_report
from .study import Study
from .table1 import table1
from .table4 import table4
from .words import fig5, fig8, table2, table5

REPRODUCTIONS: dict[str, Callable[[Study], Result]] = {
    "table1": table1,
    "fig3": fig3,
    "table2": table2,
    "fig4": fig4,
    "fig5": fig5,
    "table4": table4,
    "fig8": fig8,
    "fig9": fig9,
    "fig10": fig10,
    "fig11": fig11,
    "fig12": fig12,
    "table5": table5,
    "distributions": distributions,
    "budget": effect_budget,
}
"""In the order of the paper, then what is not in it."""

OF_ITS_OWN = {
    "table3": "attacks take a run of their own, which resumes: secondlens reproduce table3 --demo"
}
"""What a page with everything has no time for."""

ELSEWHERE = {
    "table4": "name masks: secondlens reproduce table4 --images gtsegs_ijcv.mat --lens LENS",
    "fig9": "another model: secondlens reproduce fig9 --model ViT-L-14 and its --images",
    "fig12": "another model: secondlens reproduce fig12 --model ViT-L-14 and its --images",
}
"""What one study of photographs cannot have, and how to have it."""


def reproduce(name: str, study: Study, console: Console) -> Result:
    """Make a result, print it, and write its files.

    Raises
    ------
    SecondLensError
        What it needs is not there.
    """
    result = REPRODUCTIONS[name](study)
    show(result, console)
    for path in write(result, study.out):
        console.print(str(path), markup=False, highlight=False)
    return result


def reproduce_all(study: Study, console: Console) -> tuple[list[Result], dict[str, str], Path]:
    """The results that the study has data for, why others are left out, and a page with both."""
    results: list[Result] = []
    left_out = dict(OF_ITS_OWN)
    for name in REPRODUCTIONS:
        if not study.demo and name in ELSEWHERE:
            left_out[name] = ELSEWHERE[name]
            continue
        try:
            results.append(reproduce(name, study, console))
        except SecondLensError as error:
            left_out[name] = str(error)
            console.print(f"{name} is left out: {error}", markup=False, highlight=False)
    if not results:
        raise SecondLensError(next(reversed(left_out.values())))
    page = study.out / "index.html"
    write_report(results, left_out, page)
    return results, left_out, page
