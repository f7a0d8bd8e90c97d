"""`secondlens diff`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    check_pictures,
    check_trained,
    console,
    hold_new,
    json_option,
    layer_numbers,
    print_json,
    with_choice,
    with_model,
)
from .together import check_together, idle, idle_choice, missing, when

if TYPE_CHECKING:
    from ..applications.comparing.checkpoints import Difference
    from ..data.sources import ImageSource
    from ..lens.lens import Lens
    from ..models.view import Clip

SCENES = 200
"""Of the embedded world, where no pictures are named."""
PICTURES = 4
"""Of a neuron on a page."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A neuron as tables and pages show it."""

    name: str
    label: str
    lines: tuple[str, ...]
    images: tuple[str, ...]


@click.command()
@click.argument("before")
@click.argument("after")
@click.option(
    "--through",
    type=PATH,
    help="A lens: then BEFORE and AFTER are pictures, and --model is what sees both.",
)
@click.option(
    "--images",
    type=click.Path(),
    help="Pictures that both models see; by default, for the embedded models, unseen scenes.",
)
@click.option(
    "--classes",
    help="A file with one class a line, or a built-in vocabulary; by default, for the embedded "
    "models, the objects of their world.",
)
@click.option("--after-pretrained", help="Of AFTER, as --pretrained is of BEFORE.")
@click.option("--lens", type=PATH, help="Of BEFORE: neurons are called by what they fire on.")
@click.option("--after-lens", type=PATH, help="Of AFTER: what they fire on there stands beside it.")
@click.option("--layers", default="all", show_default=True, help="Such as 8,9,10, or all.")
@click.option(
    "--top", type=click.IntRange(1), default=10, show_default=True, help="Neurons that are shown."
)
@click.option("--out", type=PATH, help="A new folder for a page with pictures, and diff.json.")
@batch_option
@json_option
@with_choice
@with_model
def diff(
    before: str,
    after: str,
    through: Path | None,
    images: str | None,
    classes: str | None,
    after_pretrained: str | None,
    lens: Path | None,
    after_lens: Path | None,
    layers: str,
    top: int,
    out: Path | None,
    batch_size: int | None,
    as_json: bool,
    choice: PictureChoice,
    model: ChosenModel,
) -> None:
    """Say which neurons changed between two models, or differ between two sets of pictures.

    BEFORE and AFTER are models, named as --model names them: a model and its edited or fine-tuned
    copy, compared on the same pictures. With --through they are two sets of pictures.

    Example: secondlens diff demo local-dir:checkpoint/open_clip
    """
    of_models = {
        "--images": images is not None,
        "--classes": classes is not None,
        "--after-pretrained": after_pretrained is not None,
        "--lens": lens is not None,
        "--after-lens": after_lens is not None,
        "--layers": layers != "all",
    }
    needed = {} if through else {"--images": images}
    check_together(
        idle(of_models, "of two models: drop --through", unless=through is None),
        missing(before, "a comparison of", needed),
        None if through else idle_choice(choice, images),
        idle(
            {"--after-lens": after_lens is not None},
            "compared with that of BEFORE: name it with --lens",
            unless=lens is not None,
        ),
        when(model.tower == "text", "neurons of text towers are not compared: drop --tower"),
    )
    check_lens(through, lens, after_lens)
    hold_new(out)
    if through is not None:
        _pictures(before, after, through, top, out, batch_size, as_json, choice, model)
        return
    wanted = layer_numbers(layers)
    check_pictures(images)
    check_trained(before, model.pretrained)
    check_trained(after, after_pretrained, "--after-pretrained")
    from ..applications.comparing.checkpoints import diff as compare
    from ..data.vocabularies import object_names, vocabulary
    from ..lens.lens import Lens
    from ..paper.study import TEST_SEED, scenes

    if images is None:
        source: ImageSource = scenes(TEST_SEED, SCENES, planted=before == "demo").source
    else:
        source = choice.source(images)
    names = None
    if classes is not None or images is None:
        names = object_names() if classes is None else vocabulary(classes)
    old = replace(model, model=before).load()
    new = replace(model, model=after, pretrained=after_pretrained).load()
    opened = [None if each is None else Lens.load(each) for each in (lens, after_lens)]
    for each, clip in zip(opened, (old, new), strict=True):
        if each is not None:
            each.check_model(clip)
    found = compare(
        *(old, new, source, wanted), classes=names, batch_size=batch_size, progress=True
    )
    shown = _of_models(found, opened, top)
    content = found.document(top)
    for neuron, one in zip(content["neurons"], shown, strict=True):
        neuron["label"] = one.label
    lead = (
        f"Second-order effects of each neuron in {found.before} and in {found.after}, on the same "
        f"{len(found.image_ids):,} pictures. Root mean squares are of unit embeddings; the "
        "pictures of a neuron are those on which its effect has changed most."
    )
    title = f"From {found.before} to {found.after}"
    _write(out, title, lead, old, source, shown, content)
    if as_json:
        print_json(content | ({"report": out} if out else {}))
        return
    flipped = (
        "" if found.flipped != found.flipped else f", best class changed in {found.flipped:.1%}"
    )
    table = Table(
        title=f"{title}: {len(found.image_ids):,} pictures, cosine {found.agreement:.4f}{flipped}"
    )
    for name in ("layer", "change", "effects before"):
        table.add_column(name, justify="right")
    for layer, square in found.square.items():
        energy = float(found.energy[layer].mean())
        table.add_row(str(layer), f"{float(square.mean()) ** 0.5:.2g}", f"{energy**0.5:.2g}")
    console.print(table)
    _print("Neurons that moved most", shown)
    _say(out)


