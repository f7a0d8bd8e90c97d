"""What this machine does in a second: the constants of `capacity`, measured in a few seconds."""

import io
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from ..images import decode
from ..statistics import Moments
from .capacity import Rates

SIDE: Final = 1024
NEURONS, RANK = 512, 100
PICTURES: Final = 16
DISPATCH: Final = 0.005
"""Seconds of the driver for each task of Ray actors: `python benchmarks/engine.py dispatch`."""


def measured(
    device: str,
    *,
    tflops: float | None,
    network: float,
    store: float,
    decoders: int,
    decoded: float | None,
) -> tuple[Rates, dict[str, str]]:
    """The rates of a worker like this machine, and where each comes from.

    Parameters
    ----------
    device
        Where the model would run, if `tflops` is not given.
    tflops
        What a worker's GPU reaches, in 10^12 floating-point operations a second.
    network, store
        Bytes a second of one worker, and of the store for all of them.
    decoders
        Cores of a worker that decode.
    decoded
        Pictures that one core decodes a second, if it is not to be measured.
    """
    here = "measured here"
    flops = 1e12 * tflops if tflops is not None else _flops(device)
    rates = Rates(
        flops=flops,
        decode=decoders * (decoded if decoded is not None else _decoded()),
        network=network,
        store=store,
        merge=_merged(),
        eigen=_eigen(),
        dispatch=DISPATCH,
    )
    sources = {
        "flops": "given" if tflops is not None else f"a float32 product, {here} on {device}",
        "decode": f"{'given' if decoded is not None else here}, times {decoders} cores",
        "network": "given, or assumed",
        "store": "given, or assumed",
        "merge": here,
        "eigen": here,
        "dispatch": "benchmarks/engine.py dispatch",
    }
    return rates, sources


def _seconds(work: Callable[[], Any]) -> float:
    """The shortest of a few runs, which others on the machine disturbed least."""
    work()
    runs = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        runs.append(time.perf_counter() - began)
    return min(runs)


def _flops(device: str) -> float:
    a = torch.randn(SIDE, SIDE, device=device)
    # reading a number waits for a GPU
    return 2 * SIDE**3 / _seconds(lambda: (a @ a)[0, 0].item())


def _decoded() -> float:
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG")

    def run() -> None:
        for _ in range(PICTURES):
            picture = decode(io.BytesIO(file.getvalue()))
            torch.from_numpy(np.asarray(picture.resize((299, 224), Image.Resampling.BICUBIC)) / 255)

    return PICTURES / _seconds(run)


def _merged() -> float:
    moments = Moments(
        count=2, mean=torch.randn(NEURONS, RANK), scatter=torch.randn(NEURONS, RANK, RANK)
    )
    return moments.scatter.nbytes / _seconds(lambda: moments.merge(moments))


def _eigen() -> float:
    matrices = torch.randn(8, RANK, RANK, dtype=torch.float64)
    symmetric = matrices @ matrices.mT
    return _seconds(lambda: torch.linalg.eigvalsh(symmetric)) / len(symmetric)
