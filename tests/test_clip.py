"""The view of a model: what it reads, what it refuses, and how models are found."""

import hashlib

import open_clip
import pytest
import torch
from models import sequence_first, tiny_images, tiny_model, tiny_tokenizer
from PIL import Image
from torch import nn

from secondlens import clip as clips
from secondlens.clip import check_parity, from_open_clip, load, needs_quick_gelu
from secondlens.errors import SecondLensError, UnsupportedModel


def preprocess(image):
    return torch.tensor(list(image.convert("RGB").resize((16, 16)).tobytes())).reshape(
        3, 16, 16
    ) / torch.tensor(255.0)


@pytest.fixture
def clip():
    return from_open_clip(tiny_model(), preprocess, tiny_tokenizer, name="tiny")


def test_sizes(clip):
    assert (clip.layers, clip.heads, clip.neurons, clip.width, clip.dim) == (3, 3, 48, 24, 12)
    assert (clip.image_size, clip.grid, clip.tokens) == ((16, 16), (2, 2), 5)
    assert (clip.device.type, clip.dtype, clip.compute_dtype) == ("cpu",) + 2 * (torch.float32,)
    assert repr(clip) == "Clip('tiny', 3 layers, 3 heads, 48 neurons)"


def test_an_image_need_not_be_square():
    clip = from_open_clip(tiny_model(image_size=(16, 24)))
    assert (clip.image_size, clip.grid, clip.tokens) == ((16, 24), (2, 3), 7)


def test_weights_are_views_of_the_model(clip):
    block, module = clip.blocks[1], clip.model.visual.transformer.resblocks[1]
    views = {
        "query": module.attn.in_proj_weight,
        "key_bias": module.attn.in_proj_bias,
        "output": module.attn.out_proj.weight,
        "neuron_rows": module.mlp.c_proj.weight,
        "mlp_bias": module.mlp.c_proj.bias,
        "gain": module.ln_1.weight,
    }
    for name, weight in views.items():
        view = getattr(block, name)
        assert view.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr(), name
        assert not view.requires_grad


@pytest.mark.parametrize(
    "vision",
    [
        {},
        {"quick_gelu": True},
        {"ls_init_value": 0.1},
        {"final_ln_after_pool": True, "no_ln_pre": True},
        {"block_type": "custom"},
        {"output_tokens": True},
        {"patch_dropout": 0.5},
        {"pos_embed_type": "sin_cos_2d"},
    ],
    ids=str,
)
def test_parity_of_covered_variants(vision):
    exact = from_open_clip(tiny_model(dtype=torch.float64, **vision))
    assert check_parity(exact) < 1e-13
    assert check_parity(from_open_clip(tiny_model(**vision))) < 1e-5


def test_parity_of_sequence_first_blocks():
    clip = from_open_clip(sequence_first(tiny_model(dtype=torch.float64)))
    assert not clip.batch_first
    assert check_parity(clip) < 1e-13
    images = tiny_images(clip)
    assert torch.allclose(clip.encode_image(images), tiny_model(dtype=torch.float64).visual(images))


def test_parity_tells_the_size_of_the_error(clip):
    with torch.no_grad():
        clip.model.visual.transformer.resblocks[1].attn.out_proj.weight.mul_(2)  # seen by the view
    check_parity(clip)
    scaled = tiny_model(ls_init_value=0.1)
    view = from_open_clip(scaled)
    with torch.no_grad():
        scaled.visual.transformer.resblocks[1].ls_1.gamma.mul_(2)  # folded before, so not seen
    with pytest.raises(UnsupportedModel, match=r"attention output of block 1 .* by 5\.0e-01"):
        check_parity(view)


def test_parity_refuses_what_no_rule_foresaw():
    model = tiny_model()
    model.visual.transformer.resblocks[2].mlp.c_proj.register_forward_hook(lambda *a: a[2] + 1)
    with pytest.raises(UnsupportedModel, match="MLP output of block 2"):
        from_open_clip(model)
    assert from_open_clip(model, check=False).layers == 3


def test_parity_refuses_nan():
    model = tiny_model()
    with torch.no_grad():
        model.visual.ln_post.bias[0] = torch.nan
    with pytest.raises(UnsupportedModel, match="the embedding differs"):
        from_open_clip(model)


def set_in_block(tower, path, value):
    module, _, name = f"transformer.resblocks.1.{path}".rpartition(".")
    setattr(tower.get_submodule(module), name, value)


def custom(**vision):
    return lambda: tiny_model(block_type="custom", **vision)


