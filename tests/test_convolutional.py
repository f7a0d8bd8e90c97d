"""ResNets and ConvNeXts of open_clip: channels of the last stage as neurons."""

import open_clip
import pytest
import torch
from models import tiny_tokenizer
from open_clip import factory
from torch import nn
from torch.func import jvp
from towers import CONVOLUTIONAL, convolutional_model, error, images_for, whole_path

import secondlens as sl
from secondlens.effects.capture import Capture
from secondlens.errors import SecondLensError, SecondLensWarning, UnsupportedModel
from secondlens.models.checks import activation_name, check_activation, check_parity, parity_errors
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.resizing import resized
from secondlens.verify import verify

# torch.func.jvp still scripts some of its own functions
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")

CONVNEXTS = ("ConvNeXt", "ConvNeXt, MLP head")


def view(kind, dtype=torch.float64, **options):
    return from_open_clip(convolutional_model(kind, dtype), name=kind, **options)


@pytest.fixture(scope="module")
def resnet():
    return view("ResNet")


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
def test_the_view_rebuilds_the_model(kind):
    clip = view(kind)
    assert check_parity(clip) < 1e-13
    assert check_parity(view(kind, torch.float32)) < 1e-5
    expected = {"embedding", "MLP output of block 0"}
    if kind == "ResNet":
        expected.add("output of the attention pool")
    assert parity_errors(clip).keys() == expected
    with torch.no_grad():
        images = images_for(clip)
        assert torch.equal(clip.encode_image(images), clip.model.encode_image(images))


def test_sizes(resnet):
    assert (resnet.layers, resnet.heads, resnet.neurons, resnet.dim) == (1, 4, 256, 12)
    assert (resnet.grid, resnet.prefix, resnet.tokens) == ((2, 2), 1, 5)
    assert (resnet.activation, resnet.last_effect_layer) == ("ReLU", 0)
    assert [attention.heads for attention in resnet.attentions(0).values()] == [4]


# -- ResNets ---------------------------------------------------------------------------------


def last_stage(model, images):
    tower = model.visual
    with torch.no_grad():
        return tower.layer4(tower.layer3(tower.layer2(tower.layer1(tower.stem(images)))))


def pooled(pool, maps, frozen):
    """The pool, token by token, with attention as it is for the maps that are `frozen`."""

    def tokens(maps):
        places = maps.flatten(2).mT
        return torch.cat([places.mean(1, keepdim=True), places], 1) + pool.positional_embedding

    asked, seen = pool.q_proj(tokens(frozen)[:, :1]), pool.k_proj(tokens(frozen))
    heads = []
    for h, value in enumerate(pool.v_proj(tokens(maps)).chunk(pool.num_heads, -1)):
        query, key = (each.chunk(pool.num_heads, -1)[h] for each in (asked, seen))
        heads.append((query @ key.mT / key.shape[-1] ** 0.5).softmax(-1) @ value)
    return pool.c_proj(torch.cat(heads, -1))[:, 0]


def test_effects_are_the_derivative_of_the_pool_with_its_attention_frozen(resnet):
    images = images_for(resnet)
    maps, pool = last_stage(resnet.model, images), resnet.model.visual.attnpool
    representation = resnet.encode_image(images)
    assert error(pooled(pool, maps, maps).detach(), representation) < 1e-12
    found = sl.second_order(resnet, images, 0)
    alive = maps.amax((0, 2, 3)).nonzero()[:, 0].tolist()
    for neuron in (alive[0], alive[17], alive[-1]):
        alone = torch.zeros_like(maps)
        alone[:, neuron] = maps[:, neuron]
        _, moved = jvp(lambda x: pooled(pool, x, maps), (maps,), (alone,))
        expected = moved / representation.norm(dim=-1, keepdim=True)
        assert error(found[:, neuron], expected.detach()) < 1e-10


def test_effects_of_all_channels_add_up_to_the_path(resnet):
    images = images_for(resnet)
    found = sl.second_order(resnet, images, 0).sum(1)
    assert error(found, whole_path(resnet, images, 0)) < 1e-9
    maps, pool = last_stage(resnet.model, images), resnet.model.visual.attnpool
    with torch.no_grad():  # without channels, positions and biases are left
        rest = pooled(pool, torch.zeros_like(maps), maps)
    representation = resnet.encode_image(images)
    whole = found * representation.norm(dim=-1, keepdim=True) + rest
    assert error(whole, representation) < 1e-10


