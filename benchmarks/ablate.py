"""What ablations and indirect effects cost, as ratios to plain encoding measured in the same run.

    python benchmarks/ablate.py
    python benchmarks/ablate.py --model ViT-B-32 --batch 32 --rounds 3

Times are of the processor, so that they hold on a busy machine. Weights are random: time depends on
the shape only. What is needed once for a model and lens, before the first image, is left out and
printed on its own.
"""

import statistics
import time
from collections.abc import Callable

import click
import torch
from torch.nn.functional import normalize

from secondlens.applications.ablation.accuracy import removals
from secondlens.applications.ablation.readings import SecondOrder
from secondlens.bench import random_clip
from secondlens.commands.group import keep_freed_memory
from secondlens.data.labelled import ranks
from secondlens.effects.ablated_runs import stop_after
from secondlens.lens.layer import LayerLens
from secondlens.models.view import Clip


def seconds(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median processor seconds of each, taken in turns, after a turn that does not count."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, call in work.items():
            began = time.process_time()
            call()
            if turn:
                found[name].append(time.process_time() - began)
    return {name: statistics.median(each) for name, each in found.items()}


def some_lens(clip: Clip) -> LayerLens:
    """Means, directions and thresholds of no data: 2 % of norms are above the threshold."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(clip.neurons, clip.dim, generator=generator)
    empty = torch.zeros(clip.neurons)
    return LayerLens(
        mean=1e-4 * rows,
        directions=normalize(rows, dim=-1),
        energy=empty,
        top_images=torch.zeros(clip.neurons, 1, dtype=torch.int64),
        top_norms=torch.full((clip.neurons, 1), 0.01),
        explained=empty,
        explained_all=empty,
        explained_null=empty,
        selectivity=empty,
        selectivity_null=empty,
        histogram=torch.zeros(clip.neurons, 40, dtype=torch.int64),
        activation_mean=torch.zeros(clip.tokens, clip.neurons),
    )


@click.command()
@click.option("--model", default="ViT-B-32", show_default=True)
@click.option("--batch", default=32, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--classes", default=1000, show_default=True)
@click.option("--layer", type=int, help="Of the indirect effects; by default the paper's.")
@click.option("--neurons", default=64, show_default=True, help="A sample, run on for each image.")
@torch.no_grad()
def main(
    model: str, batch: int, rounds: int, classes: int, layer: int | None, neurons: int
) -> None:
    """Time all second-order ablations of all layers, and indirect effects of a sample."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as commands do
    clip = random_clip(model)
    layer = clip.layers - 3 if layer is None else layer
    images = torch.randn(batch, 3, *clip.image_size)
    classifier = normalize(torch.randn(classes, clip.dim), dim=-1)
    labels = torch.zeros(batch, dtype=torch.int64)

    few = images[:4]
    held = torch.zeros(clip.tokens, clip.neurons)
    found = seconds(
        {
            "encode": lambda: clip.encode_image(few.repeat(8, 1, 1, 1)),
            "indirect": lambda: [
                stop_after(clip, few, layer).without(list(range(start, start + 16)), held)
                for start in range(0, neurons, 16)
            ],
        },
        rounds,
    )
    one, run = found["encode"] / 32, found["indirect"] / (len(few) * neurons)
    click.echo(
        f"{model}, indirect effects of layer {layer}: {1e3 * run:.2f} ms a neuron and image, "
        f"{one / run:.1f} times less than a full pass of {1e3 * one:.1f} ms"
    )

    fitted = some_lens(clip)
    began = time.process_time()
    effects = SecondOrder(
        clip, dict.fromkeys(range(clip.layers - 1), fitted), "exact", range(clip.neurons)
    )
    effects.aim(dict.fromkeys(effects.directions, fitted.directions[:, None]))
    click.echo(f"once for a lens: {time.process_time() - began:.0f} s")
    generator = torch.Generator().manual_seed(0)

    def everything() -> None:
        with effects:
            embedding, readings = effects.read(images)
            for reading in readings.values():
                ranks(embedding - reading.sum(None), classifier, labels)

    def ablate() -> None:
        with effects:
            embedding, readings = effects.read(images)
            for reading in readings.values():
                large = reading.norms > fitted.threshold
                for _, removed in removals(reading, large, fitted.directions, {}, False, generator):
                    ranks(embedding - removed, classifier, labels)

    found = seconds(
        {"encode": lambda: clip.encode_image(images), "everything": everything, "ablate": ablate},
        rounds,
    )
    one = found["encode"]
    click.echo(
        f"{model}, each of {clip.layers - 1} layers, encoding included: without all effects "
        f"{found['everything'] / one:.2f} F, all six ablations {found['ablate'] / one:.2f} F, "
        f"F = {1e3 * one / batch:.1f} ms"
    )


if __name__ == "__main__":
    main()
