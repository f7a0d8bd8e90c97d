"""The explorer under load, as `secondlens explore` serves it, in a process of its own.

    python benchmarks/explorer.py                       # a lens of the size of ViT-B/32
    python benchmarks/explorer.py --lens secondlens-demo/lens --soak 600
    python benchmarks/explorer.py --crowd

The lens is synthetic: random numbers in the shapes of eleven layers of 3,072 neurons, 5,000 images,
30,000 words in codes of 128, on disk, and a ViT-B/32 with random weights, which searches as fast as
any other. Clients ask for the pages of random neurons, data included, each over one connection of
its own: first without a pause between pages, so that they take all the processor can give, then
with a second between an answer and the next question. The machine's processors are shared with
them. In a soak clients read with pauses while pictures are uploaded: does memory grow? A crowd asks
for everything, sends what is no picture, and wants costly answers all at once, of a lens of the
embedded model on sixty scenes unless one is named: what does the server answer, and do those who
only read wait?
"""

import asyncio
import io
import json
import multiprocessing
import os
import random
import re
import socket
import subprocess
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import httpx
import numpy as np
import psutil
import torch
from PIL import Image

LAYERS, NEURONS, DIM, HEADS, TOP, IMAGES, TEXTS, K = 11, 3072, 512, 12, 100, 5000, 30_000, 128
PATCHES, NAMED_ON = 49, 5000
PICTURE_BYTES = 6000
SEARCHES = 20


def fitted(rng):
    """The statistics of a layer."""
    from secondlens.lens.layer import LayerLens

    directions = torch.nn.functional.normalize(torch.randn(NEURONS, DIM, generator=rng), dim=1)
    shares = ("explained", "explained_all", "explained_null", "selectivity", "selectivity_null")
    return LayerLens(
        mean=directions * 0.01,
        directions=directions,
        energy=torch.rand(NEURONS, generator=rng) * 1e-4,
        top_images=torch.randint(IMAGES, (NEURONS, TOP), generator=rng),
        top_norms=torch.rand(NEURONS, TOP, generator=rng).sort(descending=True).values,
        **{name: torch.rand(NEURONS, generator=rng) for name in shares},
        histogram=torch.randint(50, (NEURONS, 40), generator=rng),
        activation_mean=torch.rand(PATCHES + 1, NEURONS, generator=rng),
    )


def surveyed(layer):
    """What a survey saw of a layer."""
    from secondlens.explorer import records

    rng, slots = np.random.default_rng(layer), records.SLOTS
    paths = (LAYERS - layer) * HEADS
    return records.LayerSurvey(
        images=rng.integers(0, IMAGES + NAMED_ON, (NEURONS, slots), dtype=np.int32),
        effect=rng.random((NEURONS, slots), dtype=np.float32),
        peak=rng.random((NEURONS, slots), dtype=np.float32),
        path=rng.integers(0, paths, (NEURONS, slots)).astype(np.int16),
        heat=rng.integers(0, 16, (NEURONS, slots, PATCHES), dtype=np.uint8),
        scale=np.ones(NEURONS, dtype=np.float32),
        extent=np.tile(np.array([-1, 1], dtype=np.float32), (NEURONS, 1)),
        shares=np.full((NEURONS, records.BANDS), 0.2, dtype=np.float32),
        counts=rng.integers(0, 999, (NEURONS, records.BINS), dtype=np.int32),
        paths=rng.random((NEURONS, paths), dtype=np.float32) / paths,
        classes=rng.integers(0, TEXTS, (NEURONS, 8), dtype=np.int32),
        change=rng.random((NEURONS, 8), dtype=np.float32),
    )


def named(labels):
    """Names of every neuron, up to four."""
    from secondlens.lens.names import Names

    rng, four = np.random.default_rng(0), (NEURONS, 4)
    texts = {n: torch.from_numpy(rng.integers(-1, TEXTS, four)) for n in range(LAYERS)}
    texts = {n: each.sort(dim=1, descending=True).values for n, each in texts.items()}
    areas = {n: each.double().clamp(0, 1) for n, each in texts.items()}
    return Names(
        vocabulary="words",
        referee="labels",
        labels=labels,
        image_ids=tuple(f"named/image-{i:05}.jpg" for i in range(NAMED_ON)),
        shown=24,
        tested=LAYERS * NEURONS,
        shuffled=0,
        rare=0,
        texts=texts,
        auc=areas,
        p=areas,
        q=areas,
        held={n: torch.full(four, 9) for n in range(LAYERS)},
        pictures={
            n: torch.from_numpy(rng.integers(0, NAMED_ON, (*four, 6))) for n in range(LAYERS)
        },
    )


