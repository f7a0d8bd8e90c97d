"""Workers of this machine on several devices."""

import time

import pytest
import torch
from engines import close
from explored import Pictures
from on_devices import DEVICE, LAYER, tiny_clip

import secondlens as sl
from secondlens.commands.options import ChosenEngine
from secondlens.engine import Local
from secondlens.errors import SecondLensError


class Whereabouts:
    """Work that says on which device its worker has it, and takes long enough for two workers."""

    def __init__(self, device):
        self.name = device

    @property
    def device(self):
        return torch.device(self.name)

    def to(self, device):
        self.name = str(device)

    def __call__(self, task):
        time.sleep(0.3)
        return self.name


def places(engine, device):
    with engine.start(Whereabouts(device)) as workers:
        return {place for _, place in workers.map(range(8))}


@pytest.mark.long
def test_workers_take_the_devices_of_a_kind_in_turn():
    assert places(ChosenEngine(workers=2).make("fake"), "fake:0") == {"fake:0", "fake:1"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (Local(workers=2), {"fake:0"}),
        (Local(workers=2, device="fake:1"), {"fake:1"}),
        (Local(workers=2, device="cpu"), {"cpu"}),
        (Local(), {"fake:0"}),
    ],
)
def test_workers_are_where_the_engine_says_or_where_the_model_is(engine, expected):
    assert places(engine, "fake:0") == expected


def test_a_fit_on_several_devices_is_that_of_the_cpu():
    pictures = Pictures(24)
    engine = Local(workers=2, device="fake")
    found = sl.fit(tiny_clip(DEVICE), pictures, [LAYER], top=4, shard_size=8, engine=engine)
    close(found, sl.fit(tiny_clip(), pictures, [LAYER], top=4, shard_size=8))


def test_an_engine_on_a_device_that_is_not_there():
    with pytest.raises(SecondLensError, match="choose one of cpu, "):
        Local(workers=2, device="fake:9")
