"""Models of transformers: the weights of an open_clip model give the same view and effects."""

import copy
import json
import pickle
import sys

import pytest
import torch
from models import TEXT, tiny_model, tiny_tokenizer
from PIL import Image
from torch import nn
from transformers import (
    BatchEncoding,
    BeitConfig,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

import secondlens as sl
from secondlens.data.vocabularies import vocabulary
from secondlens.effects.capture import Capture
from secondlens.errors import SecondLensError, UnsupportedModel
from secondlens.models.checks import check_parity
from secondlens.models.loading import load
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.resizing import resized
from secondlens.models.transformers.views import from_transformers

VISION = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 12,
}
TEXTS = {
    "hidden_size": TEXT["width"],
    "intermediate_size": 4 * TEXT["width"],
    "num_hidden_layers": TEXT["layers"],
    "num_attention_heads": TEXT["heads"],
    "vocab_size": TEXT["vocab_size"],
    "max_position_embeddings": TEXT["context_length"],
    "eos_token_id": 63,
    "projection_dim": 12,
}


def blocks(ours, theirs):
    """Names of transformers (`theirs`) to the tensors of open_clip's blocks."""
    named = {}
    for j, block in enumerate(ours.resblocks):
        attention, at = block.attn, f"{theirs}.encoder.layers.{j}"
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            named[f"{at}.self_attn.{name}_proj.weight"] = weight
            named[f"{at}.self_attn.{name}_proj.bias"] = bias
        for name, module in {
            "self_attn.out_proj": attention.out_proj,
            "layer_norm1": block.ln_1,
            "layer_norm2": block.ln_2,
            "mlp.fc1": block.mlp.c_fc,
            "mlp.fc2": block.mlp.c_proj,
        }.items():
            named[f"{at}.{name}.weight"], named[f"{at}.{name}.bias"] = module.weight, module.bias
    return named


def converted(model, activation="gelu", attention="sdpa"):
    """A CLIPModel with the weights of a tiny open_clip model."""
    visual = model.visual
    state = {
        "logit_scale": model.logit_scale,
        "visual_projection.weight": visual.proj.T,
        "text_projection.weight": model.text_projection.T,
        "vision_model.embeddings.class_embedding": visual.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": visual.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": visual.positional_embedding,
        "text_model.embeddings.token_embedding.weight": model.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": model.positional_embedding,
        **blocks(visual.transformer, "vision_model"),
        **blocks(model.transformer, "text_model"),
    }
    for name, norm in {
        "vision_model.pre_layrnorm": visual.ln_pre,
        "vision_model.post_layernorm": visual.ln_post,
        "text_model.final_layer_norm": model.ln_final,
    }.items():
        state[f"{name}.weight"], state[f"{name}.bias"] = norm.weight, norm.bias
    config = CLIPConfig(
        vision_config=VISION | {"hidden_act": activation},
        text_config=TEXTS | {"hidden_act": activation},
        projection_dim=12,
        attn_implementation=attention,
    )
    twin = CLIPModel(config).to(visual.proj.dtype).eval()
    twin.load_state_dict(state)
    return twin


def tokenize(texts, **options):
    """`tiny_tokenizer`, called as tokenizers of transformers are."""
    assert options["max_length"] == TEXT["context_length"]
    tokens = tiny_tokenizer(texts)
    return BatchEncoding({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})


@pytest.fixture(params=["gelu", "quick_gelu"])
def pair(request):
    """The same float64 weights seen through open_clip and through transformers."""
    model = tiny_model(dtype=torch.float64, quick_gelu=request.param == "quick_gelu")
    ours = from_open_clip(model, tokenizer=tiny_tokenizer)
    return ours, from_transformers(converted(model, request.param), tokenizer=tokenize)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 3, 16, 16, generator=generator, dtype=torch.float64)


def close(found, expected, tolerance=1e-11):
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def test_the_view_is_that_of_open_clip(pair):
    ours, theirs = pair
    for size in ("layers", "heads", "neurons", "width", "dim", "tokens", "grid", "image_size"):
        assert getattr(theirs, size) == getattr(ours, size), size
    assert (theirs.activation, theirs.dtype) == (ours.activation, torch.float64)
    assert torch.equal(theirs.projection, ours.projection)
    for block, expected in zip(theirs.blocks, ours.blocks, strict=True):
        for name, weight in vars(expected).items():
            if isinstance(weight, torch.Tensor):
                assert torch.equal(getattr(block, name), weight), name
                assert not getattr(block, name).requires_grad
    storage = theirs.model.vision_model.encoder.layers[1].mlp.fc2.weight.untyped_storage()
    assert theirs.blocks[1].neuron_rows.untyped_storage().data_ptr() == storage.data_ptr()


@pytest.mark.parametrize("convention", ["exact", "official"])
def test_second_order_effects_are_those_of_open_clip(pair, images, convention):
    ours, theirs = pair
    assert close(theirs.encode_image(images), ours.encode_image(images))
    for layer in range(2):
        found, expected = (sl.second_order(each, images, layer, convention) for each in pair)
        assert close(found, expected)


