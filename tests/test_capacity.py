"""The simulation of fits on many workers."""

import click.testing
import open_clip
import pytest
import torch
from models import tiny_model

from secondlens.commands.group import main
from secondlens.commands.options import PictureChoice
from secondlens.commands.plan import count_of, duration
from secondlens.lens import capacity
from secondlens.lens.capacity import Rates, Stage, forward_flops, job, simulate, spread_plan, stages
from secondlens.models.open_clip.views import from_open_clip

RATES = Rates(flops=1e12, decode=1e9, network=1e9, store=1e10, merge=1e9, eigen=0.001, dispatch=0.0)


@pytest.fixture
def steady(monkeypatch):
    """All tasks of a stage take the same time."""
    monkeypatch.setattr(capacity, "SPREAD", 0.0)


def seconds(stage, workers, **rates):
    (timing,) = simulate([stage], Rates(**(vars(RATES) | rates)), workers)
    return timing.seconds


def test_one_stage_by_hand(steady):
    stage = Stage(name="means", tasks=10, seconds=4.0, read=0, written=0)
    assert seconds(stage, 1) == pytest.approx(40)
    assert seconds(stage, 4) == pytest.approx(12), "three rounds for ten tasks"
    assert seconds(stage, 1000) == pytest.approx(4)
    (timing,) = simulate([stage], RATES, 4)
    assert timing.idle == pytest.approx(1 - 40 / 48)


def test_what_does_not_scale(steady):
    reading = Stage(name="read", tasks=100, seconds=0.0, read=1e9, written=0)
    assert seconds(reading, 1) == pytest.approx(100)
    assert seconds(reading, 10) == pytest.approx(10)
    assert seconds(reading, 100) == pytest.approx(10), "the store gives no more"
    overlapped = Stage(name="both", tasks=1, seconds=3.0, read=1e9, written=2e9)
    assert seconds(overlapped, 1) == pytest.approx(3 + 2)
    dispatched = Stage(name="many", tasks=1000, seconds=1.0, read=0, written=0)
    assert seconds(dispatched, 1000, dispatch=0.01) == pytest.approx(10 + 1)


def test_tasks_of_different_lengths(steady, monkeypatch):
    stage = Stage(name="means", tasks=64, seconds=10.0, read=0, written=0)
    even = seconds(stage, 64)
    monkeypatch.setattr(capacity, "SPREAD", 0.1)
    assert 1.1 * even < seconds(stage, 64) < 1.5 * even, "the slowest of 64 decides"
    assert simulate([stage], RATES, 8) == simulate([stage], RATES, 8)


def test_a_fit_is_counted_as_it_runs():
    """Operations of the coefficients and of a layer's scatter, against torch's own count."""
    clip = from_open_clip(tiny_model(layers=3), name="tiny")
    plan = spread_plan(clip, 1000, [1], workers=2, top=5, memory=10**9, batch_size=10)
    found = job(clip, plan, 5, image_bytes=100.0)
    paths, rank = 3, 3
    own = 2 * 48 * (5 * paths + rank * paths)
    assert found.second_flops - forward_flops(clip) == own
    assert found.first_flops - found.second_flops == 2 * 48 * rank**2
    assert found.shards == len(plan.shards) == 8
    row = stages(found, RATES, 2)
    assert [s.name for s in row][:3] == ["start", "means", "merge means"]
    by_name = {stage.name: stage for stage in row}
    assert by_name["means"].tasks * by_name["means"].read == pytest.approx(1000 * 100)


def test_forward_operations_need_no_weights():
    empty = open_clip.create_model("ViT-B-32", device="meta")
    clip = from_open_clip(empty.eval(), name="ViT-B-32", check=False)
    # 4.4 GMAC, as papers quote for this tower
    assert forward_flops(clip) == pytest.approx(8.8e9, rel=0.05)


def test_numbers_as_people_write_them():
    assert [count_of(text, PictureChoice()) for text in ("50000", "400M", "1.5k", "2G")] == [
        50_000, 400_000_000, 1500, 2_000_000_000
    ]  # fmt: skip
    assert [duration(n) for n in (3, 600, 36_000, 864_000)] == [
        "3 s",
        "10 min",
        "10.0 h",
        "10.0 days",
    ]


def test_the_command():
    arguments = "plan --model ViT-B-32 --images 1M --gpus 8 --tflops 50 --decoded 100 --layers 9"
    with torch.random.fork_rng(devices=[]):
        said = click.testing.CliRunner().invoke(main, arguments.split())
    assert said.exit_code == 0, said.output
    assert "1,000,000 images, 8 workers" in said.output
    for stage in (
        "start",
        "means",
        "merge means",
        "top images",
        "finish",
        "fit --shard-size 31264",
    ):
        assert stage in said.output
    nothing = click.testing.CliRunner().invoke(main, ["plan"])
    assert nothing.exit_code == 2 and "how many images" in nothing.output
