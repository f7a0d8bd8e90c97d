"""The view of a model: what it reads, what it refuses, and how models are found."""

import hashlib

import open_clip
import pytest
import torch
from models import sequence_first, tiny_images, tiny_model, tiny_tokenizer
from PIL import Image
from torch import nn

from secondlens.effects.value_paths import second_order
from secondlens.errors import SecondLensError, UnsupportedModel
from secondlens.models.checks import (
    FUNCTIONS,
    activation_name,
    check_activation,
    check_parity,
    difference,
    trained_activation,
)
from secondlens.models.loading import load
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.recognition import PUBLISHED_HASH


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
    # no weight says so
    scaled.visual.transformer.resblocks[1].ls_1.register_forward_hook(lambda *seen: 2 * seen[-1])
    with pytest.raises(UnsupportedModel, match=r"attention output of block 1 .* by 5\.0e-01"):
        check_parity(view)


def test_parity_refuses_what_no_rule_foresaw():
    model = tiny_model()
    model.visual.transformer.resblocks[2].mlp.c_proj.register_forward_hook(lambda *a: a[2] + 1)
    with pytest.raises(UnsupportedModel, match="MLP output of block 2"):
        from_open_clip(model)
    assert from_open_clip(model, check=False).layers == 3


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    "name", ["visual.transformer.resblocks.2.mlp.c_fc.bias", "token_embedding.weight"]
)
def test_weights_that_are_not_finite_are_named(name, value):
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[-1] = value
    with pytest.raises(SecondLensError, match=f"NaN or infinity in {name}:"):
        from_open_clip(model)
    assert from_open_clip(model, check=False).layers == 3


def test_parity_refuses_nan():
    model = tiny_model()
    model.visual.ln_post.register_forward_hook(lambda *a: a[2] * torch.nan)
    with pytest.raises(UnsupportedModel, match=r"the embedding differs .* by inf"):
        from_open_clip(model)


