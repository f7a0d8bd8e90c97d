"""`secondlens audit`."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from .options import (
    PATH,
    ChosenModel,
    PictureChoice,
    batch_option,
    check_lens,
    check_trained,
    console,
    groups_option,
    hold_new,
    json_option,
    labelled_pictures,
    paths_option,
    print_json,
    with_choice,
    with_model,
)
from .together import OF_REFEREE, check_together, idle, idle_choice, missing, when

if TYPE_CHECKING:
    from torch import Tensor

    from ..applications.auditing.audits import Audit
    from ..applications.auditing.groups import Group
    from ..data.labelled import Labelled
    from ..data.sources import ImageSource
    from ..data.vocabularies import Vocabulary
    from ..lens.lens import Lens
    from ..models.view import Clip

UNSEEN_SEED, UNSEEN_SCENES = 75, 2000
"""Scenes of the embedded world that audits look at, with backgrounds independent of objects."""
CUES_SHOWN = 12
PICTURES = 4


@click.command()
@click.argument("lens", type=PATH)
@click.option(
    "--classes",
    type=click.Path(),
    help="What the classifier tells apart: a file with one class a line; by default the classes of "
    "a labelled set.",
)
@click.option(
    "--cues", type=click.Path(), help="Words that may push towards a class: a file with one a line."
)
@click.option(
    "--images",
    type=click.Path(),
    help="Pictures that were not used to fit; without --classes, a labelled set.",
)
@click.option(
    "--labelled",
    is_flag=True,
    help="The images are a labelled set, such as class folders, whose labels say which class is in "
    "a picture; otherwise the model's own prediction does.",
)
@click.option(
    "--template", "templates", multiple=True, help="For classes, such as 'a photo of {}'."
)
@click.option(
    "--drawings",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Of each class of the embedded world with and without each of its places and colours.",
)
@click.option(
    "--chance",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.05,
    show_default=True,
    help="A cue is left out if this share of texts between two words fits the pictures as well; 1 "
    "keeps all.",
)
@click.option(
    "--referee",
    help="Another model, which says what pictures show of the cues that no label names.",
)
@click.option("--referee-pretrained", help="Its open_clip tag, or the path of a checkpoint.")
@paths_option
@click.option("--out", type=PATH, required=True, help="A new folder for the report.")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Ties printed.")
@groups_option
@batch_option
@json_option
@with_choice
@with_model
def audit(
    lens: Path,
    classes: str | None,
    cues: str | None,
    images: str | None,
    labelled: bool,
    templates: tuple[str, ...],
    drawings: int,
    chance: float,
    referee: str | None,
    referee_pretrained: str | None,
    paths: str,
    out: Path,
    top: int,
    groups: tuple[str, ...],
    batch_size: int | None,
    as_json: bool,
    choice: PictureChoice,
    model: ChosenModel,
) -> None:
    """Find the cues that push a zero-shot classifier towards classes that are not there.

    For the embedded models, classes, cues and pictures are those of their world if not given.
    Writes a page, audit.json and audit.csv.

    Example: secondlens audit secondlens-demo/lens --out audit
    """
    check_lens(lens)
    hold_new(out)
    from ..applications.auditing.audits import audit as measure
    from ..applications.auditing.groups import accuracy_by_group
    from ..data.vocabularies import vocabulary
    from ..lens.lens import Lens
    from ..models.loading import load
    from ..storage.files import save_csv, whole_folder

    own = model.model.startswith("demo")
    # a labelled set has classes of its own
    known = classes if images is None else images
    needed = {"--classes": known, "--cues": cues, "--images": images}
    check_together(
        missing(model.model, "an audit of", needed),
        when(
            labelled and images is None,
            "--labelled says what --images are: name a labelled set with those",
        ),
        idle_choice(choice, images),
        idle(
            {"--groups": bool(groups)},
            "of a labelled set: name one with --images, and say so with --labelled",
            unless=images is not None and (labelled or (classes is None and not own)),
        ),
        idle(
            {"--referee-pretrained": referee_pretrained is not None},
            OF_REFEREE,
            unless=referee is not None,
        ),
    )
    if referee is not None:
        check_trained(referee, referee_pretrained, "--referee-pretrained")
    drawable = classes is None and cues is None and not labelled
    names = None if classes is None else vocabulary(classes, templates=templates or None)
    shown: list[set[str]] | None = None
    pictures: Labelled | None = None
    if images is None:
        source = _unseen()
    elif labelled or (names is None and not own):
        found = labelled_pictures(images, None if classes is None else Path(classes))
        source, names = found.source, found.classes
        if templates:
            names = vocabulary(names, templates=templates)
        shown = [{names.labels[label]} for label in found.labels]
        pictures = replace(found, classes=names)
        if groups:
            pictures.groups(groups)  # says before all work that there is no such column
    else:
        source = choice.source(images)
    words = None if cues is None else vocabulary(cues)
    if names is None or words is None:
        from ..data.vocabularies import backgrounds, object_names

        names, words = names or object_names(), words or backgrounds()
    fitted = Lens.load(lens).over(paths)
    clip = model.load()
    measured = measure(
        *(clip, fitted, names, source, words),
        shown=shown,
        referee=None if referee is None else load(referee, referee_pretrained, device=clip.device),
        chance=chance,
        batch_size=batch_size,
        progress=True,
    )
    if drawable and drawings:
        measured = replace(measured, drawn=_drawn(clip, names, words, drawings))
    by_group = []
    if groups and pictures is not None:
        by_group = accuracy_by_group(
            *(clip, pictures, groups), batch_size=batch_size, progress=True
        )
    with whole_folder(out) as folder:
        measured.save(folder)
        if by_group:
            save_csv(folder / "groups.csv", [asdict(each) for each in by_group])
        _write_page(folder / "audit.html", clip, fitted, measured, source)
    if as_json:
        names_of_ties = ("class", "cue", "effect", "spread", "drawn")
        ties = [dict(zip(names_of_ties, tie, strict=True)) for tie in measured.ties(top)]
        facts = {"chosen": measured.chosen, "unshown": measured.unshown}
        found_groups = {"groups": [asdict(each) for each in by_group]} if groups else {}
        print_json({"model": clip.name, "ties": ties, **facts, **found_groups, "report": out})
        return
    if by_group:
        _print_groups(by_group)
    table = Table(title=f"Cues of {escape(clip.name)}: how far a class falls without them")
    for name in ("class", "cue", "falls by", "95 %", "gains, drawn"):
        table.add_column(name, justify="left" if name in ("class", "cue") else "right")
    for name, cue, value, spread, added in measured.ties(top):
        interval = f"{value - spread:.4f} to {value + spread:.4f}"
        if spread != spread:
            interval = "a single picture"
        gained = "–" if added != added else f"{added:.4f}"
        table.add_row(escape(name), escape(cue), f"{value:.4f}", interval, gained)
    console.print(table)
    console.print(measured.chosen, markup=False, highlight=False)
    files = "audit.html, audit.json, audit.csv" + (", groups.csv" if by_group else "")
    console.print(f"{out}: {files}", markup=False, highlight=False)


def _print_groups(groups: "list[Group]") -> None:
    table = Table(title="Accuracy by group, in per cent, the worst one first")
    for name in ("group", "pictures", "accuracy", "95 %"):
        table.add_column(name, justify="left" if name == "group" else "right")
    for each in groups:
        interval = f"{100 * each.low:.1f} to {100 * each.high:.1f}"
        table.add_row(escape(each.name), f"{each.count:,}", f"{100 * each.accuracy:.1f}", interval)
    console.print(table)


def _unseen() -> "ImageSource":
    from ..demo.scenes import Scenes, World

    return Scenes(World(planted=False), UNSEEN_SEED, UNSEEN_SCENES)


def _drawn(clip: "Clip", names: "Vocabulary", cues: "Vocabulary", seeds: int) -> "Tensor":
    """What every cue adds to otherwise equal pictures of every class, in the mean over seeds."""
    from functools import partial

    from ..applications.auditing.counterfactuals import drawn
    from ..demo.scenes import World, object_on

    painter = partial(object_on, World(planted=False))
    gained = drawn(clip, names, cues, painter, seeds=range(seeds), progress=True)
    return gained.mean(2).cpu()


def _write_page(
    path: Path, clip: "Clip", lens: "Lens", found: "Audit", source: "ImageSource"
) -> None:
    """The matrix of the strongest ties, and what shows each cue."""
    from ..report.page import write_page
    from ..report.pictures import as_seen
    from ..words.summary import label

    # in the order of the ties, so that what may be chance comes last
    ties = found.ties()
    cues = [found.cues.index(cue) for cue in dict.fromkeys(cue for _, cue, *_ in ties)][:CUES_SHOWN]
    in_order = dict.fromkeys([*(name for name, *_ in ties), *found.classes])
    rows = [found.classes.index(name) for name in in_order]
    wanted = sorted({each for cue in cues for each in found.images[cue][:PICTURES]})
    pictures = as_seen(clip, source, wanted)
    shown: list[dict[str, Any]] = [
        {
            "text": found.cues[cue],
            "pictures": [
                (each, pictures[each]) for each in found.images[cue][:PICTURES] if each in pictures
            ],
            "neurons": [(f"L{at} #{n}", label(lens, at, n)) for at, n in found.neurons[cue][:5]],
            "count": len(found.neurons[cue]),
        }
        for cue in cues
    ]
    largest = max((effect for _, _, effect, *_ in ties), default=0.0) or 1e-12
    matrix = [
        {
            "name": found.classes[row],
            "cells": [
                (
                    float(found.effect[row, cue]),
                    float(found.spread[row, cue]),
                    None if found.drawn is None else float(found.drawn[row, cue]),
                )
                for cue in cues
            ],
        }
        for row in rows[:60]
    ]
    write_page(
        path,
        "audit.html",
        title=f"The cues of {clip.name}",
        clip=clip,
        cues=shown,
        matrix=matrix,
        largest=largest,
        classes=len(found.classes),
        images=len(found.images[0]),
        chosen=found.chosen,
        unshown=found.unshown,
    )
