"""What a folder of photos costs beside encoding them.

    python benchmarks/photos.py --model ViT-B-32

Prints the processor time of masks for five texts (`write_masks`, label maps and page included) and
of words out of a thousand (`Discoverer`, two layers), over that of encoding as many images, one
thread. Pictures are noise in JPEG files of 640 x 480 pixels and weights need not be trained:
neither changes the cost, but that masks of noise have longer outlines than those of things.
"""

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import click
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

import secondlens as sl
from secondlens.applications.discovery.finding import Discoverer
from secondlens.applications.segmentation.photo_masks import MaskSettings, write_masks
from secondlens.data.sources import as_source

BATCH = 32
TEXTS = ("a dog", "a cat", "the sea", "a red car", "a tree")
SIZE = (640, 480)


def photo(seed: int) -> Image.Image:
    """A picture of soft blobs."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(3, 12, 16, generator=generator)
    return to_pil_image(small).resize(SIZE, Image.Resampling.BICUBIC)


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median processor seconds, after one call that warms up."""
    call()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return statistics.median(found)


@click.command()
@click.option("--model", default="ViT-B-32", show_default=True)
@click.option("--photos", default=300, show_default=True)
@click.option("--repeats", default=3, show_default=True)
def main(model: str, photos: int, repeats: int) -> None:
    """Time masks and words of a folder."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights will do
        clip = sl.load(model, check=False)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, *clip.image_size, generator=generator)
    layers = list(range(clip.last_effect_layer - 1, clip.last_effect_layer + 1))
    lens = sl.fit(clip, images[:8], layers, top=2)
    discoverer = Discoverer(clip, lens, [f"thing {i}" for i in range(1000)], layers=layers)
    with torch.no_grad():
        encoding = seconds(lambda: clip.encode_image(images), repeats) / BATCH
        words = seconds(lambda: discoverer(images), repeats) / BATCH
    with tempfile.TemporaryDirectory() as folder:
        for i in range(photos):
            photo(i).save(Path(folder) / f"{i}.jpg", quality=90)
        source, turn = as_source(folder), iter(range(repeats + 1))

        def masks() -> None:
            out = Path(folder) / f"masks-{next(turn)}"
            write_masks(clip, lens, source, MaskSettings(texts=TEXTS), out)

        of_masks = seconds(masks, 1) / photos
    print(f"an encoding: {1000 * encoding:.1f} ms")
    print(f"ten words of 1,000, layers {layers}: {words / encoding:.2f} encodings")
    print(f"masks of {len(TEXTS)} texts, {photos} photos: {of_masks / encoding:.2f} encodings")


if __name__ == "__main__":
    main()
