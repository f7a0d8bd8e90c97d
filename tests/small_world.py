"""Every command on the smallest model and data that it takes: see `Given` and `small`."""

from contextlib import contextmanager
from functools import partial
from importlib import import_module

import numpy as np
import pytest
import torch
from models import tiny_model, tiny_tokenizer
from PIL import Image

import secondlens as sl
from secondlens.data.vocabularies import world_vocabulary
from secondlens.demo.scenes import Scenes, World
from secondlens.demo.world import ATTACK_PAIRS
from secondlens.models import named_models
from secondlens.models.open_clip import from_open_clip
from secondlens.paper.registry import results
from secondlens.registry import Registry

MODEL = ("--model", "tiny:8", "--device", "cpu")
CLASSES = ("ship", "cow")
WORDS = ("sea", "road", "grass", "snow", "a dog", "a bus", "wheel", "sail", "horn", "sky")
SIDE = 16


def prepared(image):
    array = np.array(image.convert("RGB").resize((SIDE, SIDE)), dtype=np.float32)
    return (torch.from_numpy(array).permute(2, 0, 1) / 255 - 0.4) / 0.3


def tiny(name="tiny:8", **options):
    """A model of eight neurons a layer."""
    model = tiny_model(width=16, mlp_ratio=0.5, layers=3)
    return from_open_clip(model, prepared, tiny_tokenizer, name=name)


def noise(number):
    values = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(values)


@contextmanager
def small():
    """Inside it, the tiny model has a name, and the embedded world is small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(named_models, "_members", dict(named_models._members))
        named_models.register("tiny", tiny, help="eight neurons")
        for module, name, value in (
            ("secondlens.commands.audit", "UNSEEN_SCENES", 20),
            ("secondlens.commands.score", "UNSEEN_SCENES", 20),
            ("secondlens.paper.study", "DEMO_TEST_IMAGES", 12),
            ("secondlens.paper.table3", "ATTACK_PAIRS", ATTACK_PAIRS[:1]),
            ("secondlens.paper.table3", "fit", one_layer),
            ("secondlens.paper.study", "fit", one_layer),
            ("secondlens.paper.demo", "fit", one_layer),
            ("secondlens.paper.everything", "results", some_results()),
        ):
            patch.setattr(import_module(module), name, value)
        yield


one_layer = partial(sl.fit, layers=[5])


def some_results():
    """Two of the paper's, for the command that makes all of them."""
    registry = Registry("result", "results")
    for name in ("fig3", "fig11"):
        registry.register(name, results[name], help=results[name].help)
    return registry


def given(folder):
    """What commands read, in a folder."""
    for name in CLASSES:
        (folder / "classes" / name).mkdir(parents=True)
    for number in range(12):
        noise(number).save(folder / "classes" / CLASSES[number % 2] / f"{number:02}.png")
    noise(99).save(folder / "photo.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    (folder / "words.txt").write_text("\n".join(WORDS), encoding="utf-8")
    clip = tiny()
    lens = sl.fit(clip, folder / "classes", [0, 1], top=2)
    lens.save(folder / "bare")
    sl.describe(clip, lens, folder / "words.txt", 3)
    lens.save(folder / "lens")
    demo = sl.load("demo")
    lens = sl.fit(demo, Scenes(World(), 31, 50), [5])
    sl.describe(demo, lens, world_vocabulary(), 12)
    lens.save(folder / "demo-lens")
