"""`secondlens name`."""

from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import SecondLensError
from ..formatting import counted
from .options import (
    PATH,
    ChosenModel,
    PictureChoice,
    batch_option,
    check_parents,
    check_pictures,
    check_trained,
    hold,
    json_option,
    note,
    paths_option,
    print_json,
    tables,
    with_choice,
    with_model,
    writing_lens,
)
from .together import OF_REFEREE, check_together, idle, idle_choice, missing, when

if TYPE_CHECKING:
    from ..lens.names import Names
    from ..words.judging import Kind

SCENES = 2500
"""Of the embedded world, on which neurons are named if nothing else is said."""


@click.command()
@click.argument("lens", type=PATH)
@click.option(
    "--texts",
    default="world",
    show_default=True,
    help="Possible names: a file with one a line, table.csv:column, or a built-in vocabulary.",
)
@click.option("--template", "templates", multiple=True, help="As for describe.")
@click.option(
    "--images",
    type=click.Path(),
    help="Pictures that were not used to fit, about ten for each text; by default, for the "
    "embedded models, scenes.",
)
@click.option(
    "--referee",
    "referees",
    multiple=True,
    help="Another model, which says what is in a picture; if given more than once, all must agree. "
    "By default, for the embedded models, the other one of them.",
)
@click.option(
    "--referee-pretrained",
    multiple=True,
    help="Its open_clip tag, or the path of a checkpoint, in the order of the referees.",
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=PATH,
    help="File of texts, one a line, that compete only with each other for a picture.",
)
@click.option(
    "--everywhere",
    multiple=True,
    type=PATH,
    help="The same for texts of which every picture holds one, such as backgrounds.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of the halves of the pictures, and of the shuffled control.",
)
@click.option(
    "--pairs",
    type=click.IntRange(6),
    help="Draw each name into so many scenes, and see whether it raises the effect; embedded "
    "models. Sixteen tell most apart.",
)
@click.option(
    "--check",
    type=PATH,
    help="Also write an HTML page that asks you of 50 pictures whether they hold their names.",
)
@paths_option
@batch_option
@json_option
@with_choice
@with_model
@writing_lens
def name(
    lens: Path,
    texts: str,
    templates: tuple[str, ...],
    images: str | None,
    referees: tuple[str, ...],
    referee_pretrained: tuple[str, ...],
    kinds: tuple[Path, ...],
    everywhere: tuple[Path, ...],
    seed: int,
    pairs: int | None,
    check: Path | None,
    paths: str,
    batch_size: int | None,
    as_json: bool,
    choice: PictureChoice,
    model: ChosenModel,
) -> None:
    """Name what the neurons in a LENS fire on, and save the names.

    A name is a text that was chosen on one half of the pictures and passed a test on the other. A
    neuron for which no text passed has no reliable name. With --pairs, names that do not raise the
    effect when they are drawn in are said to go with what the neuron fires on.

    Example: secondlens name secondlens-demo/lens
    """
    needed = {"--images": images, "--referee": referees or None}
    of_referee = {"--referee-pretrained": len(referee_pretrained) > len(referees)}
    check_together(
        missing(model.model, "names of", needed),
        idle(of_referee, OF_REFEREE, unless=False),
        idle_choice(choice, images),
        when(
            pairs is not None and not model.model.startswith("demo"),
            f"--pairs draws scenes of an embedded model's world, and {model.model} is another "
            "model: give secondlens.confirm what draws yours, in Python",
        ),
    )
    named = list(zip_longest(referees, referee_pretrained))
    for each, pretrained in named:
        check_trained(each, pretrained, "--referee-pretrained")
    check_pictures(images)
    check_parents(check)
    hold(check)
    from ..data.vocabularies import vocabulary
    from ..demo.model import TWIN
    from ..demo.scenes import World, with_and_without
    from ..lens.lens import Lens
    from ..models.loading import load
    from ..report.checking import write_check
    from ..words.causes import confirm
    from ..words.name_tables import coverage_table, example_table
    from ..words.naming import name as name_lens

    whole = Lens.load(lens)
    fitted = whole.over(paths)
    pool = vocabulary(texts, templates=templates or None)
    given = [_kind(path, False) for path in kinds] + [_kind(path, True) for path in everywhere]
    source = choice.source(images) if images else _scenes(model.model)
    clip = model.load()
    judges = [load(each, pretrained, model.device) for each, pretrained in named]
    names = name_lens(
        clip,
        fitted,
        source,
        pool,
        judges or [load(TWIN[clip.name], device=clip.device)],
        kinds=given or None,
        batch_size=batch_size,
        seed=seed,
        progress=True,
    )
    if pairs is not None:
        world = World(planted=False)
        draw = partial(with_and_without, world)
        names = confirm(clip, fitted, draw, names=names.name, pairs=pairs, progress=True)
    whole.save_held(lens)
    if check is not None:
        write_check(check, clip, names, source)
    say_left_out(names)
    if as_json:
        print_json(as_document(names))
        return
    shown = tables(as_json)
    shown.print(coverage_table(names))
    shown.print(example_table(names))


def _kind(path: Path, everywhere: bool) -> "Kind":
    from ..data.vocabularies import vocabulary
    from ..words.judging import Kind

    if not path.is_file():
        raise SecondLensError(f"there is no file {path}: name a text file with one text a line")
    return Kind(name=path.stem, texts=vocabulary(path).labels, everywhere=everywhere)


def _scenes(model: str) -> Any:
    """Scenes of an embedded model's world on which nothing was fitted."""
    from ..demo.scenes import NAME_SEED, Scenes, World

    if not model.startswith("demo"):
        raise SecondLensError(f"{model} has no pictures of its own: name some with --images")
    return Scenes(World(planted=model == "demo"), NAME_SEED, SCENES)


def say_left_out(names: "Names") -> None:
    """Say which texts could not be names, and what chance gives."""
    if names.rare:
        note(f"{names.rare} texts could not be tested: too few pictures hold them")
    if names.constant:
        neurons = counted(names.constant, "neuron")
        note(f"{neurons} never change and so fire on nothing in particular: they got no names")
    for group in names.alike:
        note(f"the referee cannot tell apart {', '.join(group)}: the first stands for all")
    note(f"shuffled effects gave {names.shuffled} names, over {names.tested} tests")


def as_document(names: "Names") -> dict[str, Any]:
    """The names of every neuron with their evidence."""
    facts = ("vocabulary", "referee", "tested", "shuffled", "shown", "rare", "constant", "alike")
    return {fact: getattr(names, fact) for fact in facts} | {
        "images": len(names.image_ids),
        "neurons": [
            {
                "layer": layer,
                "neuron": neuron,
                "names": [vars(each) for each in names.of(layer, neuron)],
            }
            for layer in sorted(names.texts)
            for neuron in range(len(names.texts[layer]))
        ],
    }