def write(folder):
    """The weights, and a lens with its survey and layout."""
    import secondlens as sl
    from secondlens.explorer.layout import Layout
    from secondlens.explorer.opening import FOLDER
    from secondlens.explorer.records import RESPONDING, Survey, fingerprint
    from secondlens.lens.codes import Codes
    from secondlens.lens.fitting import describe_model
    from secondlens.lens.lens import Lens

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clip = sl.load("ViT-B-32", check=False)
    torch.save(clip.model.state_dict(), folder / "weights.pt")
    rng = torch.Generator().manual_seed(0)
    coefficients = {n: torch.randn(NEURONS, K, generator=rng) for n in range(LAYERS)}
    words = Codes(
        labels=tuple(f"word{i}" for i in range(TEXTS)),
        normalise="centred",
        indices={n: torch.randint(TEXTS, (NEURONS, K), generator=rng) for n in range(LAYERS)},
        coefficients=coefficients,
        brief={n: rows[:, :8] for n, rows in coefficients.items()},
        cosine={n: torch.rand(NEURONS, generator=rng) for n in range(LAYERS)},
        mean_text=torch.zeros(DIM),
    )
    lens = Lens(
        model=describe_model(clip),
        convention="exact",
        top=TOP,
        image_ids=tuple(f"folder/image-{i:05}.jpg" for i in range(IMAGES)),
        skipped={},
        by_layer={layer: fitted(rng) for layer in range(LAYERS)},
        codes={"words": words},
        names={"words by labels": named(words.labels)},
    )
    lens.save(folder / "lens")
    lens, numbers = Lens.load(folder / "lens"), np.random.default_rng(0)
    pictures = len(lens.picture_ids)
    Survey(
        lens=fingerprint(lens),
        surveyed=IMAGES,
        named=True,
        layers={layer: surveyed(layer) for layer in range(LAYERS)},
        codes={"words": {n: numbers.random((NEURONS, 152), np.float32) for n in range(LAYERS)}},
        responding=np.zeros((IMAGES, RESPONDING), dtype=np.int32),
        response=np.ones((IMAGES, RESPONDING), dtype=np.float32),
        texts=np.zeros((TEXTS, DIM), dtype=np.float16),
        pictures=np.zeros(pictures * PICTURE_BYTES, dtype=np.uint8),
        offsets=np.arange(pictures + 1, dtype=np.int64) * PICTURE_BYTES,
    ).save(folder / "lens" / FOLDER)
    total = LAYERS * NEURONS
    Layout(
        place=torch.rand(total, 2, generator=rng),
        neighbours=torch.randint(total, (total, 8), generator=rng, dtype=torch.int32),
        cosines=torch.rand(total, 8, generator=rng),
    ).save(folder / "lens" / FOLDER / "layout.safetensors", lens)


@contextmanager
def explored(lens, *options):
    """The address of a server, its process, and the seconds until it answered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "secondlens", "explore", lens, "--port", str(port)]
    start = time.perf_counter()
    server = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/how/", timeout=600)
                break
            except httpx.ConnectError:
                assert server.poll() is None, "the server ended"
                time.sleep(0.1)
        yield port, psutil.Process(server.pid), time.perf_counter() - start
    finally:
        server.terminate()
        server.wait()


async def ask(reader, writer, path):
    """One request on a connection that is kept; its seconds and the length of the answer."""
    start = time.perf_counter()
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    return time.perf_counter() - start, length


async def load(port, neurons, *, clients, seconds, pause):
    """Seconds and bytes of every page that all clients got."""
    end, found = time.perf_counter() + seconds, []

    async def client(seed):
        chance = random.Random(seed)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(pause * chance.random())
        while time.perf_counter() < end:
            layer, count = chance.choice(neurons)
            found.append(await ask(reader, writer, f"/neuron/{layer}/{chance.randrange(count)}/"))
            await asyncio.sleep(pause)
        writer.close()

    await asyncio.gather(*(client(seed) for seed in range(clients)))
    return np.array(found)


def whole(client, path):
    """Seconds of a page with every script, style and picture that it names."""
    start = time.perf_counter()
    text = client.get(path).text
    for name in re.findall(r'(?:src|href)="((?:static|pictures)/[^"]+)"', text):
        client.get(f"/{name}").raise_for_status()
    return time.perf_counter() - start


def timed(client, path):
    start = time.perf_counter()
    client.get(path).raise_for_status()
    return time.perf_counter() - start


def measure(port, process, neurons, clients, seconds):
    """Times of pages, of searches, and of many clients at once."""
    found = {}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        found["first page with all it names, s"] = whole(client, "/")
        found["first table of all neurons, s"] = timed(client, "/data/neurons.json.gz")
        before = sum(process.cpu_times()[:2])
        searches = [timed(client, f"/live/search?text=word+{i}") for i in range(SEARCHES)]
        used = sum(process.cpu_times()[:2]) - before
    found["first search, ms"] = 1000 * searches[0]
    found["search, median, ms"] = 1000 * float(np.median(searches))
    found["search, 95th percentile, ms"] = 1000 * float(np.quantile(searches, 0.95))
    found["search, processor time of the server, ms"] = 1000 * used / SEARCHES
    for count, pause in ((1, 0), (clients, 0), (clients, 1)):
        before, other = sum(process.cpu_times()[:2]), psutil.cpu_times()
        times, sizes = asyncio.run(
            load(port, neurons, clients=count, seconds=seconds, pause=pause)
        ).T
        used = sum(process.cpu_times()[:2]) - before
        name = f"neuron page, {count} client{'s' if count > 1 else ''}, {pause} s pause"
        found[f"{name}, median, ms"] = 1000 * float(np.median(times))
        found[f"{name}, 95th percentile, ms"] = 1000 * float(np.quantile(times, 0.95))
        found[f"{name}, pages a second"] = len(times) / seconds
        # what a busy machine does not change
        found[f"{name}, processor time of the server, ms"] = 1000 * used / len(times)
        idle = psutil.cpu_times().idle - other.idle
        found[f"{name}, machine idle, %"] = 100 * idle / seconds / os.cpu_count()
    found["neuron page, kB"] = float(sizes.mean()) / 1000
    return found | memory(process)


def memory(process):
    """Of the server: resident, and the largest it ever was."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    kilobytes = dict(re.findall(r"(Vm\w+|Rss\w+):\s+(\d+) kB", status))
    names = {"VmRSS": "memory", "RssAnon": "memory not of files", "VmHWM": "largest memory"}
    return {f"{name}, MB": int(kilobytes[key]) * 1024 / 1e6 for key, name in names.items()}


