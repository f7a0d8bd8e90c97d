"""`secondlens fit`."""

from pathlib import Path

import click

from .common import console, layer_numbers, model_options


@click.command()
@click.argument("images", type=Path)
@click.option("--out", type=Path, required=True, help="A new folder for the lens.")
@click.option("--layers", default="all", show_default=True, help="Such as 8,9,10, or all.")
@click.option("--top", type=int, help="Top images a neuron; by default 2 %.")
@click.option("--convention", default="exact", show_default=True, help="exact or official.")
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
    images: Path,
    out: Path,
    layers: str,
    top: int | None,
    convention: str,
    keep_coordinates: bool,
    batch_size: int,
    workers: int,
    model: str,
    pretrained: str | None,
    precision: str,
    device: str,
) -> None:
    """Fit a lens on a folder of IMAGES."""
    from ..clip import load
    from ..fit import fit as fit_lens
    from ..images import Folder
    from ..storage import check_empty

    check_empty(out)
    source = Folder(images)
    lens = fit_lens(
        load(model, pretrained, device, precision),
        source,
        layer_numbers(layers),
        top=top,
        out=out,
        convention=convention,
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
