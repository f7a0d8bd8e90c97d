"""Training by contrast: passes equal open_clip's, and a stopped run goes on where it was."""

import csv
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "training"))

import contrastive
from contrastive import CLIP, CONFIG, KEPT, Optimiser, Words, encode_image, encode_text, patches
from world.scenes import World


@pytest.fixture(scope="module")
def words():
    return Words()


@pytest.fixture(scope="module")
def model(words):
    torch.manual_seed(0)
    text = CONFIG["text_cfg"] | {"vocab_size": len(words.ids)}
    return CLIP(**CONFIG | {"text_cfg": text}).eval()


@pytest.fixture(scope="module")
def scenes():
    world = World(augment=0.5)
    return [world.scene(1, i) for i in range(200)]


@torch.no_grad()
def test_pictures_are_read_as_open_clip_reads_them(model, scenes):
    images = np.stack([np.asarray(scene.image) for scene in scenes[:4]])
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(encode_image(model, patches(images)), model.encode_image(pixels))


@torch.no_grad()
def test_a_kept_patch_keeps_its_place(model, scenes):
    cut = patches(np.stack([scenes[0].image]))
    everything = torch.randperm(64)[None]
    torch.testing.assert_close(encode_image(model, cut, everything), encode_image(model, cut))
    some = encode_image(model, cut, everything[:, :KEPT])
    assert not torch.allclose(some, encode_image(model, cut), atol=1e-3)


@torch.no_grad()
def test_captions_are_read_as_open_clip_reads_them(model, words, scenes):
    captions = [*(scene.caption for scene in scenes), "a photo of " + "rhinoceros and " * 12]
    rows = words(captions)
    tokens = open_clip.get_tokenizer("ViT-B-32", 24)(captions)
    for row, line in zip(rows, tokens, strict=True):
        end = int(line.argmax()) + 1
        assert words.ids[row[:end]].tolist() == line[:end].tolist()
    padded = torch.zeros_like(tokens)
    padded[:, : rows.shape[1]] = rows
    torch.testing.assert_close(encode_text(model, rows), model.encode_text(padded))


def test_muon_makes_singular_values_equal():
    torch.manual_seed(1)
    for shape in ((3, 20, 80), (2, 80, 20)):
        values = torch.linalg.svdvals(contrastive.orthogonal(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_moments_survive_a_checkpoint(model, tmp_path):
    optimiser = Optimiser(model, rate=0.0, kind=torch.float32)
    for _ in range(2):
        gradients = {name: torch.randn_like(p) for name, p in model.named_parameters()}
        optimiser.step(gradients, 1.0)
    weights = {f"weight.{name}": p.detach() for name, p in model.named_parameters()}
    path = tmp_path / "checkpoint.safetensors"
    contrastive.write(path, weights | optimiser.state(), steps=optimiser.steps)
    assert path.stat().st_size < 30_000_000
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    tensors, facts = contrastive.read(path)
    other = Optimiser(model, rate=0.0, kind=torch.float32)
    other.restore(tensors, facts["steps"])
    assert other.steps == 2
    for part in ("momentum", "first", "second"):
        for name, tensor in getattr(optimiser, part).items():
            torch.testing.assert_close(getattr(other, part)[name], tensor, rtol=0.01, atol=1e-6)


def run(monkeypatch, folder, *options):
    small = ("--batch", "8", "--exam", "2", "--decay", "0", "--minutes", "0")
    monkeypatch.setattr(sys, "argv", ["contrastive.py", str(folder), *small, *options])
    contrastive.main()
    weights, facts = contrastive.read(folder / "checkpoint.safetensors")
    with (folder / "log.csv").open() as file:
        return weights, facts, list(csv.DictReader(file))


@pytest.mark.long
def test_a_stopped_run_goes_on_where_it_was(monkeypatch, tmp_path):
    monkeypatch.setattr(contrastive, "WARM_UP", 8)
    whole, facts, log = run(monkeypatch, tmp_path / "whole", "--pictures", "24")
    run(monkeypatch, tmp_path / "parts", "--pictures", "16")
    parts, resumed, rows = run(monkeypatch, tmp_path / "parts", "--pictures", "24")
    assert facts["pictures"] == resumed["pictures"] == 24
    assert facts["steps"] == resumed["steps"] == 3
    assert (
        [row["pictures"] for row in log] == [row["pictures"] for row in rows] == ["8", "16", "24"]
    )
    assert log[-1]["loss"] == pytest.approx(rows[-1]["loss"])
    change = torch.cat([(whole[n] - parts[n]).flatten() for n in whole if n.startswith("weight.")])
    assert change.abs().max() < 0.01  # moments are kept in bfloat16
    assert change.abs().mean() < 1e-4
