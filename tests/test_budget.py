"""Budgets and attention ablations against the definitions, from the open_clip model itself."""

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from models import Unreadable, sequence_first, tiny_images, tiny_model

from secondlens.applications.ablation.accuracy import BASELINE
from secondlens.applications.ablation.attention import (
    FIRST_ORDER_KINDS,
    ablate_attention,
    attention_effects,
)
from secondlens.applications.ablation.budget import PARTS, SPLIT, budget
from secondlens.effects.finite_paths import finite_paths
from secondlens.errors import SecondLensError
from secondlens.lens.fitting import fit
from secondlens.models.open_clip.views import from_open_clip

# torch.func.jvp, which the oracle uses, still scripts some of its own functions
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(dtype=torch.float64, layers=4, ls_init_value=0.7))


@pytest.fixture(scope="module")
def lens(clip):
    return fit(clip, tiny_images(clip, 30, seed=2), top=3)


@pytest.mark.parametrize("layer", [0, 2])
def test_parts_are_those_of_the_definitions(clip, lens, layer):
    images, neurons = tiny_images(clip, 7), [9, 2, 40]
    found = budget(clip, lens, images, layer, neurons, batch_size=4)
    assert found.images == 7 and found.neurons == (9, 2, 40)
    run, held = oracle.Run(clip.model, images), lens[layer].activation_mean
    for i, neuron in enumerate(neurons):
        row = run.blocks[layer].mlp.c_proj.weight[:, neuron] * run.blocks[layer].ls_2.gamma
        moved = (run.activations[layer][:, :, neuron] - held[:, neuron])[:, :, None] * row.detach()
        direct = oracle.direct(run, moved)
        second = oracle.second_order(run, layer, moved)
        total = oracle.indirect(run, images, layer, neuron, held)
        parts = [direct, second, total - direct - second, total]
        expected = [[(a * b).sum(-1).mean() for b in parts] for a in parts]
        assert torch.allclose(found.gram[i], torch.tensor(expected, dtype=torch.float64))
        size = total.square().sum(-1).mean().sqrt()
        assert found.sizes[i, 3] == pytest.approx(float(size))
    assert torch.allclose(found.shares.sum(1), torch.ones(3, dtype=torch.float64))
    assert found.of_layer.sum() == pytest.approx(1)
    weights = found.gram[:, 3, 3] / found.gram[:, 3, 3].sum()
    assert torch.allclose(found.of_layer, weights @ found.shares)
    assert bool((found.cosines.abs() <= 1 + 1e-9).all()) and len(PARTS) == 3


@pytest.mark.parametrize("layer", [0, 2])
def test_the_remainder_splits_by_class_of_path(clip, lens, layer, monkeypatch):
    """Effects that were taken back from every direction, where the budget goes forward."""
    monkeypatch.setattr("secondlens.applications.ablation.budget.COPIES_PER_PASS", 5)
    images, neurons, held = tiny_images(clip, 7), [9, 2, 40], lens[layer].activation_mean
    rows = F.normalize(torch.randn(4, clip.dim, generator=torch.Generator().manual_seed(1)), dim=1)
    rows = rows.double()
    found = budget(clip, lens, images, layer, neurons, nodes=1, directions=rows, batch_size=4)
    whole = budget(clip, lens, images, layer, neurons)
    assert torch.allclose(found.gram, whole.gram) and whole.split is None and whole.along is None
    identity = torch.eye(clip.dim, dtype=torch.float64)
    back = finite_paths(clip, images, layer, neurons, held, directions=identity, nodes=1)
    classes = back.effects.permute(0, 2, 3, 1)
    total = back.total.transpose(1, 2)
    run = oracle.Run(clip.model, images)
    unit = F.normalize(run.representation, dim=-1)
    best = (unit @ rows.T).argmax(-1)
    pairs = []
    for i, neuron in enumerate(neurons):
        row = run.blocks[layer].mlp.c_proj.weight[:, neuron] * run.blocks[layer].ls_2.gamma
        moved = (run.activations[layer][:, :, neuron] - held[:, neuron])[:, :, None] * row.detach()
        second = oracle.second_order(run, layer, moved)
        rest = total[:, i] - oracle.direct(run, moved) - second
        parts = [*classes[:, i, 2:].unbind(1), rest - classes[:, i, 2:].sum(1), total[:, i]]
        expected = [[(a * b).sum(-1).mean() for b in parts] for a in parts]
        assert torch.allclose(found.split[i], torch.tensor(expected, dtype=torch.float64))
        for image in range(7):
            direction = rows[best[image]] - rows.mean(0)
            compared = (second[image], classes[image, i].sum(0), total[image, i])
            pairs.append([float(each @ direction) for each in compared])
    second, everything, total = zip(*pairs, strict=True)
    expected = (np.corrcoef(second, total)[0, 1], np.corrcoef(everything, total)[0, 1])
    assert found.correlations == pytest.approx(expected, abs=1e-9)
    assert found.correlations[1] > 0.999
    assert torch.allclose(found.split_shares.sum(1), found.shares[:, 2])
    assert float(found.split_of_layer.sum()) == pytest.approx(float(found.of_layer[2]))
    weights = found.split[:, 6, 6] / found.split[:, 6, 6].sum()
    assert torch.allclose(found.split_of_layer, weights @ found.split_shares)
    # nodes leave less and less
    closer = budget(clip, lens, images, layer, neurons, nodes=6)
    place = SPLIT.index("missed")
    assert closer.split[:, place, place].sum() < found.split[:, place, place].sum()
    own = torch.einsum("bnd,bd->bn", back.total.transpose(1, 2), unit)
    assert torch.allclose(closer.along[..., 2], own)


