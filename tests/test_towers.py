"""Every family of transformers' models: the view is the model, and effects add up to the path."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import tiny_model, tiny_tokenizer
from PIL import Image
from towers import (
    TRANSFORMERS,
    convolutional_model,
    error,
    images_for,
    transformers_model,
    whole_path,
)
from transformers import BatchEncoding, BitImageProcessor

import secondlens as sl
from secondlens.effects.capture import Capture
from secondlens.errors import SecondLensError
from secondlens.models.checks import check_parity
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.resizing import resized
from secondlens.models.transformers.views import from_transformers
from secondlens.words.dissection import SHARPNESS, soft_wpmi

OF_PATCHES = ("SiglipModel", "SiglipVisionModel", "Siglip2Model")


@pytest.fixture(params=TRANSFORMERS)
def kind(request):
    return request.param


def view(kind, dtype=torch.float64, **options):
    return from_transformers(transformers_model(kind, dtype=dtype), **options)


def embedding(model, images):
    """What the model itself makes of images, by its public functions."""
    kind = type(model).__name__
    with torch.no_grad():
        if kind == "Siglip2Model":
            patches = F.unfold(images, 8, stride=8).mT.unflatten(-1, (3, 64)).mT.flatten(-2)
            shapes = torch.tensor([[size // 8 for size in images.shape[-2:]]]).expand(
                len(images), 2
            )
            there = torch.ones(patches.shape[:2], dtype=torch.long)
            return model.get_image_features(patches, there, shapes).pooler_output
        if hasattr(model, "get_image_features"):
            return model.get_image_features(images).pooler_output
        output = model(images)
    if "logits" in output:
        return output.logits
    return output.last_hidden_state[:, 0] if kind == "ViTModel" else output.pooler_output


def test_the_view_rebuilds_the_model(kind):
    assert check_parity(view(kind)) < 1e-6  # some attention takes its softmax in float32
    assert check_parity(view(kind, torch.float32)) < 1e-5


def test_the_embedding_is_that_of_the_model(kind):
    clip = view(kind)
    images = images_for(clip)
    assert error(clip.encode_image(images), embedding(clip.model, images)) < 1e-12


def test_effects_of_all_neurons_add_up_to_the_path(kind):
    clip = view(kind)
    images = images_for(clip)
    last = clip.layers - 1 if kind in OF_PATCHES else clip.layers - 2
    assert clip.last_effect_layer == last
    for layer in range(last + 1):
        found = sl.second_order(clip, images, layer).sum(1)
        assert error(found, whole_path(clip, images, layer)) < 1e-9


def test_half_precision_is_close(kind):
    exact, half = view(kind), view(kind, torch.bfloat16)
    images = images_for(exact)
    found, expected = (sl.second_order(each, images, 0) for each in (half, exact))
    assert error(found, expected) < 0.3
    assert half.compute_dtype == torch.float32


def test_a_larger_picture_has_more_patches(kind):
    clip = resized(view(kind), 24, 32)
    images = images_for(clip)
    found = sl.second_order(clip, images, 0).sum(1)
    assert error(found, whole_path(clip, images, 0)) < 1e-9
    assert check_parity(clip) < 1e-6


def test_the_last_block_for_the_class_token_alone_is_the_same(kind):
    clip = view(kind)
    images = images_for(clip)
    whole = clip.encode_image(images)
    with clip.class_token_only():
        assert error(clip.encode_image(images), whole) < 1e-6


# -- through the whole of it -----------------------------------------------------------------

TEXTS = ("a dog", "a cat", "a ship", "snow")


def padded(texts, **options):
    return BatchEncoding({"input_ids": tiny_tokenizer(texts)})


@pytest.fixture(scope="module")
def siglip():
    return from_transformers(transformers_model("SiglipModel"), tokenizer=padded, name="siglip")


@pytest.fixture(scope="module")
def lens(siglip):
    lens = sl.fit(siglip, images_for(siglip, 24), "all", top=4)
    sl.describe(siglip, lens, TEXTS, k=2)
    return lens


def test_a_lens_of_a_siglip_has_its_last_layer(siglip, lens):
    assert list(lens.layers) == [0, 1, 2]
    assert lens[2].directions.shape == (48, 32)
    norms = lens[2].directions.norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)
    images = images_for(siglip, 24)
    mean = sl.second_order(siglip, images, 2).mean(0)
    assert error(lens[2].mean, mean) < 1e-5


def test_words_of_a_siglip_are_discovered_over_the_heads_of_its_pool(siglip, lens):
    (word, *_) = sl.discover(siglip, lens, images_for(siglip)[0], top=2)
    assert word.text in TEXTS
    assert word.heads.shape == (4, 4) and not word.heads[:3].any()
    assert word.patches.shape == (2, 2) and word.class_token == 0
    assert float(word.patches.sum()) == pytest.approx(float(word.heads.sum()), rel=1e-3)


@pytest.mark.parametrize("effect", ["second-order", "together"])
def test_effects_of_a_siglip_are_ablated(siglip, lens, effect):
    images, labels = images_for(siglip, 24), [0, 1, 2, 3] * 6
    classifier = siglip.encode_text(TEXTS)
    found = sl.ablate(siglip, lens, images, labels, classifier, effect=effect)
    rows = F.normalize(siglip.encode_image(images), dim=-1)
    best = (rows @ classifier.T).argmax(1)
    assert found.baseline() == pytest.approx(float((best == torch.tensor(labels)).float().mean()))
    assert {layer for layer, _ in found.ranks} == {-1, 0, 1, 2}


def test_all_second_order_effects_of_a_siglip_leave(siglip, lens):
    images, labels = images_for(siglip, 24), [0, 1, 2, 3] * 6
    classifier = siglip.encode_text(TEXTS)
    found = sl.ablate(siglip, lens, images, labels, classifier, layers=[2])
    effects = sl.second_order(siglip, images, 2)
    left = F.normalize(siglip.encode_image(images), dim=-1) - (effects - effects.mean(0)).sum(1)
    best = (left @ classifier.T).argmax(1)
    expected = float((best == torch.tensor(labels)).float().mean())
    assert found.accuracy(2, "all") == pytest.approx(expected)


def test_a_lens_of_a_siglip_is_saved_and_loaded(lens, tmp_path):
    lens.save(tmp_path / "lens")
    found = sl.Lens.load(tmp_path / "lens")
    assert found.model == lens.model and found.model["prefix"] == 0
    assert torch.equal(found[2].activation_mean, lens[2].activation_mean)


# -- words of a model without texts ----------------------------------------------------------


@pytest.fixture(scope="module")
def pictures():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [
            Image.fromarray(torch.randint(0, 256, (16, 16, 3)).byte().numpy()) for _ in "x" * 24
        ]


def judging():
    def preprocess(image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1

    return from_open_clip(tiny_model(), preprocess, tiny_tokenizer, name="judge")


def test_another_clip_finds_words_for_a_dino(pictures, tmp_path):
    size = {"height": 16, "width": 16}
    processor = BitImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    clip = from_transformers(transformers_model("Dinov2WithRegistersModel"), processor, name="dino")
    lens, words, judge = sl.fit(clip, pictures, "all", top=4), sl.vocabulary(TEXTS), judging()
    codes = sl.dissect(clip, lens, words, pictures, judge=judge)
    shown = F.normalize(judge.encode_image(pictures), dim=1)
    log_texts = (SHARPNESS * shown @ words.embed(judge).T).log_softmax(1)
    for layer in lens.layers:
        with Capture(clip, [layer], keep_activations=True) as capture:
            activations = capture.pool(clip.encode_image(pictures)).activations[layer]
        strongest = activations.mean(1).topk(4, dim=0).indices.T
        expected = soft_wpmi(log_texts, strongest).argmax(1)
        assert torch.equal(codes.indices[layer][:, 0], expected)
        assert codes.cosine[layer].isnan().all()
    lens.save(tmp_path / "lens")
    found = sl.Lens.load(tmp_path / "lens")
    assert found.model["prefix"] == 3
    assert found.codes["texts, by activation"].words(0, 0) == codes.words(0, 0)


def test_without_a_judge_there_are_no_words(pictures):
    clip = from_transformers(transformers_model("Dinov2Model"), name="dino")
    images = images_for(clip, 8)
    lens = sl.fit(clip, images, "all", top=4)
    with pytest.raises(
        SecondLensError, match=r"dino has no text tower, .*another CLIP as the judge"
    ):
        sl.dissect(clip, lens, sl.vocabulary(TEXTS), images)


# -- the budget ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SiglipModel", "Dinov2WithRegistersModel", "ResNet"])
def test_a_budget_has_what_is_direct(kind):
    if kind == "ResNet":
        clip = from_open_clip(convolutional_model(kind, torch.float64))
    else:
        clip = view(kind)
    images, neurons = images_for(clip, 8), [3, 0, 7]
    lens = sl.fit(clip, images, [0], top=2)
    found = sl.budget(clip, lens, images, 0, neurons)
    direct, (gram, *_) = sl.direct(clip, images, 0), found.gram.unbind(1)
    assert found.gram[:, 1, 1].min() > 0  # second-order
    if kind != "Dinov2WithRegistersModel":
        assert not direct.any() and not gram.any()
        return
    with Capture(clip, [0], keep_activations=True) as capture:
        read = capture.pool(clip.encode_image(images)).activations[0][:, 0]
    moved = direct * (1 - lens[0].activation_mean[0] / read)[:, :, None]
    expected = moved[:, neurons].square().sum(-1).mean(0)
    assert torch.allclose(gram[:, 0], expected, rtol=1e-6)
