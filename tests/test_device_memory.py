"""Plans, batches and what is kept, by the memory of the device where the model is."""

import warnings

import fake
import pytest
import torch
from engines import close
from explored import Pictures
from on_devices import DEVICE, LABELS, LAYER, LAYERS, PICTURES, WORDS, cpu_lens, tiny_clip

import secondlens as sl
from secondlens.data.reader import IMAGES_ON_CPU, MOST_IMAGES, default_batch
from secondlens.devices import free_memory
from secondlens.errors import SecondLensError
from secondlens.lens.plan import make_plan

MIB = 2**20
RAN_OUT = "memory ran out on fake:1: a batch has"


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(DEVICE)


def test_plans_count_on_the_memory_of_the_device(clip):
    plans = {}
    for memory in (MIB // 7, 64 * MIB):
        with fake.machine(memory=memory):
            assert free_memory(clip.device) == pytest.approx(memory, abs=MIB // 8)
            plans[memory] = make_plan(clip, 100, LAYERS, top=4, batch_size=4)
    assert len(plans[MIB // 7].groups) == 2 and len(plans[64 * MIB].groups) == 1
    with (
        fake.machine(memory=MIB // 16),
        pytest.raises(SecondLensError, match=r"needs .* of memory"),
    ):
        make_plan(clip, 100, LAYERS, top=4, batch_size=4)


def test_the_default_batch_follows_the_memory_of_the_device(clip):
    assert default_batch(tiny_clip()) == IMAGES_ON_CPU
    found = []
    for memory in (MIB, 4 * MIB, 2**36):
        with fake.machine(memory=memory):
            found.append(default_batch(clip))
    assert found == sorted(found) and 1 <= found[0] < found[1] < found[2] == MOST_IMAGES


def peak(images, **settings):
    clip = tiny_clip(DEVICE)
    with fake.machine() as machine:
        before = machine.used[1]
        sl.fit(clip, Pictures(images), [LAYER], batch_size=8, top=4, **settings)
        return machine.peak[1] - before


@pytest.mark.parametrize("settings", [{"store": "float32"}, {"keep_coordinates": True}])
def test_coordinates_do_not_pile_up_on_the_device(settings):
    few, many = (peak(images, shard_size=16, **settings) for images in (16, 128))
    assert many <= 1.2 * few


def told(caught):
    return [str(each.message) for each in caught if str(each.message).startswith(RAN_OUT)]


def smallest(clip, work):
    """What some work takes at its peak."""
    with fake.machine() as machine:
        before = machine.used[1]
        work()
        return machine.peak[1] - before


def fitted(clip, size, **settings):
    return sl.fit(clip, Pictures(32), [LAYER], top=4, batch_size=size, memory=2**40, **settings)


@pytest.mark.parametrize("store", ["float32", "never"])
def test_a_fit_goes_on_with_smaller_batches(clip, store):
    room = smallest(clip, lambda: fitted(clip, 8, store=store))
    assert room < smallest(clip, lambda: fitted(clip, 32, store=store))
    with fake.machine(memory=room), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fitted(clip, 32, store=store)
    assert len(told(caught)) == 1 and "a batch has 8 images" in told(caught)[0]
    close(found, fitted(tiny_clip(), 32, store=store))


CLASSIFIER = torch.nn.functional.normalize(
    torch.randn(len(WORDS), 12, generator=torch.Generator().manual_seed(1)), dim=1
)
READS = {
    "audit": lambda clip, lens, size: sl.audit(
        clip, lens, WORDS[:4], PICTURES, WORDS[4:], chance=1.0, batch_size=size
    ).effect.nan_to_num(0.0),
    "ablate": lambda clip, lens, size: sl.ablate(
        *(clip, lens, PICTURES, LABELS, CLASSIFIER), batch_size=size
    ).ranks[LAYER, "all"],
    "ablate_attention": lambda clip, lens, size: sl.ablate_attention(
        *(clip, PICTURES, LABELS, CLASSIFIER, PICTURES), batch_size=size
    ).ranks[LAYER, "alone"],
    "budget": lambda clip, lens, size: (
        sl.budget(clip, lens, PICTURES, LAYER, [1, 2], batch_size=size).gram
    ),
}


@pytest.mark.parametrize("name", READS)
def test_other_passes_go_on_with_smaller_batches(clip, name):
    lens = cpu_lens("fp32")
    work = READS[name]
    expected = work(tiny_clip(), lens, 24)
    room = smallest(clip, lambda: work(clip, lens, 6))
    assert room < smallest(clip, lambda: work(clip, lens, 24))
    with fake.machine(memory=room), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = work(clip, lens, 24)
    assert len(told(caught)) >= 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_one_picture_that_does_not_fit_is_told_in_one_sentence(clip):
    with fake.machine(memory=40_000), pytest.raises(SecondLensError) as caught:
        fitted(clip, 4)
    said = str(caught.value)
    assert all(word in said for word in ("fake:1", "--batch-size", "--memory", "--layers"))
    assert "\n" not in said and said.count("the memory of") == 1
