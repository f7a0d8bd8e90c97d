"""A lens of a SigLIP, of an averaged tower and of an EVA-02, all inside open_clip, and its uses."""

import pytest
import torch
import torch.nn.functional as F
from models import tiny_tokenizer
from timm_towers import Held, small_clip, some_images

import secondlens as sl
from secondlens.applications.ablation.accuracy import BASELINE, ablate
from secondlens.applications.segmentation.segmenter import Recipe, Segmenter, encode
from secondlens.effects.value_paths import value_paths

TEXTS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "kiwi", "lynx"]
CLASSES = 5


@pytest.fixture(scope="module", params=["SigLIP", "average", "EVA-02"])
def clip(request):
    model = small_clip(request.param, torch.float64)
    return sl.from_open_clip(model, tokenizer=tiny_tokenizer, name=request.param)


@pytest.fixture(scope="module")
def images(clip):
    return some_images(clip.model.visual.trunk, 40)


@pytest.fixture(scope="module")
def lens(clip, images):
    fitted = sl.fit(clip, images, top=6)
    sl.describe(clip, fitted, TEXTS, 5)
    return fitted


def test_layers_that_have_a_lens(clip, lens):
    assert lens.layers == list(range(3 if clip.name == "SigLIP" else 2))


def test_a_lens_holds_what_effects_show(clip, lens, images):
    for layer in lens.layers:
        effects = sl.second_order(clip, images, layer)
        torch.testing.assert_close(lens[layer].mean, effects.mean(0))
        away = effects - effects.mean(0)
        top = away[:, 5].norm(dim=1).topk(6).indices
        assert sorted(lens[layer].top_images[5].tolist()) == sorted(top.tolist())
        direction = torch.linalg.svd(away[top, 5])[2][0]
        assert abs(float(direction @ lens[layer].directions[5])) == pytest.approx(1)


def test_codes_are_of_the_directions(clip, lens):
    codes = lens.codes["texts"]
    rows = clip.encode_text(TEXTS)
    atoms = F.normalize(rows - rows.mean(0), dim=1)
    direction = lens[0].directions[3]
    first = int((atoms @ direction).abs().argmax())
    assert codes.indices[0][3][0] == first


def test_ablation_is_that_of_materialised_effects(clip, lens, images):
    generator = torch.Generator().manual_seed(3)
    random = torch.randn(CLASSES, clip.dim, dtype=torch.float64, generator=generator)
    classifier, labels = F.normalize(random, dim=1), [i % CLASSES for i in range(len(images))]
    found = ablate(clip, lens, images, labels, classifier)
    embeddings = F.normalize(clip.encode_image(images), dim=1)
    for layer in lens.layers:
        away = sl.second_order(clip, images, layer) - lens[layer].mean
        scores = (embeddings - away.sum(1)) @ classifier.T
        ranks = (scores > scores.gather(1, torch.tensor(labels)[:, None])).sum(1)
        assert torch.equal(found.ranks[layer, "all"], ranks)
    assert found.ranks[BASELINE].shape == (len(images),)


def test_maps_of_effects_add_up_to_effects(clip, lens, images):
    """Over patches; what comes from the class token is in no map."""
    layer, text = lens.layers[-1], clip.encode_text(["a dog"])
    recipe = Recipe(layers=(layer,), neurons=clip.neurons, weigh="effect", scale="none")
    segmenter = Segmenter(clip, lens, recipe)
    encoded = encode(clip, images, [layer])
    maps = segmenter.heat_maps(encoded, text.expand(len(images), 1, -1))
    assert maps.shape == (len(images), 1, *clip.grid)
    held = Held(clip.model.visual.trunk, images)
    write = held.write(layer)
    write[:, : clip.prefix] = 0
    expected = held.second_order(layer, write) @ text[0]
    length = held.representation.norm(dim=1)
    scale = (maps.sum((1, 2, 3)) * clip.neurons) / (expected * length)
    # maps leave out the image's own scale, that of the last norm
    norm = clip.model.visual.trunk.fc_norm if clip.name == "average" else clip.ln_post
    seen = held.seen.get(norm)
    if seen is None:
        torch.testing.assert_close(scale, torch.ones_like(scale))
    else:
        read = seen[:, 0] if seen.dim() == 3 else seen
        sigma = (read.var(-1, correction=0) + norm.eps).sqrt()
        torch.testing.assert_close(scale, sigma)


def test_segment_and_discover(clip, lens, images):
    mask = sl.segment(clip, lens, images[0], "a dog")
    assert mask.shape == tuple(clip.image_size)
    assert 0 <= float(mask.min()) <= float(mask.max()) <= 1
    words = sl.discover(clip, lens, images[0], 4)
    assert words
    for word in words:
        came = word.patches.sum() + word.class_token
        assert float(came) == pytest.approx(float(word.heads.sum()))
        parts = sum(each.weight for each in word.neurons) + word.others
        assert float(came) == pytest.approx(parts, rel=1e-4)
    heads = words[0].heads
    if clip.name == "SigLIP":
        assert not heads[:-1].any()
        assert heads[-1].any()


def test_values_have_one_path_for_each_head(clip):
    assert value_paths(clip, 0).shape == (clip.neurons, clip.path_count(0), clip.dim)
    assert clip.path_count(0) == (4 if clip.name == "SigLIP" else 8)


def test_all_paths_are_refused_with_the_reason(clip, images):
    with pytest.raises(sl.UnsupportedModel, match="cannot be told"):
        sl.paths(clip, images[:1], ["a dog"])