def _pictures(
    before: str,
    after: str,
    through: Path,
    top: int,
    out: Path | None,
    batch_size: int | None,
    as_json: bool,
    choice: PictureChoice,
    model: ChosenModel,
) -> None:
    """Neurons that differ between two sets of pictures."""
    check_pictures(before, after)
    from ..applications.comparing.pictures import shift
    from ..lens.lens import Lens
    from ..words.summary import label

    sources = [choice.source(each) for each in (before, after)]
    lens, clip = Lens.load(through), model.load()
    found = shift(clip, lens, *sources, batch_size=batch_size, progress=True)
    shown = [
        Shown(
            name=each.name,
            label=label(lens, each.layer, each.neuron),
            lines=(
                f"{each.shift:+.2f} [{each.low:+.2f}, {each.high:+.2f}] standard deviations",
                f"q {each.q:.1g}",
            ),
            images=each.images,
        )
        for each in found.shifted(top)
    ]
    content = found.document(top)
    for neuron, one in zip(content["neurons"], shown, strict=True):
        neuron["label"] = one.label
    neurons = sum(len(each) for each in found.q.values())
    title = f"{found.certain:,} of {neurons:,} neurons act otherwise"
    lead = (
        "How far the effects of a neuron along its direction lie apart between "
        f"{found.counts[0]:,} pictures before and {found.counts[1]:,} after, with 95 % intervals; "
        "at most 5 % of all that are found are expected to be chance. Pictures are of the second "
        "set."
    )
    _write(out, title, lead, clip, sources[1], shown, content)
    if as_json:
        print_json(content | ({"report": out} if out else {}))
        return
    _print(title, shown)
    _say(out)


def _of_models(found: "Difference", lenses: "Sequence[Lens | None]", top: int) -> list[Shown]:
    """Neurons that moved most, called by the lens of the first model and, where another thing
    makes them fire in the second, by its lens too."""
    from ..formatting import number
    from ..words.summary import label

    shown = []
    for each in found.moved(top):
        change = [number(value) for value in (each.change, each.low, each.high, each.before)]
        lines = [
            f"moved by {change[0]} [{change[1]}, {change[2]}], was {change[3]}",
            *(
                f"pulls {'more' if pull > 0 else 'less'} towards {name}: "
                f"{'+' if pull > 0 else ''}{number(pull)} ± {number(half)}"
                for name, pull, half in each.pulls
            ),
        ]
        names = [label(lens, each.layer, each.neuron) for lens in lenses if lens is not None]
        shown.append(
            Shown(
                name=each.name,
                label=" → ".join(name or "–" for name in dict.fromkeys(names)),
                lines=tuple(lines),
                images=each.images,
            )
        )
    return shown


def _print(title: str, shown: Sequence[Shown]) -> None:
    table = Table(title=title)
    for name in ("neuron", "fires on", "what changed"):
        table.add_column(name)
    for each in shown:
        table.add_row(each.name, escape(each.label), escape("\n".join(each.lines)))
    console.print(table)


def _say(out: Path | None) -> None:
    if out is not None:
        console.print(f"{out}: diff.html, diff.json", markup=False, highlight=False)


def _write(
    out: Path | None,
    title: str,
    lead: str,
    clip: "Clip",
    source: "ImageSource",
    shown: Sequence[Shown],
    content: dict[str, Any],
) -> None:
    """The page and the file, if they are wanted."""
    if out is None:
        return
    from ..report.page import write_page
    from ..report.pictures import as_seen
    from ..storage.files import save_json, whole_folder

    wanted = sorted({each for neuron in shown for each in neuron.images[:PICTURES]})
    pictures = as_seen(clip, source, wanted)
    neurons = [
        {
            "name": neuron.name,
            "label": neuron.label,
            "lines": neuron.lines,
            "pictures": [
                (each, pictures[each]) for each in neuron.images[:PICTURES] if each in pictures
            ],
        }
        for neuron in shown
    ]
    with whole_folder(out) as folder:
        save_json(folder / "diff.json", content)
        write_page(
            folder / "diff.html", "diff.html", title=title, lead=lead, clip=clip, neurons=neurons
        )
