"""`secondlens plan`."""

import time
from pathlib import Path

import click
import torch

from .common import console, layer_numbers, model_options

TIMED_BATCHES = 3


@click.command()
@click.argument("images", type=str)
@click.option("--layers", default="all", show_default=True, help="Such as 8,9,10, or all.")
@click.option("--top", type=int, help="Top images a neuron; by default 2 %, at most 100.")
@click.option("--convention", default="exact", show_default=True, help="exact or official.")
@click.option("--store", default="auto", show_default=True, help="auto, float32, float16, never.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--out", type=Path, default=Path("lens"), show_default=True, help="Where it will be.")
@model_options
def plan(
    images: str,
    layers: str,
    top: int | None,
    convention: str,
    store: str,
    batch_size: int,
    out: Path,
    model: str,
    pretrained: str | None,
    precision: str,
    activation: str | None,
    device: str,
) -> None:
    """Say what a fit on IMAGES (a folder, or a number) will need: passes, memory, disk, time.

    Time is measured on a few batches of noise, and leaves out the decoding of pictures.

    Example: secondlens plan 50000 --model ViT-B-32 --layers 8,9,10
    """
    from ..clip import load
    from ..fit import fit
    from ..images import as_source
    from ..plan import make_plan
    from ..statistics import top_count

    count = int(images) if images.isdigit() else len(as_source(images).ids)
    clip = load(model, pretrained, device, precision, activation)
    chosen = layer_numbers(layers)
    numbers = list(range(clip.layers - 1)) if chosen == "all" else chosen
    numbers = sorted({clip.check_layer(layer) for layer in numbers})
    found = make_plan(
        clip,
        count,
        numbers,
        top=top_count(top, count),
        convention=convention,
        batch_size=batch_size,
        store=store,
        out=out,
    )
    console.print(str(found), highlight=False)
    noise = torch.randn(batch_size, 3, *clip.image_size, generator=torch.Generator().manual_seed(0))
    seconds = []
    for batches in (1, 1 + TIMED_BATCHES):
        sample = noise.repeat(batches, 1, 1, 1)
        began = time.perf_counter()
        fit(clip, sample, numbers, top=2, convention=convention, store="never")
        seconds.append(time.perf_counter() - began)
    # "never" makes two passes, and what both fits have in common drops out
    per_image = (seconds[1] - seconds[0]) / (2 * TIMED_BATCHES * batch_size)
    fixed = max(0.0, seconds[0] - 2 * batch_size * per_image)
    total = fixed + found.passes * count * per_image
    console.print(
        f"about {1000 * per_image:.3g} ms an image and pass, {_duration(total)} in all",
        highlight=False,
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
