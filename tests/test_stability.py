from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from models import tiny_images, tiny_model, tiny_tokenizer

from secondlens.data.sources import InMemory
from secondlens.data.vocabularies import vocabulary
from secondlens.errors import SecondLensError
from secondlens.lens.fitting import fit
from secondlens.lens.lens import Lens
from secondlens.models.open_clip.views import from_open_clip
from secondlens.words.describing import describe
from secondlens.words.dissection import by_activation, dissect, soft_wpmi
from secondlens.words.halves import stability
from secondlens.words.scoring import score

TEXTS = vocabulary([f"{i} text" for i in range(15)], name="fifteen")


@pytest.fixture(scope="module")
def clip():
    model = tiny_model(dtype=torch.float64)
    return from_open_clip(model, tokenizer=tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def images(clip):
    return tiny_images(clip, 41)


@pytest.fixture
def unseen(clip):
    return InMemory(tiny_images(clip, 41, seed=9), [f"new-{i}" for i in range(41)])


@pytest.fixture
def lens(clip, images):
    lens = fit(clip, images, top=10)
    describe(clip, lens, TEXTS, 4)
    return lens


def test_stability_equals_two_fits_compared(clip, images, lens):
    found = stability(clip, lens, TEXTS, images, seed=3)
    order = torch.randperm(41, generator=torch.Generator().manual_seed(3))
    one, other = (
        fit(clip, images[half.sort().values], lens.layers, top=5)
        for half in (order[:20], order[20:])
    )
    codes = [describe(clip, each, TEXTS, 4) for each in (one, other)]
    flipped = 0
    for layer in lens.layers:
        for n in range(clip.neurons):
            for partner, cosines, overlaps in (
                (n, found.cosine, found.overlap),
                ((n + 1) % clip.neurons, found.cosine_null, found.overlap_null),
            ):
                cosine = one[layer].directions[n] @ other[layer].directions[partner]
                assert cosines[layer][n] == pytest.approx(abs(float(cosine)))
                sign = np.sign(float(cosine))
                flipped += sign < 0
                mine = {(w, np.sign(x)) for w, x in codes[0].words(layer, n, 8)}
                theirs = {(w, np.sign(x) * sign) for w, x in codes[1].words(layer, partner, 8)}
                expected = len(mine & theirs) / len(mine | theirs)
                assert overlaps[layer][n] == pytest.approx(expected)
    assert flipped > 0


def test_same_images_twice_are_perfectly_stable(clip, images, lens):
    """Both halves get the same pictures: every neuron agrees with itself, and not with others."""
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    twice = torch.empty_like(images[:40])
    twice[order[:20].sort().values] = images[:20]
    twice[order[20:].sort().values] = images[:20]
    found = stability(clip, lens, TEXTS, twice)
    for layer in lens.layers:
        torch.testing.assert_close(found.cosine[layer], torch.ones_like(found.cosine[layer]))
        assert found.overlap[layer].min() == 1
        assert found.overlap_null[layer].mean() < 0.5
        assert found.cosine_null[layer].mean() < 0.9


def test_stability_is_saved_with_the_lens(clip, images, lens, tmp_path):
    found = stability(clip, lens, TEXTS, images)
    lens.save(tmp_path)
    loaded = Lens.load(tmp_path).stability["fifteen"]
    assert loaded.images == found.images == 41
    for name in ("cosine", "cosine_null", "overlap", "overlap_null"):
        for layer in lens.layers:
            torch.testing.assert_close(getattr(loaded, name)[layer], getattr(found, name)[layer])


def test_stability_refusals(clip, images, lens):
    with pytest.raises(SecondLensError, match="no description 'else'"):
        stability(clip, lens, vocabulary(["a"], name="else"), images)
    others = vocabulary(["a", "b"], name="fifteen")
    with pytest.raises(SecondLensError, match="described with other texts of the name fifteen"):
        stability(clip, lens, others, images)
    with pytest.raises(SecondLensError, match="7 images make no two halves"):
        stability(clip, lens, TEXTS, images[:7])


def literal_soft_wpmi(similarity, strongest):
    texts = np.exp(similarity) / np.exp(similarity).sum(1, keepdims=True)
    top = strongest.shape[1]
    inside = [0.998 - (0.998 - 0.97) * i / (top - 1) for i in range(top)]
    joint = np.array(
        [
            [
                np.prod([1 + p * (texts[x, t] - 1) for p, x in zip(inside, images, strict=True)])
                for t in range(texts.shape[1])
            ]
            for images in strongest
        ]
    )
    return np.log(joint) - np.log(joint.mean(0))


def test_soft_wpmi_equals_the_formula(monkeypatch):
    rng = np.random.default_rng(0)
    similarity = 3 * rng.normal(size=(30, 7))
    strongest = np.stack([rng.permutation(30)[:6] for _ in range(5)])
    log_texts = torch.from_numpy(similarity).log_softmax(1)
    expected = literal_soft_wpmi(similarity, strongest)
    found = soft_wpmi(log_texts, torch.from_numpy(strongest))
    np.testing.assert_allclose(found, expected)
    monkeypatch.setattr(import_module("secondlens.words.dissection"), "NUMBERS_PER_CHUNK", 1)
    np.testing.assert_allclose(soft_wpmi(log_texts, torch.from_numpy(strongest)), expected)


def test_dissect_labels_what_activates(clip, images, lens):
    codes = dissect(clip, lens, TEXTS, images, batch_size=7)
    embeddings = torch.nn.functional.normalize(clip.encode_image(images), dim=1)
    similarity = (10 * embeddings @ TEXTS.embed(clip).T).numpy()
    for layer in lens.layers:
        seen = []
        handle = clip.blocks[layer].activation.register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(clip.batch_major(output))
        )
        clip.encode_image(images)
        handle.remove()
        means = seen[0].detach().mean(1).numpy()
        strongest = np.argsort(-means, axis=0)[:10].T
        expected = literal_soft_wpmi(similarity, strongest).argmax(1)
        np.testing.assert_array_equal(codes.indices[layer][:, 0], expected)
        assert codes.coefficients[layer].eq(1).all()


def test_activation_labels_are_scored_alike(clip, images, lens, unseen):
    dissect(clip, lens, TEXTS, images)
    labels = [{TEXTS.labels[i % 15]} for i in range(41)]
    scores = score(clip, lens, by_activation(TEXTS), unseen, labels)
    assert scores.auc[0][:, 0].isfinite().all()
    assert scores.auc[0][:, 1].isnan().all()


def test_dissecting_anew_drops_the_scores_of_the_old_labels(clip, images, lens, unseen):
    labels = [{TEXTS.labels[i % 15]} for i in range(41)]
    dissect(clip, lens, TEXTS, images)
    score(clip, lens, by_activation(TEXTS), unseen, labels)
    kept = score(clip, lens, TEXTS, unseen, labels)
    dissect(clip, lens, TEXTS, images[:30])
    assert list(lens.scores) == [kept.name]


def test_dissect_needs_the_images_of_the_fit(clip, images, lens):
    with pytest.raises(SecondLensError, match="fewer than the 10 top images"):
        dissect(clip, lens, TEXTS, images[:5])
    with pytest.raises(SecondLensError, match="other weights"):
        dissect(clip, replace(lens, model={**lens.model, "weights": "x"}), TEXTS, images)
