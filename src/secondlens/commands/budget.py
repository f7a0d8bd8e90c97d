"""`secondlens budget`."""

from pathlib import Path

import click

from ..errors import SecondLensError
from .options import (
    PATH,
    ChosenModel,
    PictureChoice,
    check_lens,
    console,
    hold_new,
    json_option,
    layer_numbers,
    note,
    print_json,
    with_choice,
    with_model,
)

SCENES = 64
"""Of the embedded world, where no pictures are named."""
RUNS_OF_PATHS = 10
"""As costly as telling paths apart is, the run that gives the total included."""


@click.command()
@click.argument("lens", type=PATH)
@click.argument("images", type=click.Path(), required=False)
@click.option("--layers", default="all", show_default=True, help="Such as 8,9,10, or all.")
@click.option(
    "--neurons",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="Drawn at random from each layer; 0 for all.",
)
@click.option(
    "--neuron", type=click.IntRange(0), multiple=True, help="This one instead; repeatable."
)
@click.option(
    "--paths",
    is_flag=True,
    help="Split what is neither by class of path, and compare what effects foretell with what "
    "ablations change: about ten times the price.",
)
@click.option(
    "--texts",
    help="For --paths, classes along which effects are compared: a file with one a line, or a "
    "built-in vocabulary; by default the objects of the embedded models' world, or for others each "
    "picture's own embedding.",
)
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True)
@click.option(
    "--decoders",
    "workers",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Processes that decode pictures.",
)
@click.option("--out", type=PATH, help="A folder for CSV, JSON and a plot.")
@json_option
@with_choice
@with_model
def budget(
    lens: Path,
    images: str | None,
    layers: str,
    neurons: int,
    neuron: tuple[int, ...],
    paths: bool,
    texts: str | None,
    batch_size: int,
    workers: int,
    out: Path | None,
    as_json: bool,
    choice: PictureChoice,
    model: ChosenModel,
) -> None:
    """Say how much of what neurons of a LENS do to IMAGES is direct, second-order, and neither.

    A neuron's total effect is indirect: the network runs on from its layer for each image and
    neuron. How long that takes is measured and said first. For the embedded models, IMAGES are by
    default unseen scenes. The network is linearised once more with --paths, at the middle of the
    way from each neuron's mean to its activation.

    Example: secondlens budget secondlens-demo/lens --layers 5 --neurons 4
    """
    check_lens(lens)
    if texts is not None and not paths:
        raise SecondLensError("--texts is of what paths foretell: add --paths")
    chosen = layer_numbers(layers)
    hold_new(out)
    from ..applications.ablation.budget import budget as divide
    from ..data.vocabularies import object_names, vocabulary
    from ..effects.ablated_runs import check_neurons, indirect_seconds, sample
    from ..formatting import counted
    from ..lens.lens import Lens
    from ..paper.effect_budget import budgets
    from ..paper.results import as_document, show, write
    from ..paper.study import TEST_SEED, scenes

    fitted = Lens.load(lens)
    wanted = fitted.layers if chosen == "all" else chosen
    for layer in wanted:
        fitted[layer]
    if images is not None:
        source = choice.source(images)
    elif model.model.startswith("demo"):
        source = scenes(TEST_SEED, SCENES, planted=model.model == "demo").source
    else:
        raise SecondLensError(f"{model.model} has no pictures of its own: name IMAGES")
    clip = model.load()
    fitted.check_model(clip)
    some = list(neuron) or sample(clip, neurons or None)
    check_neurons(clip, wanted[0], some)
    runs = len(some) * len(source.ids)
    seconds = runs * sum(indirect_seconds(clip, layer) for layer in wanted)
    classes = None
    if texts is not None:
        classes = vocabulary(texts).embed(clip)
    elif paths and model.model.startswith("demo"):
        classes = object_names().embed(clip)
    seconds *= RUNS_OF_PATHS if paths else 1
    note(f"{counted(runs, 'run')} from each layer on, about {seconds:.0f} s in all")
    result = budgets(
        [
            divide(
                *(clip, fitted, source, layer, some),
                nodes=int(paths),
                directions=classes,
                batch_size=batch_size,
                workers=workers,
                progress=True,
            )
            for layer in wanted
        ],
        (),
    )
    files = [] if out is None else write(result, out)
    if as_json:
        print_json(as_document(result))
        return
    show(result, console)
    for path in files:
        console.print(str(path), markup=False, highlight=False)
