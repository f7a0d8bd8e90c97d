"""What the lens costs, as ratios to a plain forward pass measured in the same run.

Shapes are those of well-known CLIPs with random weights: time depends on the shape only. Runs of
what is compared take turns, and ratios are of medians.
"""

import statistics as numbers
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import psutil
import torch
from PIL import Image
from torch import Tensor

from .data.folder import Folder
from .data.reader import Reader
from .devices import CPU, check_device, wait
from .effects.capture import Capture
from .lens.fitting import fit
from .lens.layer import IMAGES_PER_RANKING
from .lens.moments import Centre, first_component
from .lens.plan import make_plan
from .lens.ranking import Ranking
from .models.loading import check_name
from .models.open_clip.views import from_open_clip
from .models.view import Clip


def random_clip(name: str, device: str = "cpu") -> Clip:
    """An open_clip model of this name with random weights, on a device.

    Raises
    ------
    SecondLensError
        open_clip has no model of this name, or there is no such device.
    """
    place = check_device(device)
    with warnings.catch_warnings():
        # that weights are random is what is wanted
        warnings.simplefilter("ignore")
        check_name(name, None)
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    return from_open_clip(model.eval().to(place), preprocess, name=name, check=False)


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
"""Seconds that pass, or that this process computes, with all its threads."""


def interleaved(
    runs: dict[str, Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    device: torch.device = CPU,
) -> dict[str, float]:
    """Median seconds of each on a device, one after another, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for counted in (False, *(True,) * rounds):
        for name, run in runs.items():
            began = clock()
            run()
            wait(device)
            if counted:
                seconds[name].append(clock() - began)
    return {name: numbers.median(values) for name, values in seconds.items()}


def capture_cost(
    clip: Clip, batch: int, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Reading the coefficients of one layer and of all layers, beside plain encoding."""
    images = clip.prepare(torch.randn(batch, 3, *clip.image_size))
    every = range(clip.last_effect_layer + 1)

    def capture(layers: Any, short: bool) -> None:
        with Capture(clip, layers) as hooks:
            if short:
                with clip.class_token_only():
                    hooks.pool(clip.encode_image(images))
            else:
                hooks.pool(clip.encode_image(images))

    def encode_short() -> None:
        with clip.class_token_only():
            clip.encode_image(images)

    one = [max(0, clip.last_effect_layer - 1)]
    seconds = interleaved(
        {
            "encode": lambda: clip.encode_image(images),
            "encode_cls": encode_short,
            "one": lambda: capture(one, True),
            "all": lambda: capture(every, True),
            "one_plain": lambda: capture(one, False),
            "all_plain": lambda: capture(every, False),
        },
        rounds,
        clock,
        clip.device,
    )
    return {
        "encode_ms_per_image": 1000 * seconds["encode"] / batch,
        "one_layer_ratio": seconds["one"] / seconds["encode"],
        "all_layers_ratio": seconds["all"] / seconds["encode"],
        "all_layers_ratio_cls": seconds["all"] / seconds["encode_cls"],
        "one_layer_ratio_without_shortcut": seconds["one_plain"] / seconds["encode"],
        "all_layers_ratio_without_shortcut": seconds["all_plain"] / seconds["encode"],
    }


def fit_cost(clip: Clip, pictures: int, layers: list[int], rounds: int) -> dict[str, float]:
    """A whole fit from JPEG files, beside decoding them and plain encoding."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "pictures"
        files.mkdir()
        random = np.random.default_rng(0)
        for i in range(pictures):
            noise = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
            picture.save(files / f"{i:05}.jpg", quality=90)
        source = Folder(files)

        def encode() -> None:
            for batch in Reader(source=source, clip=clip):
                clip.encode_image(batch.on(clip.device))

        def fitted(store: str) -> Callable[[], None]:
            def run() -> None:
                with tempfile.TemporaryDirectory() as out:
                    fit(clip, source, layers, store=store, out=Path(out) / "lens")

            return run

        runs = {"encode": encode, "stored": fitted("float32"), "two": fitted("never")}
        seconds = interleaved(runs, rounds, device=clip.device)
    return {
        "fit_pictures": pictures,
        "decode_and_encode_s": seconds["encode"],
        "fit_ratio_stored": seconds["stored"] / seconds["encode"],
        "fit_ratio_two_passes": seconds["two"] / seconds["encode"],
    }


def ranking_cost(
    neurons: int = 3072, images: int = 5000, rank: int = 24, device: str = "cpu"
) -> dict[str, float]:
    """Top images and directions of one layer from coordinates stored in main memory."""
    place = check_device(device)
    z = torch.randn(images, neurons, rank)
    energy = torch.full((neurons,), float(rank), device=place)
    centre = Centre(mean=z.mean(0).to(place), energy=energy)

    def directions() -> Tensor:
        ranking = Ranking(centre, 100)
        for positions in torch.arange(images).split(IMAGES_PER_RANKING):
            some = z[positions[0] : positions[-1] + 1].to(place)
            ranking.see((some - centre.mean).transpose(0, 1), positions.to(place))
        return first_component(ranking.ranked().top_images.strongest_first().centred)[0]

    return {"directions_s": interleaved({"directions": directions}, 3, device=place)["directions"]}


def memory_cost(clip: Clip, counts: tuple[int, int]) -> dict[str, float]:
    """Resident memory at the peak of a fit over many images, over that of fewer."""
    peaks = []
    for count in counts:
        source = _Noise(clip, count)
        fit(clip, source, [clip.last_effect_layer], top=20, store="never")
        peaks.append(source.peak)
    return {"memory_images": counts[1], "memory_growth": peaks[1] / peaks[0] - 1}


class _Noise:
    """Random images, made when they are read, that watch the memory of this process."""

    def __init__(self, clip: Clip, count: int) -> None:
        self.size = clip.image_size
        self.ids = [str(i) for i in range(count)]
        self.peak = 0

    def load(self, index: int) -> Tensor:
        self.peak = max(self.peak, psutil.Process().memory_info().rss)
        return torch.randn(3, *self.size, generator=torch.Generator().manual_seed(index))


def bench(
    name: str,
    *,
    batch: int,
    rounds: int,
    pictures: int,
    clock: str = "wall",
    device: str = "cpu",
) -> dict[str, Any]:
    """All figures for one model shape.

    Parameters
    ----------
    name
        An open_clip name.
    batch
        Images in a forward pass.
    rounds
        Runs of each thing that is timed.
    pictures
        JPEG files of the end-to-end fit; 0 leaves it out.
    clock
        One of `CLOCKS`, for what is done in this process alone.
    device
        Where the model runs.

    Raises
    ------
    SecondLensError
        open_clip has no model of this name, or one that the effects do not describe; or there is
        no such device.
    """
    clip = random_clip(name, device)
    layers = [clip.last_effect_layer - i for i in (2, 1, 0)]
    found: dict[str, Any] = {"model": name, "batch": batch, "threads": torch.get_num_threads()}
    found |= {"clock": clock} | capture_cost(clip, batch, rounds, CLOCKS[clock])
    sizes = make_plan(clip, 1000, layers, top=20).coordinates_per_image
    found["coordinates_bytes_per_image"] = {str(layer): count for layer, count in sizes.items()}
    if pictures:
        found |= fit_cost(clip, pictures, layers, max(1, rounds // 3))
    return found