def soak(port, process, neurons, clients, seconds):
    """Memory while clients read pages, and pictures of all sizes are uploaded one after another."""
    rng, start, count, steps = np.random.default_rng(0), time.perf_counter(), 0, 10
    reading = load(port, neurons, clients=clients, seconds=seconds, pause=1)
    readers = ThreadPoolExecutor(1).submit(asyncio.run, reading)
    found = {}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for step in range(steps + 1):
            while time.perf_counter() < start + seconds * step / steps or not count:
                upload(client, rng)
                count += 1
            found[f"after {step * seconds / steps:.0f} s, {count} pictures"] = memory(process)
    found["pages read meanwhile"] = len(readers.result())
    return found


def upload(client, rng):
    """A picture explained and segmented, and a search."""
    width, height = rng.integers(20, 3000, 2)
    colours = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(colours).resize((int(width), int(height)))
    body = io.BytesIO()
    picture.save(body, "jpeg")
    for path in ("/live/image", "/live/segment?text=a+dog&text=a+ship"):
        client.post(path, content=body.getvalue()).raise_for_status()
    timed(client, "/live/search?text=a+dog")


REQUESTS, UPLOADS, COSTLY = 10_000, 500, 100
WARM_UP = 1_000
"""Requests before memory is looked at for the first time."""


def small(folder):
    """A described lens of one layer of the embedded model."""
    import secondlens as sl
    from secondlens.demo.scenes import FIT_SEED, Scenes, World

    clip = sl.load("demo")
    lens = sl.fit(clip, Scenes(World(), FIT_SEED, 60), layers=[5])
    sl.describe(clip, lens, "world", 8)
    lens.save(folder / "lens")


