"""`secondlens defend`."""

from pathlib import Path

import click
from rich.table import Table

from ..errors import SecondLensError
from .common import ChosenModel, console, with_model


@click.command()
@click.argument("audited", metavar="AUDIT", type=Path)
@click.argument("lens", type=Path)
@click.option("--usual", type=Path, help="Class folders of pictures as they usually are.")
@click.option("--unusual", type=Path, help="Class folders of pictures with misleading cues.")
@click.option("--template", "templates", multiple=True, help="As for audit.")
@click.option(
    "--images", type=click.IntRange(4), default=2000, show_default=True, help="Drawn, if not given."
)
@click.option(
    "--indirect",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Also cut neurons by their indirect effects on so many pictures: slow.",
)
@click.option("--out", type=Path, required=True, help="A new folder.")
@with_model
def defend(
    audited: Path,
    lens: Path,
    usual: Path | None,
    unusual: Path | None,
    templates: tuple[str, ...],
    images: int,
    indirect: int,
    out: Path,
    model: ChosenModel,
) -> None:
    """Cut the neurons of the cues that an AUDIT found, and measure what that gains and costs.

    Half of the pictures decide what is cut, the other half measure. For the embedded models they
    are drawn if not given: objects in the places they prefer, and in places of other objects.
    Writes defence.json and a plot of the trade-off.
    """
    from ..audit import Audit
    from ..classify import labelled
    from ..defend import defend as choose
    from ..defend import indirect_order, summary
    from ..lens import Lens
    from ..storage import check_empty

    check_empty(out)
    rivals = None
    found = Audit.load(audited)
    if (usual is None) != (unusual is None):
        raise SecondLensError("give both --usual and --unusual, or neither")
    if usual is not None and unusual is not None:
        kinds = labelled(usual), labelled(unusual)
        if templates:
            kinds = kinds[0].prompted(templates), kinds[1].prompted(templates)
    elif model.model.startswith("demo"):
        from ..demo.misled import misled, natural

        (unusual_scenes, rivals), usual_scenes = misled(images), natural(images)
        kinds = usual_scenes, unusual_scenes
    else:
        raise SecondLensError(
            f"{model.model} has no pictures of its own: give --usual and --unusual"
        )
    fitted = Lens.load(lens)
    clip = model.load()
    others = {}
    if indirect:
        others["by indirect effect"] = indirect_order(clip, fitted, kinds, indirect, progress=True)
    defence = choose(clip, fitted, found, *kinds, rivals=rivals, others=others, progress=True)
    defence.save(out)
    before = defence.before
    table = Table(
        title=f"Accuracy before: {100 * before.usual:.1f} % on usual pictures, "
        f"{100 * before.unusual:.1f} % where cues mislead; fooled {100 * before.fooled:.1f} %"
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


def _points(change: tuple[float, float, float]) -> str:
    """A change of a share, in points, with its interval."""
    value, low, high = (100 * each for each in change)
    return "–" if value != value else f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
