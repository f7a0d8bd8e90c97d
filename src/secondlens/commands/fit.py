"""`secondlens fit`."""

from pathlib import Path

import click

from .common import console, layer_numbers, model_options


@click.command()
@click.argument("images", type=str)
@click.option("--out", type=Path, required=True, help="A new folder for the lens.")
@click.option("--layers", default="all", show_default=True, help="Such as 8,9,10, or all.")
@click.option("--top", type=int, help="Top images a neuron; by default 2 %, at most 100.")
@click.option("--convention", default="exact", show_default=True, help="exact or official.")
@click.option(
    "--store",
    default="auto",
    show_default=True,
    help="Coordinates between passes: auto, float32, float16, never.",
)
@click.option(
    "--memory", type=float, help="GB to use besides the model; by default half of what is free."
)
@click.option("--keep-coordinates", is_flag=True, help="So that the lens can be merged.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Processes that decode pictures.",
)
@model_options
def fit(
    images: str,
    out: Path,
    layers: str,
    top: int | None,
    convention: str,
    store: str,
    memory: float | None,
    keep_coordinates: bool,
    batch_size: int,
    workers: int,
    model: str,
    pretrained: str | None,
    precision: str,
    activation: str | None,
    device: str,
) -> None:
    """Fit a lens on IMAGES: a folder of pictures, tar shards or Parquet files.

    An interrupted fit goes on where it was when the same command is given again.

    Example: secondlens fit photos --model ViT-B-32 --pretrained openai --layers 8,9,10 --out lens
    """
    from ..clip import load
    from ..fit import fit as fit_lens
    from ..images import as_source
    from ..storage import check_empty

    check_empty(out)
    source = as_source(images)
    lens = fit_lens(
        load(model, pretrained, device, precision, activation),
        source,
        layer_numbers(layers),
        top=top,
        out=out,
        convention=convention,
        store=store,
        memory=None if memory is None else int(memory * 1e9),
        announce=lambda plan: console.print(str(plan), highlight=False),
        keep_coordinates=keep_coordinates,
        batch_size=batch_size,
        workers=workers,
        progress=True,
    )
    console.print(f"{out}: layers {lens.layers} over {len(lens.image_ids)} images")
    if lens.skipped:
        console.print(f"{len(lens.skipped)} pictures could not be read:")
        for name, reason in lens.skipped.items():
            console.print(f"  {name}: {reason}", markup=False, highlight=False)