GEOMETRY = {
    "ViT-B-32": (768, 50, 12, 64, 3072),
    "ViT-B-16": (768, 197, 12, 64, 3072),
    "ViT-L-14": (1024, 257, 16, 64, 4096),
    "ViT-L-14-336": (1024, 577, 16, 64, 4096),
    "ViT-H-14": (1280, 257, 16, 80, 5120),
    "ViT-bigG-14": (1664, 257, 16, 104, 8192),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_published_shapes(name):
    """Patches, heads and the MLP's ratio as published; two blocks, and heads of eight."""
    width, tokens, heads, head_width, neurons = GEOMETRY[name]
    vision = open_clip.get_model_config(name)["vision_cfg"]
    assert (vision["width"], vision.get("head_width", 64)) == (width, head_width)
    ratio = vision.get("mlp_ratio", 4.0)
    tiny = {"layers": 2, "width": heads * 8, "head_width": 8, "mlp_ratio": ratio}
    assert int(width * ratio) == neurons
    clip = from_open_clip(tiny_model(dim=20, **vision | tiny))
    assert (clip.tokens, clip.heads, clip.neurons) == (tokens, heads, int(heads * 8 * ratio))
    effects = second_order(clip, tiny_images(clip, count=1), 0)
    assert effects.shape == (1, clip.neurons, 20)
    assert effects.isfinite().all() and effects.abs().amax(dim=-1).min() > 0


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
        (lambda: tiny_model(norm_kwargs={"elementwise_affine": False}), "ln_post"),
        (lambda: nn.Linear(2, 2).eval(), "NoneType"),
        (changed(lambda tower: setattr(tower, "proj", None)), "projection"),
        (changed(lambda tower: set_in_block(tower, "ln_1", nn.Identity())), "block 1 .*ln_1"),
        (changed(lambda tower: set_in_block(tower, "ln_1_kv", nn.Identity())), "across sequences"),
        (changed(lambda tower: set_in_block(tower, "mlp.gelu", None)), "no activation"),
        (changed(lambda tower: set_in_block(tower, "attn.in_proj_bias", None)), "no joint query"),
        (changed(lambda tower: tower.transformer.resblocks.append(nn.ReLU())), "block 3 is a ReLU"),
        (changed(lambda tower: set_in_block(tower, "attn", nn.ReLU())), "attention of class ReLU"),
        (changed(lambda tower: set_in_block(tower, "ls_1", nn.ReLU())), "layers by a ReLU"),
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
    assert activation_name(nn.SiLU()) == "SiLU"
    assert activation_name(nn.PReLU()) == "PReLU"


def test_activations_are_the_published_formulas():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    normal_cdf = torch.distributions.Normal(0.0, 1.0).cdf(x)
    assert torch.allclose(FUNCTIONS["gelu"](x), x * normal_cdf, atol=1e-12)
    cubic = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    assert torch.allclose(FUNCTIONS["gelu_tanh"](x), x * (1 + cubic.tanh()) / 2, atol=1e-12)
    assert torch.allclose(FUNCTIONS["quick_gelu"](x), x / (1 + (-1.702 * x).exp()), atol=1e-12)
    assert difference(FUNCTIONS["gelu"], FUNCTIONS["quick_gelu"]) == pytest.approx(0.0203, abs=1e-4)


def test_one_block_with_another_activation_is_refused(clip):
    check_activation(clip, "gelu")
    with pytest.raises(UnsupportedModel, match=r"computes gelu, .* quick_gelu: .* up to 2\.0e-02"):
        check_activation(clip, "quick_gelu")
    model = tiny_model()
    model.visual.transformer.resblocks[2].mlp.gelu = nn.GELU("tanh").eval()
    with pytest.raises(UnsupportedModel, match=r"up to 4\.7e-04"):
        check_activation(from_open_clip(model), "gelu")


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


@pytest.mark.parametrize("text", ["", "a", "a ship " * 20])
def test_texts_of_any_length_embed_as_in_the_whole_context(clip, text):
    before = clip.model.positional_embedding, clip.model.attn_mask
    rows = clip.encode_text([text])
    with torch.no_grad():
        expected = clip.model.encode_text(tiny_tokenizer([text]), normalize=True)
    assert torch.allclose(rows, expected, atol=1e-6)
    assert clip.model.positional_embedding is before[0] and clip.model.attn_mask is before[1]


def test_encode_text(clip, monkeypatch):
    texts = ["a dog", "a cat", "a ship at sea"]
    rows = clip.encode_text(texts)
    with torch.no_grad():
        expected = clip.model.encode_text(tiny_tokenizer(texts), normalize=True)
    assert torch.allclose(rows, expected, atol=1e-6)
    monkeypatch.setattr("secondlens.models.view.TEXTS_PER_BATCH", 2)
    assert torch.allclose(clip.encode_text(texts), rows, atol=1e-6)
    assert clip.encode_text([]).shape == (0, 12)
    with pytest.raises(SecondLensError, match="tokenizer="):
        from_open_clip(clip.model).encode_text(texts)
    with pytest.raises(SecondLensError, match=r"must be a list \(each a text\)"):
        clip.encode_text("a dog")


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
    ("name", "pretrained", "function"),
    [
        ("ViT-B-32", "openai", "quick_gelu"),
        ("ViT-B/32", "openai", "quick_gelu"),
        ("ViT-L-14-336-quickgelu", "openai", "quick_gelu"),
        ("ViT-B-32", "laion2b_s34b_b79k", "gelu"),
        ("ViT-B-32", None, None),
        ("ViT-B-32-quickgelu", None, "quick_gelu"),
        ("hf-hub:someone/something", None, None),
        ("demo", None, None),
    ],
)
def test_recorded_activations(name, pretrained, function):
    assert trained_activation(name, pretrained) == function


def test_every_tag_has_one_activation():
    """Towers of timm have theirs from the configuration that builds them."""
    for name, tag in open_clip.list_pretrained():
        function = trained_activation(name, tag)
        if "timm_model_name" in open_clip.get_model_config(name)["vision_cfg"]:
            assert function is None
        else:
            known = ("quick_gelu",) if tag == "openai" else ("gelu", "quick_gelu")
            assert function in known


def test_published_checkpoints_are_known_by_their_hash(tmp_path, monkeypatch):
    for name, tag in open_clip.list_pretrained():
        url = open_clip.get_pretrained_cfg(name, tag).get("url", "")
        if "openaipublic" in url or "mlfoundations" in url:
            assert PUBLISHED_HASH.search(url), url
    path = tmp_path / "renamed.pt"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    table = open_clip.pretrained._PRETRAINED["ViT-B-16"]
    for address in (f"https://x/{digest}/ViT.pt", f"https://x/vit_b_16-quickgelu-{digest[:8]}.pt"):
        monkeypatch.setitem(table, "new", {"url": address, "quick_gelu": True})
        assert trained_activation("ViT-B-16", str(path)) == "quick_gelu"
        with pytest.raises(
            SecondLensError, match=r"activation says gelu and open_clip's record of"
        ):
            trained_activation("ViT-B-16", str(path), "gelu")
    monkeypatch.setitem(table, "new", {"url": f"https://x/{digest}/ViT.pt"})
    assert trained_activation("ViT-B-16", str(path)) == "gelu"
    with pytest.raises(SecondLensError, match=r"record of .* says gelu and the name .* quick"):
        trained_activation("ViT-B-16-quickgelu", str(path))