def test_other_effects_are_those_of_open_clip(pair, images):
    mean = torch.ones(5, 48, dtype=torch.float64)
    assert close(*(sl.direct(each, images, 2) for each in pair))
    assert close(*(sl.indirect(each, images, 0, [3, 1], mean) for each in pair))


@pytest.mark.parametrize("size", [(32, 32), (32, 16), (16, 32)])
def test_larger_pictures_are_those_of_open_clip(pair, size):
    one, other = (resized(clip, *size) for clip in pair)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    images = images.to(one.dtype)
    # transformers interpolates in float32
    torch.testing.assert_close(
        other.encode_image(images), one.encode_image(images), rtol=1e-5, atol=1e-5
    )


def test_texts_are_those_of_open_clip(pair):
    texts = ["a dog", "a cat", "a ship at sea"]
    assert close(*(each.encode_text(texts) for each in pair))


def test_prompts_longer_than_the_context_are_counted(pair):
    words = vocabulary(["ship", "a ship at sea in the rain", "x" * 30])
    for clip in pair:
        with pytest.warns(UserWarning, match="2 of 3 prompts are longer than the context of"):
            words.embed(clip)


def test_a_fit_is_that_of_open_clip(pair, images):
    theirs, ours = (sl.fit(each, images, "all", top=2) for each in pair)
    for layer in range(2):
        assert torch.equal(theirs[layer].top_images, ours[layer].top_images)
        for name in ("mean", "directions", "explained", "top_norms", "activation_mean"):
            assert close(getattr(theirs[layer], name), getattr(ours[layer], name), 1e-9), name


def test_captured_activations_are_those_of_open_clip(pair, images):
    pooled = []
    for each in pair:
        with Capture(each, [0, 1], keep_activations=True) as capture:
            pooled.append(capture.pool(each.encode_image(images)))
    for layer in range(2):
        assert close(*(each.activations[layer] for each in pooled))


def test_the_model_is_left_untouched(images):
    model = converted(tiny_model(dtype=torch.float64))
    before = copy.deepcopy(model.state_dict())
    sl.second_order(from_transformers(model), images, 0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)]
)
def test_precisions_and_attention_implementations(dtype, tolerance, attention, images):
    exact = from_transformers(converted(tiny_model(dtype=torch.float64)))
    clip = from_transformers(converted(tiny_model(), attention=attention).to(dtype))
    assert (clip.dtype, clip.compute_dtype) == (dtype, torch.float32)
    assert check_parity(clip) < tolerance
    found, expected = (sl.second_order(each, images, 0) for each in (clip, exact))
    assert close(found, expected, tolerance)


@pytest.mark.parametrize(("attention", "tolerance"), [("sdpa", 1e-13), ("eager", 1e-6)])
def test_the_last_block_for_the_class_token_only(attention, tolerance, images):
    model = converted(tiny_model(dtype=torch.float64), attention=attention)
    clip = from_transformers(model)
    whole, counts = clip.encode_image(images), []
    last = clip.blocks[-1].mlp_end
    handle = last.register_forward_hook(lambda module, inputs, output: counts.append(output.shape))
    with clip.class_token_only():
        assert close(clip.encode_image(images), whole, tolerance)
    assert counts == [(7, 1, 24)]
    handle.remove()


def vision_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).eval()


def test_a_vision_model_embeds_images_only(images):
    model = vision_model()
    clip = from_transformers(model, name="eyes")
    with torch.no_grad():
        expected = model(images.float()).image_embeds
    assert torch.equal(clip.encode_image(images), expected)
    with pytest.raises(SecondLensError, match="eyes has no text tower, so it embeds images only"):
        clip.encode_text(["a dog"])


def test_texts_need_a_tokenizer():
    clip = from_transformers(converted(tiny_model()))
    with pytest.raises(SecondLensError, match="came without a tokenizer"):
        clip.encode_text(["a dog"])


class _Quantised(nn.Linear):
    pass


def changed(path, value):
    def make():
        model = vision_model()
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, value)
        return model.eval()

    return make


LAYER = "vision_model.encoder.layers.1"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)).eval(), "is a CLIPVisionModel, and"),
        (lambda: nn.Linear(2, 2).eval(), "is a Linear, and only"),
        (changed("visual_projection", nn.Identity()), "projection is a Identity"),
        (changed("vision_model.post_layernorm", nn.RMSNorm(24)), "post_layernorm"),
        (changed(LAYER, nn.Identity()), "block 1 is a Identity"),
        (changed(f"{LAYER}.self_attn", nn.Identity()), "block 1 has attention of class Identity"),
        (changed(f"{LAYER}.layer_norm1", nn.RMSNorm(24)), "block 1 has a layer_norm1"),
        (changed(f"{LAYER}.mlp.fc2", _Quantised(48, 24)), "block 1 has a _Quantised"),
    ],
)
def test_refusals(make, reason):
    with pytest.raises(UnsupportedModel, match=f"cannot be explained: .*{reason}"):
        from_transformers(make())


def test_a_bias_that_is_missing_is_zero():
    clip = from_transformers(
        changed(f"{LAYER}.self_attn.v_proj", nn.Linear(24, 24, bias=False))(), check=False
    )
    assert check_parity(clip) < 1e-5
    assert not clip.blocks[1].value_bias.any()


