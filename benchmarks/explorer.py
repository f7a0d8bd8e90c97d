"""The explorer under load: a synthetic lens of the full size of ViT-B/32, 33,792 neurons.

    python benchmarks/explorer.py [--clients 50] [--seconds 20]

The server is a process of its own. Clients keep a connection each and ask for random neurons' pages
one after the other, without a pause. The model has random weights, which search as fast as others.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import socket
import time
import urllib.request
import warnings

import numpy as np
import psutil
import torch

LAYERS, NEURONS, DIM, HEADS, TOP, IMAGES, TEXTS, K = 11, 3072, 512, 12, 100, 5000, 30_000, 128
PATCHES = 49


def synthetic():
    """Model, lens, survey and layout, random but for their shapes."""
    import secondlens as sl
    from secondlens.accumulate import LayerLens
    from secondlens.explorer import prepared
    from secondlens.explorer.layout import Layout
    from secondlens.explorer.prepared import LayerSurvey, Survey
    from secondlens.fit import describe_model
    from secondlens.lens import Codes, Lens

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clip = sl.load("ViT-B-32", check=False)
    rng = torch.Generator().manual_seed(0)
    layers, seen, codes = {}, {}, {"indices": {}, "coefficients": {}, "brief": {}, "cosine": {}}
    for layer in range(LAYERS):

        def unit(*shape):
            return torch.rand(*shape, generator=rng)

        directions = torch.nn.functional.normalize(torch.randn(NEURONS, DIM, generator=rng), dim=1)
        layers[layer] = LayerLens(
            mean=directions * 0.01,
            directions=directions,
            energy=unit(NEURONS) * 1e-4,
            top_images=torch.randint(IMAGES, (NEURONS, TOP), generator=rng),
            top_norms=unit(NEURONS, TOP).sort(descending=True).values,
            **{
                name: unit(NEURONS)
                for name in (
                    *("explained", "explained_all", "explained_null"),
                    *("selectivity", "selectivity_null"),
                )
            },
            histogram=torch.randint(50, (NEURONS, 40), generator=rng),
            activation_mean=unit(PATCHES + 1, NEURONS),
        )
        codes["indices"][layer] = torch.randint(TEXTS, (NEURONS, K), generator=rng)
        codes["coefficients"][layer] = torch.randn(NEURONS, K, generator=rng)
        codes["brief"][layer] = codes["coefficients"][layer][:, :8]
        codes["cosine"][layer] = unit(NEURONS)
        paths, slots = (LAYERS - layer) * HEADS, prepared.SLOTS
        numpy_rng = np.random.default_rng(layer)
        seen[layer] = LayerSurvey(
            images=numpy_rng.integers(0, IMAGES, (NEURONS, slots), dtype=np.int32),
            effect=numpy_rng.random((NEURONS, slots), dtype=np.float32),
            peak=numpy_rng.random((NEURONS, slots), dtype=np.float32),
            path=numpy_rng.integers(0, paths, (NEURONS, slots)).astype(np.int16),
            heat=numpy_rng.integers(0, 16, (NEURONS, slots, PATCHES), dtype=np.uint8),
            scale=np.ones(NEURONS, dtype=np.float32),
            extent=np.tile(np.array([-1, 1], dtype=np.float32), (NEURONS, 1)),
            shares=np.full((NEURONS, prepared.BANDS), 0.2, dtype=np.float32),
            counts=numpy_rng.integers(0, 999, (NEURONS, prepared.BINS), dtype=np.int32),
            paths=numpy_rng.random((NEURONS, paths), dtype=np.float32) / paths,
            concept=np.zeros((NEURONS, 8), dtype=np.int8),
            proof=np.zeros((NEURONS, TOP), dtype=np.int8),
            polysemy=numpy_rng.random(NEURONS, dtype=np.float32),
            classes=numpy_rng.integers(0, TEXTS, (NEURONS, 8), dtype=np.int32),
            change=numpy_rng.random((NEURONS, 8), dtype=np.float32),
        )
    labels = tuple(f"word{i}" for i in range(TEXTS))
    lens = Lens(
        model=describe_model(clip),
        convention="exact",
        top=TOP,
        image_ids=tuple(f"folder/image-{i:05}.jpg" for i in range(IMAGES)),
        skipped={},
        by_layer=layers,
        codes={
            "words": Codes(labels=labels, normalise="centred", mean_text=torch.zeros(DIM), **codes)
        },
    )
    survey = Survey(
        lens="",
        surveyed=IMAGES,
        layers=seen,
        codes={
            "words": {n: np.random.default_rng(n).random((NEURONS, 152), np.float32) for n in seen}
        },
        responding=np.zeros((IMAGES, 12), dtype=np.int32),
        response=np.ones((IMAGES, 12), dtype=np.float32),
        texts=np.zeros((TEXTS, DIM), dtype=np.float16),
        pictures=bytes(6000) * IMAGES,
        offsets=np.arange(IMAGES + 1, dtype=np.int64) * 6000,
    )
    total = LAYERS * NEURONS
    layout = Layout(
        place=torch.rand(total, 2, generator=rng),
        neighbours=torch.randint(total, (total, 8), generator=rng, dtype=torch.int32),
        cosines=torch.rand(total, 8, generator=rng),
    )
    return clip, lens, survey, layout


def serve(port):
    import uvicorn

    from secondlens.explorer.app import make_app
    from secondlens.explorer.atlas import Atlas
    from secondlens.explorer.live import Live
    from secondlens.explorer.pages import Pages

    torch.set_num_threads(1)
    clip, lens, survey, layout = synthetic()
    atlas = Atlas(lens, survey, layout)
    app = make_app(Pages(atlas, live=True), Live(clip=clip, atlas=atlas))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


async def ask(reader, writer, path):
    """One request on a connection that is kept; its seconds and the length of the answer."""
    start = time.perf_counter()
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    return time.perf_counter() - start, length


async def load(port, clients, seconds, path):
    """Seconds of every request of all clients."""
    end, times, sizes = time.perf_counter() + seconds, [], []

    async def client(seed):
        chance = random.Random(seed)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            taken, size = await ask(reader, writer, path(chance))
            times.append(taken)
            sizes.append(size)
        writer.close()

    await asyncio.gather(*(client(seed) for seed in range(clients)))
    return np.array(times), np.array(sizes)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    server.start()
    base, found = f"http://127.0.0.1:{port}", {}
    while True:
        try:
            urllib.request.urlopen(base + "/how/")
            break
        except OSError:
            assert server.is_alive(), "the server ended"
            time.sleep(0.5)

    def once(path):
        start = time.perf_counter()
        urllib.request.urlopen(base + path).read()
        return time.perf_counter() - start

    found["first page, s"] = once("/")
    found["first table of all neurons, s"] = once("/data/neurons.json.gz")
    found["table again, s"] = once("/data/neurons.json.gz")
    once("/live/search?text=warm")
    searches = [once(f"/live/search?text=word{i}") for i in range(20)]
    found["search, median, ms"] = 1000 * float(np.median(searches))
    found["search, 95th percentile, ms"] = 1000 * float(np.quantile(searches, 0.95))

    def path(chance):
        return f"/neuron/{chance.randrange(LAYERS)}/{chance.randrange(NEURONS)}/"

    process = psutil.Process(server.pid)
    for clients in (1, options.clients):
        before = sum(process.cpu_times()[:2])
        times, sizes = asyncio.run(load(port, clients, options.seconds, path))
        name = f"neuron page, {clients} client{'s' if clients > 1 else ''}"
        found[f"{name}, median, ms"] = 1000 * float(np.median(times))
        found[f"{name}, 95th percentile, ms"] = 1000 * float(np.quantile(times, 0.95))
        found[f"{name}, pages a second"] = len(times) / options.seconds
        # what a busy machine does not change
        used = sum(process.cpu_times()[:2]) - before
        found[f"{name}, processor time, ms"] = 1000 * used / len(times)
    found["neuron page, kB"] = float(sizes.mean()) / 1000
    found["memory of the server, MB"] = process.memory_info().rss / 1e6
    server.terminate()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