def test_an_unknown_checkpoint_must_state_its_activation(tmp_path):
    path = tmp_path / "mine.pt"
    path.write_bytes(b"unknown")
    with pytest.raises(SecondLensError, match=r"mine\.pt does not say which activation"):
        trained_activation("ViT-B-32", str(path))
    assert trained_activation("ViT-B-32", str(path), check=False) is None
    assert trained_activation("ViT-B-32", str(path), "quick_gelu") == "quick_gelu"
    assert trained_activation("ViT-B-32-quickgelu", str(path)) == "quick_gelu"
    with pytest.raises(SecondLensError, match=r"differ by up to 2\.0e-02"):
        trained_activation("ViT-B-32-quickgelu", str(path), "gelu")
    assert trained_activation("ViT-B-32-quickgelu", str(path), "gelu", check=False) == "gelu"


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
    clip = load(tiny_name, pretrained=str(path), activation="gelu")
    images = tiny_images(clip)
    assert torch.equal(clip.encode_image(images), model.visual(images))
    assert clip.encode_text(["a dog"]).shape == (1, 12)
    assert clip.encode_image([Image.new("RGB", (40, 40))]).shape == (1, 12)
    half = load(tiny_name, str(path), precision="bf16", activation="gelu")
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("function", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("named", [False, True])
def test_load_builds_the_activation_it_is_told(tiny_name, tiny_config, function, named):
    config, _, path = tiny_config
    config["quick_gelu"] = named
    if named and function == "gelu":
        with pytest.raises(SecondLensError, match="the name ViT-tiny-test says quick_gelu"):
            load(tiny_name, str(path), activation=function)
        clip = load(tiny_name, str(path), activation=function, check=False)
    else:
        clip = load(tiny_name, str(path), activation=function)
    assert clip.activation == function
    text = clip.model.transformer.resblocks[0].mlp.gelu
    assert activation_name(text) == function


def test_a_model_that_records_its_activation_is_not_overruled():
    assert load("demo", activation="gelu").activation == "gelu"
    with pytest.raises(UnsupportedModel, match=r"demo computes gelu.* up to 2\.0e-02"):
        load("demo", activation="quick_gelu")


def test_random_weights_are_announced(tiny_name):
    with pytest.warns(UserWarning, match="random weights"):
        load(tiny_name)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("broken.pt", {"something": torch.zeros(1)}),
        ("broken.pt", {}),
        ("broken.pt", [1, 2]),
        ("broken.pt", b"no checkpoint"),
        ("broken.pt", b""),
        ("broken.safetensors", b"no checkpoint"),
        ("broken.npz", b"no checkpoint"),
    ],
)
def test_a_broken_checkpoint_is_one_sentence(tiny_name, tmp_path, file, content):
    path = tmp_path / file
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(SecondLensError, match="open_clip cannot load ViT-tiny-test") as caught:
        load(tiny_name, pretrained=str(path), activation="gelu")
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("VIT-b-23",), r"did you mean .*ViT-B-32"),
        (("xyzzy",), "no model is called 'xyzzy'$"),
        (("ViT-B-32", "opnai"), "did you mean openai"),
        (("ViT-B-32", "/nowhere/x.pt"), "no file has that path"),
        (("ViT-B-32", "openai", "cpu", "fp8"), "no precision 'fp8'"),
        (("ViT-B-32", "openai", "cpu", "fp32", "relu"), "no activation 'relu'"),
        (("demo", "openai"), "its own fp32 weights"),
        (("hf:openai/clip", "openai"), "names its own weights"),
        (("demo", None, "gpu"), "torch knows no device 'gpu'"),
        (("demo", None, "xpu"), "no device 'xpu' here"),
        (("hf-hub:",), "open_clip cannot load"),
        (("local-dir:/nowhere",), "open_clip cannot load"),
    ],
)
def test_names_that_do_not_exist(arguments, message):
    with pytest.raises(SecondLensError, match=message):
        load(*arguments)
