"""Clocks that wait for a device, which otherwise works on while its host goes ahead."""

import time
from collections.abc import Callable

import torch

from .devices import wait


def seconds_on(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return what a clock shows once a device has done all that it was given."""
    wait(device)
    return clock()
