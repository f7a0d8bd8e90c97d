"""What a batch of a fit costs a GPU, by count: bounds that changes must keep."""

import importlib.util
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch


def benchmark():
    """The benchmark, which is not part of the package."""
    file = Path(__file__).parents[1] / "benchmarks" / "device.py"
    spec = importlib.util.spec_from_file_location("device", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["device"] = module
    spec.loader.exec_module(module)
    return module


def costs_of(*arguments):
    return benchmark().costs(*arguments)


@pytest.fixture(scope="module")
def device():
    yield benchmark()
    del sys.modules["device"]


@pytest.fixture(scope="module")
def costs(device):
    """They are counted in a process of its own.

    Where another accelerator was registered, torch copies a fake tensor of `cuda` with its driver.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield lambda *arguments: pool.submit(costs_of, *arguments).result()


def check(device, parts, encodings, card="A100"):
    whole, plain = device.whole(parts), parts["encode"]
    assert whole.waits <= 1 and plain.waits == 0
    assert whole.seconds[card] <= encodings * plain.seconds[card]
    return whole, plain


def test_operations_are_those_of_the_formulas(device, costs):
    """Two layers of ViT-B/32 by hand: N = 3072, T = 50, 12 and 24 paths."""
    parts = costs("ViT-B-32", "2", 16)
    products = sum(2 * 16 * 3072 * paths * 50 for paths in (12, 24))
    # 12 paths and a one make 16 columns, 24 and a one 32
    products += sum(2 * 16 * 3072 * paths * columns for paths, columns in ((12, 16), (24, 32)))
    assert parts["pooling"].half == products
    assert parts["pooling"].single == parts["statistics"].single == 0
    # 4.4 GMAC an image, as papers quote for this tower
    assert parts["encode"].half == pytest.approx(16 * 8.8e9, rel=0.05)
    check(device, parts, 1.05)


def test_all_layers_of_a_small_tower(device, costs):
    check(device, costs("ViT-B-32", "all", 256), 1.30)


@pytest.mark.long
def test_a_large_tower(device, costs):
    whole, plain = check(device, costs("ViT-L-14", "all", 256), 1.2)
    assert whole.bytes - plain.bytes <= 80e9
    check(device, costs("ViT-L-14", "4", 256), 1.0)
    check(device, costs("ViT-L-14", "all", 32), 1.30)


def test_waiting_is_counted(device):
    with device.FakeTensorMode():
        x = torch.ones(3, device="cuda")
        _, cost = device.counted(lambda: (x.sum().item(), x.cpu(), x.nonzero))
        assert cost.waits == 2
        _, cost = device.counted(lambda: x.to("cpu", non_blocking=True))
        assert cost.waits == 0 and cost.kernels == 1
        _, cost = device.counted(lambda: x + x)
        assert cost.bytes == 36 and cost.kernels == 1
