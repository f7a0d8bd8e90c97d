"""What engines cost and how they scale, on this machine and in simulation.

    python benchmarks/engine.py two          # two workers against one, and Ray against processes
    python benchmarks/engine.py dispatch     # seconds of a driver for each task, by engine
    python benchmarks/engine.py driver       # memory of the driver, 10 to 10,000 shards
    python benchmarks/engine.py simulated    # 1 to 1,000 workers

Pictures are noise made when it is read, and the model is the embedded one or a random one of the
shape that `--model` names: time depends on shapes only. Runs of what is compared take turns.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
import open_clip
import psutil
import ray
import torch
from open_clip.model import CLIP
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from secondlens.commands.plan import duration
from secondlens.data.reader import Reader
from secondlens.engine.local import Local
from secondlens.engine.pool import Engine, Workers
from secondlens.engine.ray import Ray
from secondlens.lens import capacity
from secondlens.lens.capacity import measured
from secondlens.lens.fitting import FitRun, fit
from secondlens.lens.moments import Moments, top_count
from secondlens.lens.nodes import MEANS, TOP_IMAGES, Node, Readable
from secondlens.lens.plan import make_plan
from secondlens.lens.ranking import Ranking
from secondlens.lens.shards import ShardWork
from secondlens.models.loading import load
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.view import Clip
from secondlens.storage.checkpoints import Checkpoints

console = Console(width=110)


class Noise:
    """Preprocessed pictures, the same for each position."""

    def __init__(self, size: tuple[int, int], count: int) -> None:
        self.size = size
        self.ids = [str(n) for n in range(count)]

    def load(self, index: int) -> Tensor:
        return torch.randn(3, *self.size, generator=torch.Generator().manual_seed(index))


@click.group()
def main() -> None:
    """Engines, measured and simulated."""


def timed(clip: Clip, engine: Engine | None, shards: int, shard_size: int, layer: int) -> float:
    """Seconds of a fit, without the start of its workers."""
    images = Noise(clip.image_size, shards * shard_size)
    with tempfile.TemporaryDirectory() as folder:
        began: list[float] = []
        chosen = Warm(engine, began)
        fit(
            clip,
            images,
            [layer],
            top=50,
            store="never",
            shard_size=shard_size,
            engine=chosen,
            out=f"{folder}/lens",
        )
        return time.perf_counter() - began[0]


class Warm:
    """An engine whose workers are all there before the clock starts."""

    def __init__(self, engine: Engine | None, began: list[float]) -> None:
        self.engine, self.began = engine or Local(), began
        self.shared = self.engine.shared

    @contextmanager
    def start(self, work) -> Iterator[Workers]:
        with self.engine.start(work) as workers:
            for _ in range(getattr(workers, "size", 0)):
                worker = workers.hire()
                worker.ready().result()
                workers._idle.append(worker)
            self.began.append(time.perf_counter())
            yield workers


@main.command()
@click.option("--model", default="demo", show_default=True)
@click.option("--shard-size", default=1000, show_default=True)
@click.option("--shards", default=4, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def two(model: str, shard_size: int, shards: int, rounds: int) -> None:
    """Two workers against one, and Ray against processes, by wall time in turns."""
    torch.set_num_threads(1)
    clip = load(model)
    layer = clip.last_effect_layer - 1
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    ray.init(
        num_cpus=2,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=folder,
    )
    engines: dict[str, Engine | None] = {
        "this process": None,
        "1 process": Local(workers=1),
        "2 processes": Local(workers=2),
        "1 Ray actor": Ray(workers=1),
        "2 Ray actors": Ray(workers=2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            seconds[name].append(timed(clip, engine, shards, shard_size, layer))
            console.print(f"{name}: {seconds[name][-1]:.2f} s")
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
    table = Table(title=f"{model}, layer {layer}, {shards} shards of {shard_size} images")
    for title in ("engine", "seconds (median)", "images/s, both passes", "all rounds"):
        table.add_column(title)
    for name, runs in seconds.items():
        middle = statistics.median(runs)
        rate = f"{2 * shards * shard_size / middle:.0f}"
        table.add_row(name, f"{middle:.2f}", rate, " ".join(f"{s:.2f}" for s in runs))
    console.print(table)

    def ratio(one: str, other: str) -> float:
        """Median over rounds, because what disturbs a round disturbs both."""
        return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))

    console.print(f"two processes against one: {ratio('1 process', '2 processes'):.2f} times")
    console.print(f"two actors against one: {ratio('1 Ray actor', '2 Ray actors'):.2f} times")
    for number, name in (("1", "1 process"), ("2", "2 processes")):
        ray_name = f"{number} Ray actor" + ("s" if number == "2" else "")
        console.print(f"Ray over {name}: {100 * (ratio(ray_name, name) - 1):+.1f} %")
    load_average = psutil.getloadavg()[0]
    console.print(f"load of the machine: {load_average:.1f} on {psutil.cpu_count()} cores")


def nothing(task: int) -> None:
    """The shortest task there is."""


@main.command()
@click.option("--tasks", default=2000, show_default=True)
def dispatch(tasks: int) -> None:
    """Seconds of a driver for each task."""
    for name, engine in (
        ("this process", Local()),
        ("1 process", Local(workers=1)),
        ("2 processes", Local(workers=2)),
        ("2 Ray actors", Ray(workers=2)),
    ):
        with engine.start(nothing) as workers:
            list(workers.map(range(10)))
            began, own = time.perf_counter(), time.process_time()
            list(workers.map(range(tasks)))
            seconds, own = time.perf_counter() - began, time.process_time() - own
            console.print(
                f"{name}: {1e3 * seconds / tasks:.3f} ms a task, of which "
                f"{1e3 * own / tasks:.3f} ms are the driver's processor time"
            )


@main.command()
@click.option("--shards", "counts", default=(10, 100, 1000, 10_000), multiple=True)
def driver(counts: tuple[int, ...]) -> None:
    """Memory of the driver while it merges synthetic shards of a tiny model.

    Workers are processes, and each leaf writes moments and top images of random numbers.
    """
    vision = {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 8, "layers": 3}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    clip = from_open_clip(CLIP(16, vision, text).eval(), name="tiny")
    layer = clip.last_effect_layer
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            base, peak = merged(clip, layer, count, Path(folder))
            console.print(
                f"{count:>6} shards: driver at most {peak / 2**20:.1f} MiB above the "
                f"{base / 2**20:.0f} MiB it had before"
            )


READABLE = Readable(images=8, unread=(), skipped={})


class Synthetic(ShardWork):
    """Leaves that are made up; all else is the fit's own."""

    def means(self, node: Node) -> None:
        (layer,) = self.plan.layers
        rank, neurons = min(self.clip.heads, self.clip.dim), self.clip.neurons
        z = torch.randn(8, neurons, rank, generator=torch.Generator().manual_seed(node.number))
        moments = Moments.of(z)
        sums = torch.zeros(self.clip.tokens, neurons)
        self.nodes.save_means(node, READABLE, {layer: moments}, {layer: sums})

    def top_images(self, node: Node) -> None:
        (layer,) = self.plan.layers
        rank, neurons = min(self.clip.heads, self.clip.dim), self.clip.neurons
        z = torch.randn(8, neurons, rank, generator=torch.Generator().manual_seed(node.number))
        centre = self.nodes.centres(0, TOP_IMAGES)[layer]
        ranking = Ranking(centre, 8)
        ranking.see((z - centre.mean).transpose(0, 1), torch.arange(8) + 8 * node.number)
        self.nodes.save_ranked(node, READABLE, {layer: ranking.ranked()})