def picture(width=64, height=64):
    """A PNG file of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    body = io.BytesIO()
    Image.fromarray(noise).save(body, "png")
    return body.getvalue()


def hostile(number):
    """Something that is not a picture to explain."""
    whole, chance = picture(), random.Random(number)
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
    damaged = bytearray(whole)
    damaged[chance.randrange(8, len(whole))] ^= 255
    return (
        b"",
        chance.randbytes(chance.randrange(1, 5000)),
        whole[: chance.randrange(1, len(whole))],
        bytes(damaged),
        header + (2**30).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00" + bytes(99),
        b"%!PS-Adobe-3.0 EPSF-3.0\n" * 40,
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
        b"GIF89a" + chance.randbytes(200),
        b"II*\x00" + b"\xff" * 500,
        bytes(11_000_000) if number % 100 == 9 else b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(99),
    )[number % 10]


def light(chance, neurons):
    """An address of what is only read."""
    layer, count = chance.choice(neurons)
    neuron = chance.randrange(count)
    return chance.choice(
        (
            *("/", "/neurons/", "/map/", "/how/", "/data/neurons.json.gz"),
            *(f"/neuron/{layer}/{neuron}/", f"/layer/{layer}/", f"/preview/{layer}/{neuron}.png"),
        )
    )


def mixed(chance, neurons):
    """An address of any kind; every fifth is one that does not exist, or cannot."""
    layer, count = chance.choice(neurons)
    wrong = (
        *("/nowhere/", f"/neuron/{layer}/{count}/", "/neuron/x/-1/", "/../../etc/passwd", "/%00"),
        *("/live/search", "/live/search?text=" + "x" * 5000, "/live/search?text=%ED%A0%80"),
        *(f"/live/wall/{layer}/{2**70}?text=a", "/runs/pictures/99", "/pictures/-1.webp"),
    )
    if chance.random() < 0.2:
        return chance.choice(wrong)
    if chance.random() < 0.05:
        return f"/live/search?text=a+{chance.choice(['dog', 'ship', 'tree'])}"
    return light(chance, neurons)


async def answered(client, many, together):
    """Status codes of many requests (method, address, body), some at a time; and their seconds."""
    codes, times, waiting = Counter(), [], iter(many)

    async def worker():
        for method, address, body in waiting:
            start = time.perf_counter()
            try:
                code = (await client.request(method, address, content=body)).status_code
            except httpx.HTTPError as error:  # an upload that is refused before its end
                code = type(error).__name__
            codes[code] += 1
            times.append(time.perf_counter() - start)

    await asyncio.gather(*(worker() for _ in range(together)))
    return codes, times


async def crowd(port, process, neurons, clients):
    """What a crowd is answered, and how long those who read wait meanwhile."""
    chance = random.Random(0)
    limits = httpx.Limits(max_connections=COSTLY + clients)
    base = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=base, timeout=600, limits=limits) as client:
        many = [("GET", mixed(chance, neurons), None) for _ in range(REQUESTS)]
        warm = [("POST", "/live/segment?text=a+dog", picture()) for _ in range(COSTLY)]
        # what is loaded and kept the first time that it is asked for is no leak
        await answered(client, [*many[:: REQUESTS // WARM_UP], *warm], clients)
        found = {f"before: {name}": value for name, value in memory(process).items()}
        codes, _ = await answered(client, many, clients)
        found[f"{REQUESTS:,} mixed requests, {clients} at a time"] = dict(codes)
        sent = [("POST", "/live/image", hostile(number)) for number in range(UPLOADS)]
        codes, _ = await answered(client, sent, clients)
        found[f"{UPLOADS} hostile uploads, {clients} at a time"] = dict(codes)
        costly = [("POST", "/live/segment?text=a+dog", picture()) for _ in range(COSTLY)]
        asking = asyncio.ensure_future(answered(client, costly, COSTLY))
        times = []
        while not asking.done() or len(times) < 20:
            _, some = await answered(client, [("GET", light(chance, neurons), None)], 1)
            times += some
        codes, _ = await asking
        found[f"{COSTLY} costly requests at once"] = dict(codes)
        found["light pages meanwhile"] = len(times)
        found["light pages meanwhile, median, ms"] = 1000 * float(np.median(times))
        found["light pages meanwhile, 95th percentile, ms"] = 1000 * float(np.quantile(times, 0.95))
    return found | {f"after: {name}": value for name, value in memory(process).items()}


@click.command()
@click.option("--lens", type=Path, help="A lens of an embedded model; by default a synthetic one.")
@click.option("--clients", default=50, show_default=True)
@click.option("--seconds", default=20.0, show_default=True, help="Of each load.")
@click.option("--soak", "soaked", type=float, help="Upload pictures for so many seconds instead.")
@click.option("--crowd", "crowded", is_flag=True, help="Requests of all kinds instead.")
def main(lens, clients, seconds, soaked, crowded):
    """Measure the explorer."""
    with TemporaryDirectory() as folder:
        options = []
        if crowded and lens is None:
            small(Path(folder))
            lens = Path(folder) / "lens"
        elif lens is None:
            lens, weights = Path(folder) / "lens", Path(folder) / "weights.pt"
            options = ["--model", "ViT-B-32", "--pretrained", str(weights)]
            options += ["--activation", "gelu"]
            maker = multiprocessing.get_context("spawn").Process(target=write, args=(Path(folder),))
            maker.start()  # a process of its own, for it needs gigabytes
            maker.join()
            assert maker.exitcode == 0
        found = {"load of the machine before": psutil.getloadavg()[0]}
        with explored(lens, *options) as (port, process, start):
            found["start, s"] = start
            manifest = json.loads((lens / "lens.json").read_text(encoding="utf-8"))
            neurons = [(n, manifest["model"]["neurons"]) for n in manifest["layers"]]
            if crowded:
                found |= asyncio.run(crowd(port, process, neurons, clients))
            elif soaked:
                found |= soak(port, process, neurons, clients, soaked)
            else:
                found |= measure(port, process, neurons, clients, seconds)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
