"""`secondlens fit`."""

from typing import TYPE_CHECKING, Any

import click

from ..storage.files import check_resumable
from ..storage.locks import locked
from .options import (
    POSITIVE,
    STORES,
    ChosenEngine,
    ChosenModel,
    PictureChoice,
    batch_option,
    check_pictures,
    console,
    convention_option,
    json_option,
    layer_numbers,
    note,
    print_json,
    with_choice,
    with_engine,
    with_model,
)

if TYPE_CHECKING:
    from ..lens.plan import Plan


@click.command()
@click.argument("images", type=click.Path())
@click.option(
    "--out",
    type=click.Path(),
    required=True,
    help="A new folder for the lens, here or such as s3://bucket/lens.",
)
@click.option(
    "--subset",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Every so many-th picture, as the paper takes every 250th of ImageNet.",
)
@click.option("--layers", default="all", show_default=True, help="Such as 8,9,10, or all.")
@click.option(
    "--top", type=click.IntRange(2), help="Top images a neuron; by default 2 %, at most 100."
)
@convention_option
@click.option(
    "--store",
    type=click.Choice(STORES),
    default="auto",
    show_default=True,
    help="Coordinates of all images between the stages.",
)
@click.option(
    "--memory", type=POSITIVE, help="GB to use besides the model; by default half of what is free."
)
@click.option("--keep-coordinates", is_flag=True, help="So that the lens can be merged.")
@batch_option
@click.option(
    "--decoders",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Processes that decode pictures, of each worker.",
)
@click.option(
    "--shard-size", type=click.IntRange(1), help="Images that a worker reads before it writes."
)
@click.option(
    "--sample",
    type=click.IntRange(1),
    help="Images that covariances and mean activations are from; by default 8,192.",
)
@click.option(
    "--paths",
    type=click.Choice(("value", "all")),
    default="value",
    show_default=True,
    help="Whose effects: second-order ones, or total ones over all paths beside them.",
)
@click.option(
    "--axes",
    type=click.IntRange(1),
    help="Of the embedding, along which total effects are read, about 1.3 encodings of each "
    "picture an axis; by default a quarter of its width, at most 64.",
)
@json_option
@with_choice
@with_engine
@with_model
def fit(
    images: str,
    out: str,
    subset: int,
    layers: str,
    memory: float | None,
    decoders: int,
    as_json: bool,
    choice: PictureChoice,
    engine: ChosenEngine,
    model: ChosenModel,
    **settings: Any,
) -> None:
    """Fit a lens on IMAGES: a folder of pictures, tar shards or Parquet files; of a text tower
    (--tower text), a file with one text a line.

    Of a set that holds train and val side by side, such as ImageNet, the training pictures are
    taken. Whatever is left out is said.

    An interrupted fit goes on where it was when the same command is given again, with whatever
    engine. IMAGES and the lens may lie in a store that all workers reach.

    Example: secondlens fit photos --out lens

    
    Example: secondlens fit photos --model ViT-B-32 --pretrained openai --layers 8,9,10 --out lens

    
    Example: secondlens fit photos --paths all --out lens

    
    Example: secondlens fit "s3://b/laion/*.tar" --out s3://b/lens --engine ray --address auto
    """
    check_pictures(images)
    chosen = layer_numbers(layers)
    with locked(out):  # what a finished fit has left behind is removed
        check_resumable(out)
    from ..data.sources import Subset
    from ..formatting import counted
    from ..lens.fitting import fit as fit_lens

    source = choice.source(images, model.tower)
    left_out = dict(getattr(source, "damaged", {}))
    if subset > 1:
        source = Subset(source, range(0, len(source.ids), subset))
    lens = fit_lens(
        model.load(),
        source,
        chosen,
        out=out,
        memory=None if memory is None else int(memory * 1e9),
        engine=engine.make(model.device),
        announce=_announce,
        workers=decoders,
        progress=True,
        **settings,
    )
    if as_json:
        facts = {"lens": out, "layers": lens.layers, "images": len(lens.image_ids)}
        print_json(facts | {"skipped": lens.skipped})
        return
    over = counted(len(lens.image_ids), "image")
    console.print(f"{out}: layers {lens.layers} over {over}", markup=False, highlight=False)
    unread = {name: reason for name, reason in lens.skipped.items() if name not in left_out}
    if unread:
        console.print(f"{counted(len(unread), 'picture')} could not be read:")
        for name, reason in unread.items():
            console.print(f"  {name}: {reason}", markup=False, highlight=False)


def _announce(plan: "Plan") -> None:
    for line in str(plan).splitlines():
        note(line)