def merged(clip: Clip, layer: int, count: int, folder: Path) -> tuple[int, int]:
    """Resident bytes of this process before, and the most above them."""
    images = Noise(clip.image_size, 8 * count)
    plan = make_plan(
        clip, 8 * count, [layer], top=8, batch_size=8, store="never", shard_size=8, memory=2**33
    )
    parts = Checkpoints(folder / "parts")
    parts.claim({}, {})
    reader = Reader(source=images, clip=clip, batch_size=8)
    work = Synthetic(clip, plan, "exact", reader, parts, partial(top_count, 8))
    run = FitRun(work, Local(workers=1), Progress(disable=True))
    process = psutil.Process()
    before, peak = process.memory_info().rss, 0

    class Watched:
        def __init__(self, workers) -> None:
            self.workers = workers

        def map(self, tasks):
            nonlocal peak
            for done in self.workers.map(tasks):
                peak = max(peak, process.memory_info().rss)
                yield done

    with Local(workers=1).start(work) as workers:
        for stage in (MEANS, TOP_IMAGES):
            run.make_tree(Watched(workers), work.nodes.root(0, stage))
    assert work.nodes.readable(work.nodes.root(0, MEANS)).images == 8 * count
    return before, max(0, peak - before)


@main.command()
@click.option("--model", default="ViT-L-14", show_default=True)
@click.option("--images", default=400_000_000, show_default=True)
@click.option("--tflops", default=100.0, show_default=True)
@click.option("--network", default=1.0, show_default=True, help="GB/s of a worker.")
@click.option("--bandwidth", default=25.0, show_default=True, help="GB/s of the store.")
@click.option("--layers", type=int, default=4, show_default=True, help="The last so many.")
def simulated(
    model: str, images: int, tflops: float, network: float, bandwidth: float, layers: int
) -> None:
    """The time of a fit on 1 to 1,000 workers, and its parts that do not scale."""
    empty = open_clip.create_model(model, device="meta")
    clip = from_open_clip(empty.eval(), name=model, check=False)
    rates, _ = measured(
        "cpu",
        clip.dtype,
        tflops=tflops,
        network=network * 1e9,
        store=bandwidth * 1e9,
        decoders=8,
        decoded=100,
    )
    chosen = list(range(clip.layers - 1))[-layers:]
    table = Table(title=f"{model}, {images:,} images, layers {chosen[0]} to {chosen[-1]}")
    for title in ("workers", "time", "speed-up", "of ideal", "reading", "merging", "finish"):
        table.add_column(title, justify="right")
    alone = None
    for workers in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000):
        plan = capacity.spread_plan(
            clip, images, chosen, workers=workers, top=100, memory=int(64e9)
        )
        job = capacity.job(clip, plan, 100, 100_000)
        timings = capacity.simulate(capacity.stages(job, rates, workers), rates, workers)
        total = capacity.total(timings)
        alone = alone or total
        merging = sum(t.seconds for t in timings if t.stage.name.startswith("merge"))
        finish = timings[-1].seconds
        table.add_row(
            *(f"{workers:,}", duration(total), f"{alone / total:.1f}"),
            *(f"{alone / total / workers:.0%}", duration(total - merging - finish)),
            *(duration(merging), duration(finish)),
        )
    console.print(table)


if __name__ == "__main__":
    main()
