"""What a mask costs beside a forward pass.

    python benchmarks/segment.py
    python benchmarks/segment.py --model ViT-B-32 --repeats 3

Prints the time of one more text on an image that is encoded already, over that of encoding the
image, and of 32 images with one text each, over encoding 32 images. Texts are embedded beforehand;
their cost is printed too. Weights need not be trained, so the lens is of random images.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import click
import torch

import secondlens as sl
from secondlens.applications.segmentation.heat_maps import standardise
from secondlens.applications.segmentation.segmenter import (
    BEST,
    PAPER,
    Recipe,
    Segmenter,
    encode,
)
from secondlens.data.embedding import embed_texts

BATCH = 32

RECIPES = {
    "default": BEST,
    "the paper's": PAPER,
    "by effect": Recipe(weigh="effect"),
    "by effect, the paper's number of neurons": replace(PAPER, weigh="effect"),
}


def medians(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median processor seconds of each, taken in turns so that all see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, call in work.items():
            start = time.process_time()
            call()
            if turn:  # the first turn warms up
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


@click.command()
@click.option("--model", default="demo", show_default=True)
@click.option("--repeats", default=7, show_default=True)
def main(model: str, repeats: int) -> None:
    """Time masks of several recipes, the default first."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights will do
        clip = sl.load(model, check=False)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, *clip.image_size, generator=generator)
    layers = range(clip.layers - 1)[-max(1, round(clip.layers / 4)) :]
    lens = sl.fit(clip, images[:4], layers, top=2)
    text = embed_texts(clip, ["a dog"])
    many = text.expand(BATCH, 1, -1)
    for name, recipe in RECIPES.items():
        segmenter = Segmenter(clip, lens, recipe)
        one = encode(clip, images[:1], segmenter.layers)

        def mask(encoded=one, texts=text[None], segmenter=segmenter):
            return standardise(segmenter.heat_maps(encoded, texts), clip.image_size) >= 0.5

        def masks(segmenter=segmenter):
            encoded = encode(clip, images, segmenter.layers)
            return standardise(segmenter.heat_maps(encoded, many), clip.image_size) >= 0.5

        found = medians(
            {
                "one image": lambda: [clip.encode_image(images[:1]) for _ in range(8)],
                "one text": lambda mask=mask: [mask() for _ in range(8)],
                "batch": lambda: clip.encode_image(images),
                "batch with masks": masks,
                "embedding": lambda: clip.encode_text(["a dog"]),
            },
            repeats,
        )
        share = found["one text"] / found["one image"]
        whole = found["batch with masks"] / found["batch"]
        click.echo(
            f"{model}, {name}: one more text {1e3 * found['one text'] / 8:.2f} ms, "
            f"{share:.1%} of a forward pass of {1e3 * found['one image'] / 8:.2f} ms; {BATCH} "
            f"images with a mask each {whole:.2f} F; embedding a text "
            f"{1e3 * found['embedding']:.2f} ms"
        )


if __name__ == "__main__":
    main()