def changed(change):
    def make():
        model = tiny_model()
        change(model.visual)
        return model.eval()

    return make


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (custom(qk_norm=True), "qk_norm"),
        (custom(scaled_cosine_attn=True), "scaled cosine"),
        (custom(scale_heads=True), "scale_heads"),
        (custom(scale_attn_inner=True), "inside attention"),
        (custom(scale_attn=True), "after attention"),
        (custom(scale_fc=True), "inside the MLP"),
        (lambda: tiny_model(attentional_pool=True, attn_pooler_heads=2), "pools by attention"),
        (lambda: tiny_model(pool_type="avg"), "'avg'"),
        (lambda: tiny_model(layers=(1, 1, 1, 1), image_size=32), "ModifiedResNet"),
        (lambda: tiny_model(norm_kwargs={"elementwise_affine": False}), "ln_post"),
        (lambda: nn.Linear(2, 2).eval(), "NoneType"),
        (changed(lambda tower: setattr(tower, "proj", None)), "projection"),
        (changed(lambda tower: set_in_block(tower, "ln_1", nn.Identity())), "block 1 .*ln_1"),
        (changed(lambda tower: set_in_block(tower, "ln_1_kv", nn.Identity())), "across sequences"),
        (changed(lambda tower: set_in_block(tower, "mlp.gelu", None)), "no activation"),
        (changed(lambda tower: set_in_block(tower, "attn.in_proj_bias", None)), "no joint query"),
        (changed(lambda tower: tower.transformer.resblocks.append(nn.ReLU())), "block 3 is a ReLU"),
    ],
)
def test_refusals(make, reason):
    with pytest.raises(UnsupportedModel, match=f"cannot be explained: .*{reason}"):
        from_open_clip(make())


def test_training_mode_is_left_to_the_owner(clip):
    with pytest.raises(SecondLensError, match=r"model\.eval"):
        from_open_clip(tiny_model().train())
    clip.model.visual.transformer.train()
    with pytest.raises(SecondLensError, match=r"model\.eval"):
        clip.encode_image(tiny_images(clip))
    with pytest.raises(SecondLensError, match=r"model\.eval"):
        clip.encode_text(["a dog"])
    assert clip.model.visual.transformer.training


def test_activation_names():
    assert from_open_clip(tiny_model()).activation == "gelu"
    assert from_open_clip(tiny_model(quick_gelu=True)).activation == "quick_gelu"
    tanh = tiny_model(act_kwargs={"approximate": "tanh"})
    assert from_open_clip(tanh).activation == "gelu_tanh"
    model = tiny_model()
    for block in model.visual.transformer.resblocks:
        block.mlp.gelu = nn.SiLU().eval()
    assert from_open_clip(model).activation == "SiLU"


def test_encode_image_is_the_model(clip):
    images = tiny_images(clip)
    assert torch.equal(clip.encode_image(images), clip.model.encode_image(images))
    assert not clip.encode_image(images).requires_grad
    for nothing in (images[:0], []):
        with pytest.raises(SecondLensError, match="no images"):
            clip.encode_image(nothing)


def test_pictures_are_preprocessed(clip):
    pictures = [Image.new("RGB", (20, 30), colour) for colour in ("red", "blue")]
    prepared = clip.prepare(pictures)
    assert torch.equal(prepared[1], preprocess(pictures[1]))
    assert torch.equal(clip.encode_image(pictures), clip.encode_image(prepared))
    with pytest.raises(SecondLensError, match="preprocess="):
        from_open_clip(clip.model).prepare(pictures)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 16, 20),
        torch.zeros(3, 16, 16),
        torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
    ],
)
def test_images_of_another_shape_are_refused(clip, images):
    with pytest.raises(SecondLensError, match=r"takes preprocessed float images \[images, 3, 16"):
        clip.prepare(images)


def test_encode_text(clip, monkeypatch):
    texts = ["a dog", "a cat", "a ship at sea"]
    rows = clip.encode_text(texts)
    with torch.no_grad():
        expected = clip.model.encode_text(tiny_tokenizer(texts), normalize=True)
    assert torch.allclose(rows, expected, atol=1e-6)
    monkeypatch.setattr("secondlens.view.TEXTS_PER_BATCH", 2)
    assert torch.allclose(clip.encode_text(texts), rows, atol=1e-6)
    assert clip.encode_text([]).shape == (0, 12)
    with pytest.raises(SecondLensError, match="tokenizer="):
        from_open_clip(clip.model).encode_text(texts)