def test_what_no_rule_foresaw_is_refused_with_its_size():
    model = vision_model()
    model.vision_model.encoder.layers[1].mlp.fc2.register_forward_hook(lambda *a: 2 * a[2])
    with pytest.raises(UnsupportedModel, match=r"MLP output of block 1 .* by 5\.0e-01"):
        from_transformers(model)


def test_training_mode_is_left_to_the_owner():
    with pytest.raises(SecondLensError, match=r"model\.eval"):
        from_transformers(vision_model().train())


# -- by name ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved CLIPModel with image processor and tokenizer."""
    path = tmp_path_factory.mktemp("models") / "whole"
    converted(tiny_model(quick_gelu=True), "quick_gelu").save_pretrained(path)
    size = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size).save_pretrained(path)
    words = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    vocabulary = {word: i for i, word in enumerate(["<|startoftext|>", *words])}
    CLIPTokenizer(vocabulary | {"<|endoftext|>": 63}, merges=[]).save_pretrained(path)
    return path


def test_load_a_folder(folder):
    clip = load(f"hf:{folder}")
    assert (clip.name, clip.activation, clip.dtype) == (
        f"hf:{folder.name}",
        "quick_gelu",
        torch.float32,
    )
    assert clip.weights_hash == from_transformers(CLIPModel.from_pretrained(folder)).weights_hash
    picture = Image.new("L", (40, 30), 99)
    expected = (99 / 255 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    assert torch.allclose(clip.prepare([picture])[0, :, 8, 8], expected, atol=1e-5)
    assert torch.equal(
        pickle.loads(pickle.dumps(clip.preprocess))(picture), clip.preprocess(picture)
    )
    assert sl.fit(clip, [picture, Image.new("RGB", (16, 16))], [1], top=2)[1].mean.shape == (48, 12)


def test_texts_of_a_folder(folder):
    clip, texts = load(f"hf:{folder}"), ["ab", "a b c d e f g h i j k l"]
    ends = [
        [0, 1, 4, 63, 63, 63, 63, 63],
        [0, 2, 4, 6, 8, 10, 12, 63],
    ]
    model = from_open_clip(tiny_model(quick_gelu=True)).model
    with torch.no_grad():
        expected = model.encode_text(torch.tensor(ends), normalize=True)
    assert close(clip.encode_text(texts), expected, 1e-5)


@pytest.mark.parametrize("precision", ["bf16", "pure_fp16"])
def test_precision_of_a_folder(folder, precision):
    dtype = {"bf16": torch.bfloat16, "pure_fp16": torch.float16}[precision]
    assert load(f"hf:{folder}", precision=precision).dtype == dtype


def test_the_recorded_activation_can_be_stated_and_not_contradicted(folder):
    assert load(f"hf:{folder}", activation="quick_gelu").activation == "quick_gelu"
    with pytest.raises(UnsupportedModel, match=r"computes quick_gelu, .* gelu: .*2\.0e-02"):
        load(f"hf:{folder}", activation="gelu")


def test_a_folder_of_weights_alone(tmp_path):
    converted(tiny_model()).save_pretrained(tmp_path)
    clip = load(f"hf:{tmp_path}")
    with pytest.raises(SecondLensError, match="came without a tokenizer"):
        clip.encode_text(["a dog"])
    with pytest.raises(SecondLensError, match="came without preprocessing"):
        clip.prepare([Image.new("RGB", (16, 16))])


def test_a_folder_of_a_vision_model(tmp_path):
    vision_model().save_pretrained(tmp_path)
    clip = load(f"hf:{tmp_path}")
    assert torch.equal(clip.projection, from_transformers(vision_model()).projection)
    with pytest.raises(SecondLensError, match="embeds images only"):
        clip.encode_text(["a dog"])


def test_weights_are_never_made_up(tmp_path):
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path)
    with pytest.raises(SecondLensError, match=r"weights are missing, visual_projection\.weight"):
        load(f"hf:{tmp_path}")


def test_another_architecture_is_refused(tmp_path):
    sizes = {key: VISION[key] for key in ("hidden_size", "image_size", "patch_size")}
    config = BeitConfig(num_hidden_layers=1, num_attention_heads=3, **sizes)
    config.save_pretrained(tmp_path)  # which alone decides: there are no weights
    with pytest.raises(UnsupportedModel, match="is a beit model, and only"):
        load(f"hf:{tmp_path}")


def broken_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"nothing"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: broken_config(folder, model_type="telescope"),
        lambda folder: broken_config(folder, num_attention_heads=5),
        lambda folder: broken_config(folder, hidden_act="wavy"),
        lambda folder: broken_config(folder, projection_dim=13),
    ],
)
def test_a_damaged_folder_is_one_sentence(tmp_path, damage):
    vision_model().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(SecondLensError, match="transformers cannot load hf:") as caught:
        load(f"hf:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_transformers_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SecondLensError, match=r"pip install 'secondlens\[hf\]'"):
        load("hf:openai/clip-vit-base-patch32")
