"""Pictures decoded one by one in processes that stay, and preprocessing in two halves."""

import gc
import multiprocessing
import os
import signal
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

import fake
import numpy as np
import open_clip
import psutil
import pytest
import torch
from models import tiny_images, tiny_model
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor
from transformers import CLIPImageProcessor

from secondlens.data.decoders import Decode, Decoders, Skipped
from secondlens.data.reader import Batch, Reader
from secondlens.data.sources import InMemory
from secondlens.demo.model import Preprocess
from secondlens.engine.local import Local
from secondlens.errors import SecondLensError
from secondlens.lens.fitting import fit
from secondlens.models.halves import halves, looked_up
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.resizing import resized
from secondlens.models.transformers.views import _Preprocess

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
COUNT = 23


def transforms():
    return Compose([Resize(16), CenterCrop(16), ToTensor(), Normalize(MEAN, STD)])


def picture(number):
    noise = np.random.default_rng(number).integers(0, 256, (20 + number, 31, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def tiny(preprocess=None):
    return from_open_clip(tiny_model(), preprocess or transforms(), name="tiny")


class Logged:
    """Pictures of noise, and a file that tells who loaded which; one of them is gone."""

    def __init__(self, log, count=COUNT, gone=5):
        self.log, self.gone, self.ids = log, gone, [str(n) for n in range(count)]

    def load(self, index):
        with self.log.open("a") as file:
            file.write(f"{index} {os.getpid()}\n")
        if index == self.gone:
            raise OSError("gone")
        return picture(index)

    def loads(self):
        return [tuple(map(int, line.split())) for line in self.log.read_text().splitlines()]


def gathered(batches):
    """Positions and pixels of all batches."""
    found = list(batches)
    pixels = [each for batch in found for each in batch.pixels]
    return [batch.positions for batch in found], torch.stack(pixels or [torch.zeros(0)])


def in_shards(reader, shards, following=None):
    """What the shards of a reader hold, by decoders that stay."""
    following = [*shards[1:], range(0)] if following is None else following
    with closing(reader.decoders()) as kept:
        return [
            gathered(replace(reader, positions=shard, kept=kept, following=after))
            for shard, after in zip(shards, following, strict=True)
        ]


# --- halves ---


@pytest.mark.parametrize(
    "preprocess",
    [
        transforms(),
        Preprocess(),
        open_clip.image_transform(24, is_train=False),
        open_clip.image_transform(24, is_train=False, resize_mode="squash"),
        _Preprocess(CLIPImageProcessor(size={"shortest_edge": 20}, crop_size=20)),
        resized(tiny(), 32).preprocess,
    ],
    ids=["torchvision", "demo", "open_clip", "squash", "transformers", "resized"],
)
def test_halves_give_the_bits_of_the_whole(preprocess):
    found = halves(preprocess)
    for number in range(3):
        eight_bits = found.eight_bits(picture(number))
        assert eight_bits.dtype == torch.uint8
        given = looked_up(eight_bits[None], found.table)[0]
        assert torch.equal(given, preprocess(picture(number)))


def test_what_has_no_halves():
    class Contrast:
        """Its second half looks at more than one pixel."""

        def eight_bits(self, image):
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)

        def normalised(self, image):
            pixels = self.eight_bits(image).float()
            return pixels / pixels.max()

        def __call__(self, image):
            pixels = self.eight_bits(image).float()
            return pixels - pixels.mean()

    def fails(image):
        raise ValueError

    fails.eight_bits = fails.normalised = fails
    for preprocess in (None, lambda image: 0, Compose([ToTensor()]), Contrast(), fails):
        assert halves(preprocess) is None


def test_pixels_are_looked_up_where_the_model_is():
    reader = Reader(source=InMemory([picture(n) for n in range(4)]), clip=tiny())
    (batch,) = reader
    assert batch.stored.dtype == torch.uint8
    for part in (batch, *batch.split(3)):
        there = part.on(torch.device("fake:1"))
        assert there.device == torch.device("fake:1")
        assert torch.equal(there.cpu(), part.pixels)
    assert fake.COUNT == 2
    assert [part.positions for part in batch.split(3)] == [[0, 1, 2], [3]]


def test_a_gpu_gets_them_from_pinned_memory(monkeypatch):
    calls = []

    def pin(tensor):
        calls.append("pinned")
        return tensor

    def move(tensor, device, non_blocking=False):
        calls.append((str(device), non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", move)
    pixels = torch.zeros(1, 3, 2, 2)
    assert Batch(positions=[0], stored=pixels).on(torch.device("cuda:1")) is pixels
    assert calls == ["pinned", ("cuda:1", True)]


# --- processes ---


@pytest.mark.parametrize("size", [1, 4, 9])
def test_shards_are_as_one_process_reads_them_and_nothing_is_decoded_twice(tmp_path, size):
    shards = [range(start, min(start + size, COUNT)) for start in range(0, COUNT, size)]
    clip = tiny()
    here = Reader(source=Logged(tmp_path / "here"), clip=clip, batch_size=3)
    there = replace(here, source=Logged(tmp_path / "there"), workers=2, skipped={})
    expected, found = in_shards(here, shards), in_shards(there, shards)
    for (positions, pixels), (others, same) in zip(expected, found, strict=True):
        assert positions == others
        assert torch.equal(pixels, same)
    loads = there.source.loads()
    assert sorted(position for position, _ in loads) == list(range(COUNT))
    assert len({process for _, process in loads}) == 2
    assert os.getpid() not in {process for _, process in loads}
    assert not multiprocessing.active_children()


def test_what_follows_may_be_something_else(tmp_path):
    shards = [range(6), range(12, 18), range(3)]
    reader = Reader(source=Logged(tmp_path / "log"), clip=tiny(), batch_size=2)
    expected = in_shards(reader, shards)
    wrong = [range(6, 23), range(18, 23), range(3, 9)]
    found = in_shards(replace(reader, workers=2), shards, wrong)
    for (positions, pixels), (others, same) in zip(expected, found, strict=True):
        assert positions == others
        assert torch.equal(pixels, same)


def test_a_reading_that_is_left_in_the_middle(tmp_path):
    reader = Reader(source=Logged(tmp_path / "log"), clip=tiny(), batch_size=2, workers=2)
    with closing(reader.decoders()) as kept:
        kept_reader = replace(reader, kept=kept)
        for _ in range(20):  # more often than there is room for pictures
            left = iter(kept_reader)
            assert next(left).positions == [0, 1]
            other = iter(replace(kept_reader, positions=[9, 3]))
            assert next(other).positions == [9, 3]
            with pytest.raises(RuntimeError, match=r"another reading .* has begun"):
                list(left)
        positions, pixels = gathered(kept_reader)
    expected = gathered(replace(reader, workers=0))
    assert positions == expected[0] and torch.equal(pixels, expected[1])


def test_pictures_that_do_not_fit_come_through_a_pipe():
    given = torch.randn(5, 3, 9, 7, dtype=torch.float64)
    decode = Decode(InMemory(given), None, None)
    with closing(Decoders(decode, workers=2, ahead=4, room=8)) as decoders:
        found = [each.pixels.clone() for each in decoders.read(range(5))]
    assert torch.equal(torch.stack(found), given)


@pytest.mark.parametrize("workers", [0, 1])
def test_tensors_and_pictures_in_one_batch(workers):
    clip = tiny()
    images = tiny_images(clip, 2)
    source = InMemory([images[0], picture(1), images[1]])
    (batch,) = Reader(source=source, clip=clip, workers=workers)
    assert torch.equal(batch.pixels[0], images[0]) and torch.equal(batch.pixels[2], images[1])
    assert torch.equal(batch.pixels[1], clip.preprocess(picture(1)))
    whole_numbers = InMemory([torch.zeros(3, 16, 16, dtype=torch.uint8)])
    with pytest.raises(SecondLensError, match=r"is of the type torch\.uint8: give PIL images"):
        list(Reader(source=whole_numbers, clip=clip, workers=workers))


class Unsendable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Failing:
    """Fails in three ways."""

    ids = ("a", "b", "c")

    def load(self, index):
        if index == 0:
            raise KeyError("left")
        if index == 1:
            raise Unsendable(1, 2)
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_process_raises_is_raised_here():
    decode = Decode(Failing(), None, None)
    with closing(Decoders(decode, workers=1, ahead=2, room=8)) as decoders:
        with pytest.raises(KeyError, match="left") as raised:
            list(decoders.read([0]))
        assert "in load" in raised.value.__notes__[0]
        with pytest.raises(RuntimeError, match="Unsendable: 1 and 2"):
            list(decoders.read([1]))
        with pytest.raises(RuntimeError, match=r"pictures has ended, with the exit code -9"):
            list(decoders.read([2]))


def test_decoders_that_are_forgotten_end():
    decode = Decode(InMemory(torch.zeros(2, 3, 2, 2)), None, None)
    decoders = Decoders(decode, workers=2, ahead=2, room=64)
    assert not isinstance(next(decoders.read([0])), Skipped)
    children = multiprocessing.active_children()
    assert len(children) == 2
    del decoders
    gc.collect()
    assert not any(psutil.pid_exists(child.pid) for child in children)


# --- fits ---

SETTINGS = {"layers": [1, 2], "top": 3, "batch_size": 2, "shard_size": 4, "store": "never"}


def same(one, other):
    assert (one.image_ids, one.skipped) == (other.image_ids, other.skipped)
    for layer in one.layers:
        for name, value in vars(one[layer]).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(other[layer], name)), name


def test_a_fit_keeps_its_decoders_and_ends_them(tmp_path):
    clip = from_open_clip(tiny_model(layers=4), transforms(), name="tiny")
    alone, source = (Logged(tmp_path / name, 12) for name in ("alone", "decoded"))
    lens = fit(clip, source, workers=2, **SETTINGS)
    same(lens, fit(clip, alone, **SETTINGS))
    loads = source.loads()
    assert len({process for _, process in loads}) == 2
    assert sorted(position for position, _ in loads) == sorted([*range(12)] * 2)
    assert not multiprocessing.active_children()


class Killed(Logged):
    """Kills the process that loads a picture for the first time."""

    def load(self, index):
        if index == 7 and not any(position == 7 for position, _ in self.loads()):
            self.log.write_text(f"7 {os.getpid()}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(index)


def test_a_decoder_that_is_killed_is_replaced(tmp_path):
    clip = from_open_clip(tiny_model(layers=4), transforms(), name="tiny")
    killed = Killed(tmp_path / "killed", 12)
    killed.log.touch()
    with pytest.raises(RuntimeError, match="exit code -9"):
        fit(clip, killed, workers=1, out=tmp_path / "lens", **SETTINGS)
    assert not multiprocessing.active_children()
    lens = fit(clip, killed, workers=1, out=tmp_path / "lens", **SETTINGS)
    same(lens, fit(clip, Logged(tmp_path / "alone", 12), **SETTINGS))


@pytest.mark.long
def test_so_it_is_in_a_worker(tmp_path):
    clip = from_open_clip(tiny_model(layers=4), transforms(), name="tiny")
    killed = Killed(tmp_path / "killed", 12)
    killed.log.touch()
    lens = fit(clip, killed, workers=1, engine=Local(workers=1), **SETTINGS)
    same(lens, fit(clip, Logged(tmp_path / "alone", 12), engine=Local(workers=1), **SETTINGS))


def test_work_hears_of_the_next_task():
    class Hearing:
        def __init__(self):
            self.heard = []

        def expect(self, task):
            self.heard.append(task)

        def __call__(self, task):
            return self.heard[-1]

    with Local().start(Hearing()) as workers:
        assert dict(workers.map([])) == {}
        given = dict(workers.map("abc"))
    assert list(given.items()) == list(pairwise(["a", "b", "c", None]))