def test_attention_effects_and_the_rest_make_the_embedding(clip):
    images = tiny_images(clip, 5)
    embedding, effects = attention_effects(clip, images)
    assert torch.allclose(embedding, F.normalize(clip.encode_image(images), dim=1))
    run = oracle.Run(clip.model, images)
    for j, block in enumerate(run.blocks):
        written = oracle.frozen_attention(block, run.streams[j])(run.streams[j])
        expected = oracle.direct(run, written[:, None])
        assert torch.allclose(effects[:, j], expected, atol=1e-12)
    other = from_open_clip(sequence_first(tiny_model(dtype=torch.float64)))
    plain = from_open_clip(tiny_model(dtype=torch.float64))
    images = tiny_images(plain, 3)
    assert torch.allclose(attention_effects(other, images)[1], attention_effects(plain, images)[1])


def test_attention_ablation(clip):
    images, reference = tiny_images(clip, 20, seed=5), tiny_images(clip, 25, seed=6)
    classifier = F.normalize(torch.randn(4, 12, dtype=torch.float64), dim=1)
    labels = [i % 4 for i in range(20)]
    found = ablate_attention(clip, images, labels, classifier, reference, batch_size=6)
    embedding, effects = attention_effects(clip, images)
    away = effects - attention_effects(clip, reference)[1].mean(0)
    for j in range(clip.layers):
        for kind, removed in zip(
            FIRST_ORDER_KINDS, (away[:, : j + 1].sum(1), away[:, j]), strict=True
        ):
            right = ((embedding - removed) @ classifier.T).argmax(1) == torch.tensor(labels)
            assert torch.equal(torch.from_numpy(found.correct(j, kind)), right)
    assert found.baseline() == pytest.approx(
        float(((embedding @ classifier.T).argmax(1) == torch.tensor(labels)).double().mean())
    )
    assert BASELINE in found.ranks
    assert all(not module._forward_hooks for module in clip.model.modules())


def test_mistakes(clip, lens):
    images = tiny_images(clip, 4)
    for message, layer, neurons in (
        ("no later attention", 3, [0]),
        ("no layer 9", 9, [0]),
        ("no neuron 96", 1, [96]),
        ("no neurons", 1, []),
    ):
        with pytest.raises(SecondLensError, match=message):
            budget(clip, lens, images, layer, neurons)
    other = from_open_clip(tiny_model(dtype=torch.float64, seed=4, layers=4))
    with pytest.raises(SecondLensError, match="other weights"):
        budget(other, lens, images, 0, [0])
    with pytest.raises(SecondLensError, match="4 images and 2 labels"):
        ablate_attention(clip, images, [0, 1], torch.eye(12, dtype=torch.float64), images)
    with pytest.raises(SecondLensError, match="none of the pictures could be read"):
        budget(clip, lens, Unreadable(), 0, [0])
    for options, message in (
        ({"nodes": -1}, "nodes must be 0 or more"),
        ({"directions": torch.ones(2, 5)}, r"\[texts, 12\], and these are \[2, 5\]"),
    ):
        with pytest.raises(SecondLensError, match=message):
            budget(clip, lens, images, 0, [0], **options)
    classifier = torch.eye(12, dtype=torch.float64)
    with pytest.raises(SecondLensError, match="none of the reference pictures could be read"):
        ablate_attention(clip, images, [0] * 4, classifier, Unreadable())
