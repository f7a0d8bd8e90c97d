"""`secondlens attack`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from ..errors import SecondLensError
from .checks import check_lens
from .common import (
    PATH,
    ChosenModel,
    console,
    json_option,
    layer_numbers,
    note,
    print_json,
    with_engine,
    with_model,
)
from .parts import with_parts

if TYPE_CHECKING:
    from ..attack import Report
    from ..engine import Engine

METHODS = ("second order", "random neurons", "similar words", "random words")


@click.command()
@click.argument("lens", type=PATH)
@click.option("--draw", help="The class that pictures show.")
@click.option("--mistake-for", help="The class that the model shall see in them.")
@click.option(
    "--pairs",
    help='Instead of two classes: "all" of --among, in every order.',
)
@click.option("--among", help="Classes for --pairs, such as dog,deer,fox; by default all.")
@click.option("--out", type=PATH, required=True, help="The run's folder; a run there goes on.")
@click.option("--by", type=click.Choice(METHODS), default=METHODS[0], show_default=True)
@click.option("--texts", help="Words to choose from; by default those of the first description.")
@click.option("--layers", help="Such as 8,9,10; by default all that are fitted.")
@click.option("--neurons", type=click.IntRange(1), default=100, show_default=True)
@click.option("--whole-codes", is_flag=True, help="All texts of a neuron, as the paper does.")
@click.option("--words", type=click.IntRange(1), help="By default 25, at most 1 in 32 of the pool.")
@click.option("--captions", type=click.IntRange(1), default=10, show_default=True)
@click.option("--images", type=click.IntRange(1), default=100, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@json_option
@with_engine
@with_parts
@with_model
def attack(
    lens: Path,
    draw: str | None,
    mistake_for: str | None,
    pairs: str | None,
    among: str | None,
    out: Path,
    by: str,
    texts: str | None,
    layers: str | None,
    as_json: bool,
    engine: Callable[[], "Engine"],
    parts: Callable[[str], dict[str, Any]],
    model: ChosenModel,
    **numbers: Any,
) -> None:
    """Make pictures of one class that the model takes for another, from the neurons of a LENS.

    Selects words, writes captions, draws them, and judges the pictures; an interrupted run goes
    on when the same command is given again. gallery.html in its folder shows what came out.

    
    Example: secondlens attack secondlens-demo/lens --draw dog --mistake-for deer --out attack
    """
    one = draw is not None and mistake_for is not None
    if one == (pairs is not None) or (pairs is None and (draw is None or mistake_for is None)):
        raise SecondLensError("name two classes with --draw and --mistake-for, or --pairs all")
    if pairs not in (None, "all"):
        raise SecondLensError(f"--pairs takes all, not {pairs!r}: list classes with --among")
    if draw is not None and draw == mistake_for:
        raise SecondLensError(f"{draw} cannot be mistaken for itself: name two classes")
    chosen = None if layers is None else layer_numbers(layers)
    check_lens(lens)
    from ..attack import Pair, attack_pairs
    from ..attack.attacker import attacker
    from ..lens import Lens

    fitted = Lens.load(lens)
    clip = model.load()
    made = attacker(
        clip,
        fitted,
        texts=texts,
        method=by,
        layers=None if chosen == "all" else chosen,
        **parts(model.device),
        **numbers,
    )
    left_out: dict[Pair, str] = {}
    if pairs is None:
        assert draw is not None and mistake_for is not None
        reports = [made(Pair(draw=draw, mistake_for=mistake_for), out, progress=True)]
    else:
        names = made.classes.labels if among is None else [n.strip() for n in among.split(",")]
        reports, left_out = attack_pairs(made, names, out, engine=engine(), progress=True)
        for pair, reason in left_out.items():
            line = f"{pair.draw}, {pair.mistake_for} is left out: {reason}"
            note(line)
    page = out / ("gallery.html" if pairs is None else "index.html")
    if as_json:
        skipped = [vars(pair) | {"reason": reason} for pair, reason in left_out.items()]
        made_pairs = [report.as_json() for report in reports]
        print_json({"pairs": made_pairs, "left_out": skipped, "gallery": page})
        return
    console.print(summary(reports))
    console.print(f"Gallery: {page}", markup=False, highlight=False)


def summary(reports: "list[Report]") -> Table:
    """A row for each pair."""
    table = Table(caption="of the pictures that count; flipped: right without the words; 95 %")
    for name in ("drawn, mistaken for", "count", "flipped", "fooled", "words"):
        table.add_column(name, justify="left" if name == "words" else "right")
    for report in reports:
        rates = report.rates()
        cells = (
            f"{100 * rates[name]['share']:.0f} % "
            f"[{100 * rates[name]['interval'][0]:.0f}, {100 * rates[name]['interval'][1]:.0f}]"
            for name in ("flipped", "fooled")
        )
        table.add_row(
            escape(f"{report.pair.draw}, {report.pair.mistake_for}"),
            f"{len(report.counted)} of {len(report.shots)}",
            *cells,
            escape(", ".join(word.text for word in report.words)),
        )
    return table
