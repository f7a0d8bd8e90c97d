"""Models as people have them: wrapped, compiled, moved, converted, retrained, in autocast."""

import warnings

import explored
import fake
import pytest
import torch
from explored import Pictures, tiny_clip
from models import tiny_images, tiny_model
from torch import nn

import secondlens as sl
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.transformers.views import from_transformers

LAYER = 1


def effects(clip):
    images = torch.randn(2, 3, *clip.image_size, generator=torch.Generator().manual_seed(1))
    return sl.second_order(clip, images, LAYER)


def wrapped(model):
    return from_open_clip(model, explored.preprocess, explored.tokenizer, name="tiny")


def compiled_in_place(model):
    model.visual.compile(backend="eager")
    model.visual(torch.zeros(1, 3, *model.visual.image_size))  # compiled before there are hooks
    return model


def compiled_tower(model):
    model.visual = torch.compile(model.visual, backend="eager")
    return model


FORMS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled in place": compiled_in_place,
    "compiled tower": compiled_tower,
    "DataParallel": nn.DataParallel,
    "DataParallel in training mode": lambda model: nn.DataParallel(model).train(False),
    "compiled DataParallel": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore")
def test_wrappers_are_looked_through(form):
    plain = tiny_clip()
    clip = wrapped(FORMS[form](tiny_clip().model))
    assert torch.equal(effects(clip), effects(plain))
    assert clip.weights_hash == plain.weights_hash


def same(one, other):
    assert torch.equal(one.mean, other.mean) and torch.equal(one.directions, other.directions)


def test_autocast_around_a_fit_changes_nothing():
    pictures = Pictures(12)
    expected = sl.fit(tiny_clip(), pictures, [LAYER], top=3)
    with torch.autocast("cpu", torch.bfloat16):
        found = sl.fit(tiny_clip(), pictures, [LAYER], top=3)
        codes = sl.describe(tiny_clip(), found, explored.WORDS, 4)
        assert torch.equal(effects(tiny_clip()), effects(tiny_clip()))
    same(found[LAYER], expected[LAYER])
    expected_codes = sl.describe(tiny_clip(), expected, explored.WORDS, 4)
    assert torch.equal(codes.coefficients[LAYER], expected_codes.coefficients[LAYER])


@pytest.fixture
def elsewhere():
    """A default device that is not where the model is."""
    torch.set_default_device("fake:0")
    yield
    torch.set_default_device(None)


def test_another_default_device_changes_nothing(elsewhere):
    with torch.device("cpu"):
        clip = tiny_clip()
        images = torch.randn(2, 3, *clip.image_size)
        on_cpu = effects(tiny_clip())
    assert str(torch.zeros(1).device) == "fake:0"
    assert wrapped(clip.model).device.type == "cpu"
    lens = sl.fit(clip, Pictures(12), [LAYER], top=3)
    codes = sl.describe(clip, lens, explored.WORDS, 4)
    assert lens[LAYER].mean.device.type == codes.cosine[LAYER].device.type == "cpu"
    assert sl.second_order(clip, images, LAYER).device.type == "cpu"
    assert sl.discover(clip, lens, Pictures(12).load(0), top=3)
    clip.model.to("fake:1")
    found = sl.second_order(clip, images, LAYER)
    assert str(found.device) == "fake:1" and found.shape == on_cpu.shape


@pytest.mark.parametrize("scaled", [{}, {"ls_init_value": 0.1}])
def test_a_view_follows_its_model(scaled):
    # another checkpoint, another precision and another device, all after it was wrapped
    model, other = tiny_model(**scaled), tiny_model(seed=1, **scaled)
    clip = from_open_clip(model)
    before, images = clip.weights_hash, tiny_images(model)
    model.load_state_dict(other.state_dict())
    assert clip.weights_hash == from_open_clip(other).weights_hash != before
    expected = sl.second_order(from_open_clip(other), images, 0)
    assert torch.equal(sl.second_order(clip, images, 0), expected)
    half = from_open_clip(tiny_model(seed=1, dtype=torch.float16, **scaled))
    model.half()
    assert clip.dtype == torch.float16 and clip.weights_hash == half.weights_hash
    assert torch.equal(sl.second_order(clip, images, 0), sl.second_order(half, images, 0))
    model.float().to("fake:1")
    assert str(clip.device) == "fake:1" == str(sl.second_order(clip, images, 0).device)


def test_a_lens_knows_that_its_model_has_other_weights():
    clip = tiny_clip()
    lens = sl.fit(clip, Pictures(12), [LAYER], top=3)
    clip.model.load_state_dict(tiny_clip(seed=1).model.state_dict())
    with pytest.raises(sl.SecondLensError, match="with other weights than"):
        sl.describe(clip, lens, explored.WORDS, 4)


def hugging_face():
    from transformers import CLIPConfig, CLIPModel

    vision = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3}
    vision |= {"num_attention_heads": 3, "image_size": 16, "patch_size": 8, "projection_dim": 12}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": 64, "max_position_embeddings": 8}
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=12)
    return CLIPModel(config).eval()


def test_transformers_on_a_device_and_in_wrappers():
    model = hugging_face()
    clip = from_transformers(model)
    expected = effects(clip)
    assert torch.equal(effects(from_transformers(nn.DataParallel(model))), expected)
    model.to(fake.place("fake:1"))
    found = effects(clip)
    assert str(found.device) == "fake:1"
    assert (found.cpu() - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_quantised_layers_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(hugging_face(), {nn.Linear}).eval()
        with pytest.raises(sl.UnsupportedModel, match=r"are quantised, .* load it in fp32"):
            from_transformers(model)


def test_adapters_are_refused_with_the_way_out():
    class Linear(nn.Linear):
        """Named as PEFT's is: it is not installed for the tests."""

    Linear.__module__ = "peft.tuners.lora.layer"
    model = hugging_face()
    model.vision_model.encoder.layers[1].self_attn.q_proj = Linear(24, 24).eval()
    with pytest.raises(sl.UnsupportedModel, match=r"PEFT in .*q_proj.*merge_and_unload\(\)"):
        from_transformers(model)


def test_an_image_of_nan_is_left_out():
    images = torch.randn(8, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    images[5] = float("nan")
    lens = sl.fit(tiny_clip(), images, [LAYER], top=2)
    assert len(lens.image_ids) == 7 and list(lens.skipped) == ["5"]