def test_layers_without_effects(clip):
    assert clip.check_layer(1) == clip.last_effect_layer == 1
    assert clip.check_layer(2, last=True) == 2
    with pytest.raises(SecondLensError, match="no later attention layer reads it"):
        clip.check_layer(2)
    for layer in (-1, 3, 100):
        with pytest.raises(SecondLensError, match=f"no layer {layer}: choose one of 0 to 1"):
            clip.check_layer(layer)
    single = from_open_clip(tiny_model(layers=1))
    with pytest.raises(SecondLensError, match="is the last of"):
        single.check_layer(0)


def test_weights_hash(clip):
    def digest(model):
        return from_open_clip(model).weights_hash

    assert clip.weights_hash == digest(tiny_model()) != digest(tiny_model(seed=1))
    assert digest(tiny_model(dtype=torch.float64)) != clip.weights_hash
    assert len(clip.weights_hash) == len(hashlib.sha256().hexdigest())
    text_only = tiny_model()
    with torch.no_grad():
        text_only.token_embedding.weight[0, 0] += 1
    assert digest(text_only) != clip.weights_hash


def test_low_precision_is_what_open_clip_makes_of_it():
    model = tiny_model()
    open_clip.convert_weights_to_lp(model, torch.bfloat16)
    clip = from_open_clip(model)
    assert (clip.dtype, clip.compute_dtype) == (torch.bfloat16, torch.float32)
    assert clip.encode_image(torch.zeros(1, 3, 16, 16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "pretrained", "quick"),
    [
        ("ViT-B-32", "openai", True),
        ("ViT-B/32", "openai", True),
        ("ViT-L-14-336", "openai", True),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("ViT-B-32", "weights.pt", False),
        ("ViT-B-32", None, False),
        ("hf-hub:someone/something", "openai", False),
    ],
)
def test_quick_gelu_goes_with_the_weights(name, pretrained, quick):
    assert needs_quick_gelu(name, pretrained) is quick


def test_every_openai_tag_gets_quick_gelu():
    for name, tag in open_clip.list_pretrained():
        assert tag != "openai" or needs_quick_gelu(name, tag)


@pytest.fixture
def tiny_config(tmp_path):
    """A tiny architecture that open_clip knows by name, and a checkpoint of it."""
    config = {
        "embed_dim": 12,
        "vision_cfg": {
            "image_size": 16,
            "patch_size": 8,
            "width": 24,
            "head_width": 8,
            "layers": 3,
            "mlp_ratio": 2.0,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    model = open_clip.CLIP(**config)
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    return config, model.eval(), path


@pytest.fixture
def tiny_name(tiny_config, monkeypatch):
    from open_clip import factory

    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-tiny-test", tiny_config[0])
    return "ViT-tiny-test"


def test_load_a_checkpoint(tiny_name, tiny_config):
    _, model, path = tiny_config
    clip = load(tiny_name, pretrained=str(path))
    images = tiny_images(clip)
    assert torch.equal(clip.encode_image(images), model.visual(images))
    assert clip.encode_text(["a dog"]).shape == (1, 12)
    assert clip.encode_image([Image.new("RGB", (40, 40))]).shape == (1, 12)
    assert load(tiny_name, str(path), precision="bf16").dtype == torch.bfloat16


def test_load_tells_open_clip_about_quick_gelu(tiny_name, tiny_config, monkeypatch):
    monkeypatch.setattr(clips, "needs_quick_gelu", lambda name, pretrained: True)
    assert load(tiny_name, pretrained=str(tiny_config[2])).activation == "quick_gelu"


def test_random_weights_are_announced(tiny_name):
    with pytest.warns(UserWarning, match="random weights"):
        load(tiny_name)


def test_a_broken_checkpoint_is_one_sentence(tiny_name, tmp_path):
    path = tmp_path / "broken.pt"
    torch.save({"something": torch.zeros(1)}, path)
    with pytest.raises(SecondLensError, match="open_clip cannot load ViT-tiny-test") as caught:
        load(tiny_name, pretrained=str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("VIT-b-23",), r"did you mean .*ViT-B-32"),
        (("xyzzy",), "no model is called 'xyzzy'$"),
        (("ViT-B-32", "opnai"), "did you mean openai"),
        (("ViT-B-32", "/nowhere/x.pt"), "no file has that path"),
        (("ViT-B-32", "openai", "cpu", "fp8"), "no precision 'fp8'"),
        (("demo", "openai"), "its own fp32 weights"),
        (("hf-hub:",), "open_clip cannot load"),
        (("local-dir:/nowhere",), "open_clip cannot load"),
    ],
)
def test_names_that_do_not_exist(arguments, message):
    with pytest.raises(SecondLensError, match=message):
        load(*arguments)


def test_transformers_models_are_not_read_yet():
    with pytest.raises(UnsupportedModel, match="open_clip"):
        load("hf:openai/clip-vit-base-patch32")
