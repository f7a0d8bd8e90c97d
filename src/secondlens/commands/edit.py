"""`secondlens edit`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from .defend import labelled_with
from .options import (
    PATH,
    PLACE,
    ChosenModel,
    batch_option,
    check_lens,
    check_pictures,
    console,
    groups_option,
    hold_new,
    json_option,
    note,
    print_json,
    with_model,
)
from .together import check_together, when

if TYPE_CHECKING:
    from ..applications.editing.outcomes import Outcome
    from ..applications.editing.weights import Distance
    from ..data.labelled import Labelled


@click.command()
@click.argument("lens", type=PATH)
@click.option(
    "--cut",
    type=PATH,
    required=True,
    help="What is changed: the folder of a defence, or a JSON file with neurons, paths and a "
    "strength.",
)
@click.option(
    "--strength",
    type=float,
    help="In place of that of --cut: 1 holds activations at their means, 0.5 goes half the way.",
)
@click.option(
    "--images",
    type=PLACE,
    help="Pictures on which the error is measured, and paths are fitted; by default half of the "
    "usual ones.",
)
@click.option("--usual", type=PLACE, help="A labelled set of pictures as they usually are.")
@click.option("--unusual", type=PLACE, help="A labelled set of pictures with misleading cues.")
@click.option("--template", "templates", multiple=True, help="As for audit.")
@click.option(
    "--drawn",
    type=click.IntRange(4),
    default=4000,
    show_default=True,
    help="Pictures of each kind, for the embedded models, where none are named.",
)
@click.option("--out", type=PATH, required=True, help="A new folder.")
@groups_option
@batch_option
@json_option
@with_model
def edit(
    lens: Path,
    cut: Path,
    strength: float | None,
    images: Path | str | None,
    usual: Path | str | None,
    unusual: Path | str | None,
    templates: tuple[str, ...],
    drawn: int,
    out: Path,
    groups: tuple[str, ...],
    batch_size: int | None,
    as_json: bool,
    model: ChosenModel,
) -> None:
    """Write what an audit or a defence chose into the weights of an ordinary checkpoint.

    Each neuron is held at its mean, so far as the strength says: exactly, in the MLP's output
    weights and bias. Paths of neurons through heads are changed as well as weights can, and their
    error is told. Writes a folder that open_clip loads, one that transformers loads, edit.json, and
    a card.

    The saved model and the one before it are compared on the odd half of labelled pictures: the
    even half is what a defence has seen. For the embedded models what is not given is drawn.

    Example: secondlens edit secondlens-demo/lens --cut defence --out checkpoint
    """
    check_lens(lens)
    hold_new(out)
    check_pictures(images, usual, unusual)
    check_together(
        when(bool(templates) and not (usual or unusual), "--template is for --usual and --unusual"),
        when(
            bool(groups) and not (usual or unusual) and not model.model.startswith("demo"),
            "--groups are of labelled pictures: name those with --usual",
        ),
    )
    from ..applications.editing.checkpoints import document, loaded, save_card, save_models
    from ..applications.editing.edits import Edit
    from ..applications.editing.outcomes import outcome
    from ..applications.editing.weights import edit as write
    from ..data.sources import as_source
    from ..lens.lens import Lens
    from ..storage.files import whole_folder

    changes = Edit.load(cut)
    if strength is not None:
        changes = replace(changes, strength=strength)
    fitted = Lens.load(lens)
    clip = model.load()
    kinds = _kinds(model, usual, unusual, templates, drawn)
    halves = [each.at(range(1, len(each), 2)) for each in kinds]
    for each in halves if groups else ():
        each.groups(groups)  # says before all work that there is no such column
    half = kinds[0].at(range(0, len(kinds[0]), 2)).source if kinds else None
    source = half if images is None else as_source(str(images))
    edited = write(clip, fitted, changes, source, batch_size=batch_size, progress=True)
    with whole_folder(out) as folder:
        saved, refused = save_models(edited.clip, folder)
        first = loaded(folder, next(iter(saved)), clip)
        outcomes = [
            outcome(
                *(clip, first, each, groups),
                batch_size=batch_size,
                progress=True,
            )
            for each in halves
        ]
        content = document(edited, fitted, outcomes, saved, refused)
        save_card(folder, content)
    for why in refused.values():
        note(why)
    if as_json:
        print_json(content | {"checkpoint": out})
        return
    _print(edited.distances, outcomes, content)
    folders = ", ".join((*saved, "edit.json", "README.md"))
    console.print(f"{out}: {folders}", markup=False, highlight=False)


def _kinds(
    model: ChosenModel,
    usual: Path | str | None,
    unusual: Path | str | None,
    templates: tuple[str, ...],
    drawn: int,
) -> "list[Labelled]":
    """The labelled sets that are measured, the usual ones first."""
    named = [each for each in (usual, unusual) if each is not None]
    if named or not model.model.startswith("demo"):
        return [labelled_with(each, templates) for each in named]
    from ..applications.auditing.counterfactuals import counterfactual, natural

    return [natural(drawn), counterfactual(drawn)[0]]


def _print(
    distances: "tuple[Distance, ...]", outcomes: "list[Outcome]", content: dict[str, Any]
) -> None:
    changed = len(content["neurons"]), len(content["paths"])
    what = " and ".join(
        f"{number:,} {noun}{'' if number == 1 else 's'}"
        for number, noun in zip(changed, ("neuron", "path"), strict=True)
        if number
    )
    if outcomes:
        console.print(
            accuracies(f"Accuracy of the saved model, in per cent: {what} changed", outcomes)
        )
    if distances:
        table = Table(title="How far unit embeddings are from what was wanted, root mean square")
        for name in ("wanted", "moves", "missed by"):
            table.add_column(name, justify="left" if name == "wanted" else "right")
        for distance in distances:
            table.add_row(distance.aim, f"{distance.moved:.4f}", f"{distance.missed:.4f}")
        console.print(table)
    print_saved(content)


def accuracies(title: str, outcomes: "list[Outcome]") -> Table:
    """A row for each set of pictures and for each group."""
    table = Table(title=title)
    for name in ("pictures", "how many", "before", "after", "change, points"):
        table.add_column(name, justify="left" if name == "pictures" else "right")
    for each in [part for whole in outcomes for part in (whole, *whole.groups)]:
        value, low, high = (100 * part for part in each.change)
        table.add_row(
            escape(each.pictures),
            f"{each.count:,}",
            f"{100 * each.before:.1f}",
            f"{100 * each.after:.1f}",
            f"{value:+.1f} [{low:+.1f}, {high:+.1f}]",
        )
    return table


def print_saved(content: dict[str, Any]) -> None:
    """Say how far the folders of a checkpoint are from the model in memory."""
    for saved in content["saved"]:
        equal = f"{saved['library']}: unit embeddings of pictures equal to {saved['images']:.1g}"
        texts = "" if saved["texts"] is None else f", of texts to {saved['texts']:.1g}"
        console.print(equal + texts, highlight=False)
