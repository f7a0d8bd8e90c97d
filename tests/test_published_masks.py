"""Table 4 in the published form, against masks and scores that are computed by other means."""

from dataclasses import dataclass
from importlib import import_module

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image
from sklearn.metrics import average_precision_score

import secondlens as sl
from secondlens.applications.segmentation.baselines.first_order import textspan
from secondlens.applications.segmentation.metrics import score
from secondlens.applications.segmentation.protocol import (
    OURS,
    Classes,
    Tuned,
    batches,
    measure,
    table4_methods,
)
from secondlens.applications.segmentation.segmenter import PAPER_SHARE
from secondlens.commands.group import main
from secondlens.data.masked import Example
from secondlens.data.vocabularies import object_names, vocabulary
from secondlens.demo.model import load as load_weights
from secondlens.demo.scenes import FIT_SEED, Scenes, World
from secondlens.paper.table4 import TUNED_ON, Task, _task_settings

LAYERS = (5, 6)
WIDTH, HEIGHT, SIDE, PATCH = 96, 64, 64, 8


@dataclass
class Stretched:
    """Scenes of 96 x 64 pixels, the first object of each alone, whose name nobody says."""

    count: int

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        scene = World().scene(57, index)
        image = scene.image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        mask = Image.fromarray(scene.masks[0].astype(np.uint8)).resize((WIDTH, HEIGHT), 0)
        masks = np.asarray(mask).astype(np.int8)[None]
        return Example(id=f"{index}", image=image, labels=(None,), masks=masks)


PICTURES = Stretched(8)


@pytest.fixture(scope="module")
def clip():
    return sl.load("demo")


@pytest.fixture(scope="module")
def lens(clip):
    return sl.fit(clip, Scenes(World(), FIT_SEED, 50), LAYERS)


@pytest.fixture(scope="module")
def measured(clip, lens):
    methods = [m for m in table4_methods(clip, lens) if m.name in (OURS, "TextSpan")]
    choices = {
        method.name: Tuned(
            variant=method.variants[0],
            form="plain",
            positive=False,
            relative=False,
            threshold=0.5,
            miou=0.0,
        )
        for method in methods
    }
    work = batches(clip, PICTURES, Classes(clip, object_names(), True), size=3, cropped=True)
    return {each.name: each for each in measure(methods, choices, work).methods}