def test_the_mean_token_acts_as_on_average(resnet):
    images = images_for(resnet)
    with Capture(resnet, [0], keep_activations=True) as capture:
        activations = capture.pool(resnet.encode_image(images)).activations[0]
    maps = last_stage(resnet.model, images)
    assert torch.equal(activations[:, 1:], maps.flatten(2).mT)
    assert torch.allclose(activations[:, 0], maps.mean((2, 3)))


def test_there_are_no_direct_effects_past_a_pool(resnet):
    effects = sl.direct(resnet, images_for(resnet, 2), 0)
    assert effects.shape == (2, 256, 12) and not effects.any()


def test_indirect_effects_are_those_of_a_changed_stage(resnet):
    images, tower = images_for(resnet), resnet.model.visual
    mean = torch.rand(5, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean[0] = mean[1:].mean(0)
    maps, representation = last_stage(resnet.model, images), resnet.encode_image(images)
    found = sl.indirect(resnet, images, 0, [3, 9], mean)
    for place, neuron in enumerate((3, 9)):
        other = maps.clone()
        other[:, neuron] = mean[1:, neuron].view(2, 2)
        with torch.no_grad():
            change = representation - tower.attnpool(other)
        assert error(found[:, place], change / representation.norm(dim=-1, keepdim=True)) < 1e-10


def test_channels_are_patched_at_places(resnet):
    images, donors = images_for(resnet, 2), images_for(resnet, 2, seed=2)
    maps, given = (last_stage(resnet.model, each) for each in (images, donors))
    maps[:, 3, 0, 1] = given[:, 3, 0, 1]
    with torch.no_grad():
        expected = resnet.model.visual.attnpool(maps)
    found = sl.patch(resnet, images, donors, 0, neurons=[3], tokens=[2])
    assert error(found.after, expected) < 1e-12
    with pytest.raises(SecondLensError, match="block 0 has no head 0: it has none"):
        sl.patch(resnet, images, donors, 0, heads=[0])


def test_larger_pictures_have_more_places(resnet):
    larger = resized(resnet, 96, 128)
    assert (larger.grid, check_parity(larger) < 1e-12) == ((3, 4), True)
    images = images_for(larger)
    found = sl.second_order(larger, images, 0).sum(1)
    assert error(found, whole_path(larger, images, 0)) < 1e-9


def test_every_check_passes_in_every_precision():
    checks = list(verify(view("ResNet", torch.float32)))
    assert {check.subject for check in checks} >= {"exact effects of layer 0", "embedding"}
    assert all(check.passed for check in checks)


def test_a_resnet_goes_through_fit_describe_and_discover(resnet):
    clip = view("ResNet", torch.float32, tokenizer=tiny_tokenizer)
    images = images_for(clip, 16)
    lens = sl.fit(clip, images, "all", top=4)
    assert list(lens.layers) == [0] and lens[0].directions.shape == (256, 12)
    texts = ["a dog", "a cat", "a ship"]
    codes = sl.describe(clip, lens, texts, k=2)
    assert {word for word, _ in codes.words(0, 3)} <= set(texts)
    (word, *_) = sl.discover(clip, lens, images[0], top=2)
    assert word.text in texts and word.heads.shape == (2, 4) and word.patches.shape == (2, 2)
    total = word.patches.sum() + word.class_token
    assert total == pytest.approx(float(word.heads.sum()), rel=1e-3)
    classifier = clip.encode_text(texts)
    labels = [0, 1, 2, 0] * 4
    found = sl.ablate(clip, lens, images, labels, classifier)
    assert found.significant[0].shape == (16,)
    together = sl.ablate(clip, lens, images, labels, classifier, effect="together")
    assert 0 <= together.accuracy(0, "all") <= 1
    with pytest.raises(SecondLensError, match="ResNet has no direct effects: an attention pool"):
        sl.ablate(clip, lens, images, labels, classifier, effect="direct", reference=images)


def test_the_choice_of_an_activation_reaches_the_text_tower():
    clip = view("ResNet", torch.float32)
    check_activation(clip, "gelu")
    with pytest.raises(UnsupportedModel, match="computes gelu, and its weights are said to be"):
        check_activation(clip, "quick_gelu")


def test_paths_of_a_resnet_are_refused(resnet):
    with pytest.raises(UnsupportedModel, match="of ResNet cannot be told"):
        sl.paths(resnet, images_for(resnet), directions=torch.eye(12, dtype=torch.float64)[:1])


@pytest.fixture
def resnet_by_name(tmp_path, monkeypatch):
    """A tiny ResNet that open_clip knows by name, and a checkpoint of it."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 64, "patch_size": None, "layers": [1, 1, 1, 1], "width": 8}
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "RN-tiny-test", config)
    model = open_clip.CLIP(12, dict(vision), dict(text)).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    return model, str(tmp_path / "weights.pt")


@pytest.mark.parametrize("function", ["gelu", "quick_gelu"])
def test_a_resnet_by_name_has_the_text_tower_that_was_stated(resnet_by_name, function):
    model, path = resnet_by_name
    clip = sl.load("RN-tiny-test", path, activation=function)
    images = images_for(clip)
    with torch.no_grad():
        assert error(clip.encode_image(images), model.encode_image(images)) < 1e-6
    assert clip.activation == "ReLU"
    assert activation_name(clip.model.transformer.resblocks[0].mlp.gelu) == function
    assert sl.second_order(clip, images, 0).shape == (3, 256, 12)


def test_another_pool_is_refused():
    model = convolutional_model("ResNet")
    model.visual.attnpool = nn.Identity().eval()
    with pytest.raises(UnsupportedModel, match="it pools by a Identity"):
        from_open_clip(model)


# -- ConvNeXts -------------------------------------------------------------------------------


def test_direct_effects_of_all_channels_are_the_embedding_but_its_biases():
    clip = view("ConvNeXt")
    images = images_for(clip)
    representation = clip.encode_image(images)
    bias = clip.post_bias @ clip.projection
    effects = sl.direct(clip, images, 0)
    whole = effects.sum(1) * representation.norm(dim=-1, keepdim=True) + bias
    assert error(whole, representation) < 1e-10


@pytest.mark.filterwarnings("ignore:the head of:secondlens.SecondLensWarning")
@pytest.mark.parametrize("kind", CONVNEXTS)
def test_direct_effects_are_the_derivative_with_the_norm_frozen(kind):
    clip = view(kind)
    images, trunk = images_for(clip), clip.model.visual.trunk
    with torch.no_grad():
        means = trunk.stages(trunk.stem(images)).mean((2, 3))
        sigma = (means.var(-1, correction=0, keepdim=True) + clip.post_eps).sqrt()
        length = clip.encode_image(images).norm(dim=-1, keepdim=True)

    def after(means):
        centred = means - means.mean(-1, keepdim=True)
        return clip.model.visual.head(centred / sigma * clip.post_gain + clip.post_bias)

    effects = sl.direct(clip, images, 0)
    for neuron in (0, 31, 63):
        alone = torch.zeros_like(means)
        alone[:, neuron] = means[:, neuron]
        _, moved = jvp(after, (means,), (alone,))
        assert error(effects[:, neuron], (moved / length).detach()) < 1e-10


def test_a_linearised_head_is_said():
    clip = view("ConvNeXt, MLP head")
    with pytest.warns(SecondLensWarning, match="head of ConvNeXt, MLP head is an MLP, and its"):
        sl.direct(clip, images_for(clip), 0)


@pytest.mark.parametrize("kind", CONVNEXTS)
def test_second_order_effects_are_refused_with_their_reason(kind):
    clip = view(kind)
    images = images_for(clip, 4)
    for refused in (
        lambda: sl.second_order(clip, images, 0),
        lambda: sl.fit(clip, images, "all", top=2),
        lambda: sl.fit(clip, images, [0], top=2),
    ):
        with pytest.raises(SecondLensError, match=f"{kind} has no second-order effects: it has no"):
            refused()


def test_indirect_effects_of_a_convnext_are_those_of_a_changed_stage():
    clip = view("ConvNeXt")
    images, visual = images_for(clip), clip.model.visual
    mean = torch.zeros(4, 64, dtype=torch.float64)
    found = sl.indirect(clip, images, 0, [5], mean)
    with torch.no_grad():
        maps = visual.trunk.stages(visual.trunk.stem(images))
        maps[:, 5] = 0
        after = visual.head(visual.trunk.forward_head(maps))
    before = clip.encode_image(images)
    assert error(found[:, 0], (before - after) / before.norm(dim=-1, keepdim=True)) < 1e-10


@pytest.mark.parametrize("kind", CONVNEXTS)
def test_every_check_of_a_convnext_passes(kind):
    assert all(check.passed for check in verify(view(kind, torch.float32)))
