"""Pictures decoded a second, by several processes and by this one alone.

    python benchmarks/decoding.py --decoders 2

Files are JPEG of 500 x 375 pixels, drawn here; pictures are resized to 224 as open_clip does.
A source is read shard by shard, as a fit does it, in three ways: in this process; by decoders that
stay from shard to shard; and by decoders that start again with each shard. The ways take turns.
Where other work runs on the machine, wall times differ from round to round: the best round of each
way is compared, and processor time, which other work disturbs less, is told beside it.
"""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import open_clip
import psutil
import torch
from open_clip.model import CLIP
from PIL import Image
from rich.console import Console
from rich.table import Table

from secondlens.data.decoding import decode_file
from secondlens.data.reader import Reader
from secondlens.data.sources import TorchDataset
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.view import Clip

console = Console(width=110)
FILES = 512


class Repeated:
    """A data set of as many pictures as wanted, from fewer files."""

    def __init__(self, files: list[Path], count: int) -> None:
        self.files, self.count = files, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Image.Image:
        return decode_file(self.files[index % len(self.files)])


def small_clip() -> Clip:
    """A model that takes 224 pixels; it is never run."""
    vision = {"image_size": 224, "patch_size": 32, "width": 32, "head_width": 8, "layers": 2}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    preprocess = open_clip.image_transform(224, is_train=False)
    return from_open_clip(CLIP(16, vision, text).eval(), preprocess, name="small")


def draw(folder: Path) -> list[Path]:
    """Noise with structure of some pixels, so that files have the size of photographs."""
    random = np.random.default_rng(0)
    files = []
    for number in range(FILES):
        noise = random.integers(0, 256, (94, 125, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
        files.append(folder / f"{number:04}.jpg")
        picture.save(files[-1], quality=90)
    return files


def read(reader: Reader) -> int:
    """Images that were read; their input for the model is made, and dropped."""
    return sum(len(batch.pixels) for batch in reader)


def apart(reader: Reader, shards: list[range]) -> int:
    """Decoders start and end with each shard; or there are none."""
    return sum(read(replace(reader, positions=shard)) for shard in shards)


def together(reader: Reader, shards: list[range]) -> int:
    """Decoders stay, and go on with the next shard."""
    with closing(reader.decoders()) as kept:
        return sum(
            read(replace(reader, positions=shard, kept=kept, following=following))
            for shard, following in pairwise([*shards, range(0)])
        )


def timed(work: Callable[[], int], count: int) -> tuple[float, float]:
    """Seconds by the clock, and of processors, of this process and of those that it started."""
    before, began = os.times(), time.perf_counter()
    assert work() == count
    seconds, after = time.perf_counter() - began, os.times()
    # user, system, and both of children that have ended
    return seconds, sum(after[:4]) - sum(before[:4])


@click.command()
@click.option("--shard-size", "sizes", default=(64, 512, 4096), multiple=True, show_default=True)
@click.option("--images", default=1024, show_default=True, help="At least; a shard may be more.")
@click.option("--decoders", default=2, show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(sizes: tuple[int, ...], images: int, decoders: int, batch_size: int, rounds: int) -> None:
    """Print images a second for each way of reading, by the size of shards."""
    torch.set_num_threads(1)
    clip = small_clip()
    ways = ("this process", f"{decoders} decoders", f"{decoders} decoders a shard")
    with tempfile.TemporaryDirectory() as folder:
        files = draw(Path(folder))
        average = sum(file.stat().st_size for file in files) / len(files)
        console.print(f"{len(files)} files of {average / 1000:.0f} kB on average")
        for size in sizes:
            count = max(images, size)
            shards = [range(start, min(start + size, count)) for start in range(0, count, size)]
            alone = Reader(
                source=TorchDataset(Repeated(files, count)), clip=clip, batch_size=batch_size
            )
            several = replace(alone, workers=decoders)
            works = (
                lambda alone=alone, shards=shards: apart(alone, shards),
                lambda several=several, shards=shards: together(several, shards),
                lambda several=several, shards=shards: apart(several, shards),
            )
            found: list[list[tuple[float, float]]] = [[] for _ in ways]
            for _ in range(rounds):
                for work, runs in zip(works, found, strict=True):
                    runs.append(timed(work, count))
            table = Table(title=f"{count} images in shards of {size}, {rounds} rounds")
            for title in ("way", "images/s", "times one", "ms of processors an image", "times one"):
                table.add_column(title, justify="right")
            clock, processors = (
                [min(run[place] for run in runs) / count for runs in found] for place in (0, 1)
            )
            for way, seconds, own in zip(ways, clock, processors, strict=True):
                table.add_row(
                    way,
                    f"{1 / seconds:.0f}",
                    f"{clock[0] / seconds:.2f}",
                    f"{1000 * own:.2f}",
                    f"{own / processors[0]:.2f}",
                )
            console.print(table)
    load = psutil.getloadavg()[0]
    console.print(f"load of the machine at the end: {load:.1f} on {psutil.cpu_count()} cores")


if __name__ == "__main__":
    main()