@torch.no_grad()
def by_hand(clip, lens, method):
    """Accuracy, mIoU and mAP in %, as the published scripts go from pictures to numbers."""
    model, _, tokenizer = load_weights("demo")
    rows = []
    for prompts in object_names().prompts:
        of_class = F.normalize(model.encode_text(tokenizer(list(prompts))), dim=1)
        rows.append(F.normalize(of_class.mean(0), dim=0))
    classifier = torch.stack(rows)
    active = {}
    for layer in LAYERS:
        gelu = model.visual.transformer.resblocks[layer].mlp.gelu
        gelu.register_forward_hook(lambda _, __, out, layer=layer: active.update({layer: out}))
    directions = torch.cat([lens[layer].directions for layer in LAYERS])
    counts, precisions = np.zeros((2, 2)), []
    for index in range(len(PICTURES)):
        example = PICTURES[index]
        left = (WIDTH - SIDE) // 2
        square = np.asarray(example.image.crop((left, 0, left + SIDE, HEIGHT)))
        pixels = ((torch.tensor(square).permute(2, 0, 1)[None] / 255) - 0.5) / 0.25
        whole = Image.fromarray(example.masks[0].astype(np.uint8))
        true = np.asarray(whole.resize((SIDE, SIDE), Image.Resampling.NEAREST)) == 1
        chosen = int((model.encode_image(pixels) @ classifier.T).argmax())
        if method == OURS:
            agreement = (directions @ classifier[chosen]).abs()
            best = agreement.argsort()[-round(PAPER_SHARE * len(directions)) :]
            both = torch.cat([active[layer][0, 1:] for layer in LAYERS], dim=1)
            grid = both[:, best].mean(1).reshape(1, 1, SIDE // PATCH, SIDE // PATCH)
        else:
            (every,) = textspan(clip, pixels, classifier[None])
            grid = (every[chosen] - every.mean(0))[None, None]
        heat = F.interpolate(grid, scale_factor=PATCH, mode="bilinear")[0, 0]
        if method != OURS:
            heat = heat.clamp(min=0)
        heat = ((heat - heat.min()) / (heat.max() - heat.min())).double().numpy()
        found = heat > (0.5 if method == OURS else heat.mean())
        for said in (0, 1):
            for truth in (0, 1):
                counts[said, truth] += ((found == said) & (true == truth)).sum()
        both = np.concatenate([true.ravel(), ~true.ravel()])
        precisions.append(
            average_precision_score(both, np.concatenate([heat.ravel(), 1 - heat.ravel()]))
        )
    overlap = [counts[i, i] / (counts[i].sum() + counts[:, i].sum() - counts[i, i]) for i in (0, 1)]
    accuracy = np.trace(counts) / counts.sum()
    return [100 * accuracy, 100 * np.mean(overlap), 100 * np.mean(precisions)]


@pytest.mark.parametrize("method", ["TextSpan", pytest.param(OURS, marks=pytest.mark.long)])
def test_the_published_form_is_crop_squeeze_and_each_script_s_own_mask(
    clip, lens, measured, method
):
    found = score(measured[method].own)
    expected = by_hand(clip, lens, method)
    ours = [100 * found.pixel_accuracy, 100 * found.miou, 100 * found.map]
    assert ours == pytest.approx(expected, abs=1e-4)


def test_cropping_moves_pictures_alone(clip):
    classes = Classes(clip, object_names())
    whole, cropped = (next(batches(clip, PICTURES, classes, cropped=c)) for c in (False, True))
    assert torch.equal(whole.masks, cropped.masks)
    assert not torch.equal(whole.pixels, cropped.pixels)


def test_follow_code_switches_pictures_classes_and_prompts(lens, tmp_path, monkeypatch):
    (tmp_path / "images" / "dog").mkdir(parents=True)
    (tmp_path / "masks" / "dog").mkdir(parents=True)
    for name in ("1", "2"):
        Image.new("RGB", (3, 2)).save(tmp_path / "images" / "dog" / f"{name}.png")
        Image.new("L", (3, 2)).save(tmp_path / "masks" / "dog" / f"{name}.png")
    lens.save(tmp_path / "lens")
    seen = []

    def compared(clip, lens, work, *, model, predicted, cropped, second, only, kept):
        seen.append((work.classes, predicted, cropped))
        raise sl.SecondLensError("that is all")

    monkeypatch.setattr(import_module("secondlens.paper.table4"), "compare", compared)
    common = ("--lens", tmp_path / "lens", "--out", tmp_path / "out", "--dev", 1)
    for follow in ("paper", "code"):
        given = ("reproduce", "table4", "--images", tmp_path, *common, "--follow", follow)
        said = CliRunner().invoke(main, [str(each) for each in given])
        assert said.exit_code == 2 and "that is all" in said.stderr
    (of_text, *squeezed), (of_code, *cropped) = seen
    assert squeezed == [False, False] and cropped == [True, True]
    assert of_text.prompts == (("a photo of a dog",),)
    published = tuple(each("dog") for each in open_clip.OPENAI_IMAGENET_TEMPLATES)
    assert of_code.prompts == (published,)


def test_the_papers_numbers_are_comparable_in_its_setting_alone():
    def differing(count=4276, published="ImageNet-Segmentation", prompts=1, **options):
        classes = vocabulary(["dog"], templates=["{}"] * prompts)
        work = Task(name="masks", dev=[], test=range(count), classes=classes, published=published)
        settings = _task_settings(
            work, "ViT-B-32 (openai)", **({"predicted": True, "cropped": True} | options)
        )
        return [each.name for each in settings if each.ours != each.paper and not each.harmless]

    assert differing() == differing(4276 - TUNED_ON) == differing(prompts=80) == []
    assert differing(count=30) == ["pictures measured"]
    assert differing(published=None) == ["pictures"]
    assert differing(predicted=False) == ["classes"]
    assert differing(cropped=False) == ["what is seen"]
