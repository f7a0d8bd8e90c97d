"""`secondlens defend`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from ..errors import SecondLensError
from .options import (
    PATH,
    PLACE,
    ChosenModel,
    check_lens,
    check_pictures,
    console,
    hold_new,
    json_option,
    labelled_pictures,
    note,
    print_json,
    with_model,
)

if TYPE_CHECKING:
    from ..applications.auditing.audits import Audit
    from ..data.labelled import Labelled
    from ..lens.lens import Lens
    from ..models.view import Clip


@click.command()
@click.argument("found", metavar="AUDIT_OR_ATTACK", type=PATH)
@click.argument("lens", type=PATH)
@click.option("--usual", type=PLACE, help="A labelled set of pictures as they usually are.")
@click.option("--unusual", type=PLACE, help="A labelled set of pictures with misleading cues.")
@click.option("--template", "templates", multiple=True, help="As for audit.")
@click.option(
    "--images", type=click.IntRange(4), default=4000, show_default=True, help="Drawn, if not given."
)
@click.option(
    "--indirect",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Also cut neurons by their indirect effects on so many pictures: slow.",
)
@click.option("--out", type=PATH, required=True, help="A new folder.")
@json_option
@with_model
def defend(
    found: Path,
    lens: Path,
    usual: Path | str | None,
    unusual: Path | str | None,
    templates: tuple[str, ...],
    images: int,
    indirect: int,
    out: Path,
    as_json: bool,
    model: ChosenModel,
) -> None:
    """Cut the neurons of cues that mislead, and measure what that gains and costs.

    The cues are those of an audit, or the words of an attack, which are audited first. Half of the
    pictures decide what is cut, the other half measure: usual ones and, to see what is gained,
    those of the attack, or objects with misleading cues. For the embedded models what is not given
    is drawn. Writes defence.json and a plot of the trade-off.

    Example: secondlens defend audit secondlens-demo/lens --out defence
    """
    check_lens(lens)
    hold_new(out)
    from ..applications.adversarial.runs import attacked, is_attack
    from ..applications.auditing.audits import Audit
    from ..applications.auditing.defence import defend as choose
    from ..applications.auditing.defence import indirect_order, summary
    from ..lens.lens import Lens
    from ..storage.files import whole_folder

    own, by_attack = model.model.startswith("demo"), is_attack(found)
    audited = None if by_attack else Audit.load(found)
    if by_attack and unusual is not None:
        raise SecondLensError("the pictures of the attack are the unusual ones: drop --unusual")
    if not by_attack and (usual is None) != (unusual is None):
        raise SecondLensError("give both --usual and --unusual, or neither")
    if usual is None and not own:
        needed = "--usual" if by_attack else "--usual and --unusual"
        raise SecondLensError(f"{model.model} has no pictures of its own: name some with {needed}")
    usually = _drawn(images)[0] if usual is None else labelled_with(usual, templates)
    rivals: Sequence[int] | None = None
    words: tuple[str, ...] = ()
    if by_attack:
        attack = attacked(found, usually.classes)
        unusually, rivals, words = attack.pictures, attack.rivals, attack.words
    elif unusual is not None:
        unusually = labelled_with(unusual, templates)
    else:
        _, unusually, rivals = _drawn(images)
    fitted = Lens.load(lens)
    clip = model.load()
    if audited is None:
        audited = _audited(clip, fitted, usually, words)
    kinds = usually, unusually
    others = {}
    if indirect:
        others["by indirect effect"] = indirect_order(clip, fitted, kinds, indirect, progress=True)
    defence = choose(clip, fitted, audited, *kinds, rivals=rivals, others=others, progress=True)
    with whole_folder(out) as folder:
        defence.save(folder)
    before = defence.before
    if rivals is None:
        note(
            "which pictures are fooled is not known, since nobody says which class their cue "
            "belongs to: only an attack or drawn pictures do"
        )
    if as_json:
        print_json({"before": asdict(before), "methods": summary(defence), "report": out})
        return
    fooled = "" if rivals is None else f"; fooled {100 * before.fooled:.1f} %"
    table = Table(
        title=f"Accuracy before: {100 * before.usual:.1f} % on usual pictures, "
        f"{100 * before.unusual:.1f} % where cues mislead{fooled}"
    )
    for name in ("what is cut", "how many", "strength", "usual", "where cues mislead", "fooled"):
        table.add_column(name, justify="left" if name == "what is cut" else "right")
    for row in summary(defence):
        table.add_row(
            row["method"],
            str(row["point"]["count"]),
            f"{row['point']['strength']:g}",
            *(_points(row[f"{what}_change"]) for what in ("usual", "unusual", "fooled")),
        )
    console.print(table)
    console.print(f"{out}: defence.json, defence.png", markup=False, highlight=False)


def labelled_with(path: Path | str, templates: tuple[str, ...]) -> "Labelled":
    """The labelled set at a path, its classes prompted with templates where there are some."""
    check_pictures(path)
    found = labelled_pictures(path)
    return found.prompted(templates) if templates else found


def _drawn(images: int) -> tuple["Labelled", "Labelled", list[int]]:
    """Of the embedded world: usual pictures, misleading ones, and the rivals in these."""
    from ..applications.auditing.counterfactuals import counterfactual, natural

    return natural(images), *counterfactual(images)


def _audited(clip: "Clip", lens: "Lens", usual: "Labelled", words: tuple[str, ...]) -> "Audit":
    """The words of an attack as cues, over the half of the usual pictures that decides."""
    from ..applications.auditing.audits import audit

    half = usual.at(range(0, len(usual), 2)).source
    return audit(clip, lens, usual.classes, half, words, chance=1.0, progress=True)


def _points(change: tuple[float, float, float]) -> str:
    """A change of a share, in points, with its interval."""
    value, low, high = (100 * each for each in change)
    return "–" if value != value else f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
