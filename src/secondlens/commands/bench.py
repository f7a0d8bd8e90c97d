"""`secondlens bench`."""

import click
from rich.table import Table

from .options import DEVICE_HELP, console, json_option, print_json, shape_alone


@click.command()
@click.option("--model", default="ViT-B-32", show_default=True, help="An open_clip name.")
@click.option("--device", default="cpu", show_default=True, help=DEVICE_HELP)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True)
@click.option(
    "--pictures",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="JPEG files of an end-to-end fit.",
)
@click.option("--directions", is_flag=True, help="Also directions from stored coordinates.")
@click.option(
    "--memory-images",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Also memory of the demo's fit over so many images and a tenth of them.",
)
@click.option(
    "--clock",
    type=click.Choice(["wall", "processor"]),
    default="wall",
    show_default=True,
    help="Processor time holds on a busy machine; a fit from files is always timed by the wall.",
)
@click.option("--threads", type=click.IntRange(1), help="By default, torch's own choice.")
@json_option
def bench(
    model: str,
    device: str,
    batch_size: int,
    rounds: int,
    pictures: int,
    directions: bool,
    memory_images: int,
    clock: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure what the lens costs here, as ratios to plain encoding.

    Example: secondlens bench --model ViT-B-32 --directions --json
    """
    import torch

    from .. import bench as benches
    from ..formatting import counted
    from ..models.loading import load

    if threads is not None:
        torch.set_num_threads(threads)
    with shape_alone(model, None):
        found = benches.bench(
            model, batch=batch_size, rounds=rounds, pictures=pictures, clock=clock, device=device
        )
    if directions:
        found |= benches.ranking_cost(device=device)
    if memory_images:
        found |= benches.memory_cost(
            load("demo", device=device), (memory_images // 10, memory_images)
        )
    if as_json:
        print_json(found)
        return
    table = Table(title=f"{model}, batch {batch_size}, {counted(found['threads'], 'thread')}")
    table.add_column("what")
    table.add_column("measured", justify="right")
    for name, value in found.items():
        table.add_row(name, f"{value:.3g}" if isinstance(value, float) else str(value))
    console.print(table)
