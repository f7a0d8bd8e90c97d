import pytest
import torch
import torch.nn.functional as F
from models import tiny_images, tiny_model, tiny_tokenizer

from secondlens.ablate import KINDS, Ablation, ablate
from secondlens.clip import from_open_clip
from secondlens.effects import second_order
from secondlens.errors import SecondLensError
from secondlens.fit import fit


@pytest.fixture(scope="module")
def clip():
    model = tiny_model(dtype=torch.float64, layers=4)
    return from_open_clip(model, tokenizer=tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def images(clip):
    return tiny_images(clip, 40, seed=8)


@pytest.fixture(scope="module")
def lens(clip):
    return fit(clip, tiny_images(clip, 60, seed=9), top=6)


@pytest.fixture(scope="module")
def classifier():
    return F.normalize(torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator()), dim=1)


def literally(clip, lens, images, layer, kind):
    """Embeddings after ablation, from materialised effects, one image and neuron at a time."""
    embeddings = F.normalize(clip.encode_image(images), dim=1)
    effects, fitted = second_order(clip, images, layer), lens[layer]
    for i in range(len(images)):
        for n in range(clip.neurons):
            away = effects[i, n] - fitted.mean[n]
            large = away.norm() > fitted.threshold[n]
            if kind == "all" or (kind == "large" and large) or (kind == "small" and not large):
                embeddings[i] -= away
            if kind == "first component":
                embeddings[i] -= away - (away @ fitted.directions[n]) * fitted.directions[n]
    return embeddings


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("kind", ["all", "large", "small", "first component"])
def test_ablation_equals_materialised_effects(clip, lens, images, classifier, layer, kind):
    scores = literally(clip, lens, images, layer, kind) @ classifier.T
    # labels that the ablated model gets right tell every other prediction apart
    expected = scores.argmax(1)
    found = ablate(clip, lens, images, expected.tolist(), classifier, batch_size=7)
    assert found.correct[layer, kind].all()
    wrong = ablate(clip, lens, images, ((expected + 1) % 5).tolist(), classifier)
    assert not wrong.correct[layer, kind].any()


def test_the_random_kind_ablates_as_many_as_the_large_kind(clip, lens, images, classifier):
    labels = [0] * len(images)
    found = ablate(clip, lens, images, labels, classifier)
    effects = second_order(clip, images, 1)
    norms = (effects - lens[1].mean).norm(dim=-1)
    expected = (norms > lens[1].threshold).sum(1).double().mean()
    assert found.significant[1] == pytest.approx(float(expected))
    again = ablate(clip, lens, images, labels, classifier)
    assert torch.equal(found.correct[1, "random"], again.correct[1, "random"])
    assert set(found.correct) == {(layer, kind) for layer in (0, 1, 2) for kind in KINDS}
    assert found.accuracy(1, "all") == found.correct[1, "all"].double().mean()


def test_official_lens_ablates_the_same_directions(clip, images, classifier):
    """The scale of 100 cancels: official effects move the embedding by a hundredth of them."""
    lens = fit(clip, images, [2], top=4, convention="official")
    effects = second_order(clip, images, 2, "official")
    moved = (effects - lens[2].mean).sum(1) / 100
    expected = (F.normalize(clip.encode_image(images), dim=1) - moved) @ classifier.T
    found = ablate(clip, lens, images, expected.argmax(1).tolist(), classifier)
    assert found.correct[2, "all"].all()


def test_labels_are_checked(clip, lens, images, classifier):
    with pytest.raises(SecondLensError, match="40 images and 3 labels"):
        ablate(clip, lens, images, [0, 1, 2], classifier)
    with pytest.raises(SecondLensError, match="between 0 and 4"):
        ablate(clip, lens, images, [5] * 40, classifier)


def test_save_and_load(clip, lens, images, classifier, tmp_path):
    found = ablate(clip, lens, images, [0] * len(images), classifier)
    found.save(tmp_path / "ablation.safetensors")
    loaded = Ablation.load(tmp_path / "ablation.safetensors")
    assert torch.equal(loaded.baseline, found.baseline)
    assert loaded.significant == found.significant
    assert loaded.correct.keys() == found.correct.keys()
    assert all(torch.equal(loaded.correct[key], right) for key, right in found.correct.items())
