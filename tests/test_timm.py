"""Views of timm's towers: parity, effects by definition, other sizes, names and refusals."""

import copy
import json

import fake
import pytest
import timm
import torch
from models import randomise, tiny_tokenizer
from open_clip import image_transform
from safetensors.torch import save_file
from timm_towers import TOWERS, Held, small_clip, small_tower, some_images
from torch import nn

import secondlens as sl
from secondlens.models.checks import parity_errors
from secondlens.models.readers import AttentionPool, ClassToken, MeanOfPatches
from secondlens.models.timm.views import from_timm
from secondlens.verify import verify

PARITY = 1e-5
"""In float32."""
SUMS = 1e-9
"""In float64, of the largest."""


def close(found, expected, tolerance=SUMS):
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("kind", TOWERS)
def test_parity(kind):
    assert max(parity_errors(from_timm(small_tower(kind, torch.float32))).values()) <= PARITY


@pytest.mark.parametrize("kind", TOWERS)
def test_neurons_add_up_to_the_path(kind):
    tower = small_tower(kind)
    clip, images = from_timm(tower), some_images(tower)
    held = Held(tower, images)
    assert close(clip.encode_image(images), held.representation, 1e-12)
    for layer in range(clip.last_effect_layer + 1):
        effects = sl.second_order(clip, images, layer)
        assert close(effects.sum(1), held.second_order(layer, held.write(layer)))
        some = [0, clip.neurons // 2, clip.neurons - 1]
        for neuron in some:
            write = held.write(layer, slice(neuron, neuron + 1))
            assert close(effects[:, neuron], held.second_order(layer, write))
    for layer in range(clip.layers):
        expected = held.direct(layer, held.write(layer))
        assert close(sl.direct(clip, images, layer).sum(1), expected)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_direct_effects_are_derivatives_where_no_norm_follows(pool):
    tower = small_tower("no last norm")
    tower.global_pool = pool
    clip, images = from_timm(tower), some_images(tower)
    last = tower.blocks[-1].mlp.fc2

    def moved(step):
        def move(module, inputs):
            activations = inputs[0].clone()
            activations[:, :, 5] *= 1 + step
            return (activations,)

        handle = last.register_forward_pre_hook(move)
        representation = clip.encode_image(images)
        handle.remove()
        return representation

    length = clip.encode_image(images).norm(dim=-1, keepdim=True)
    expected = (moved(0.5) - moved(-0.5)) / length
    assert close(sl.direct(clip, images, clip.layers - 1)[:, 5], expected)


@pytest.mark.parametrize(
    ("kind", "reader", "last"),
    [
        ("class token", ClassToken, 1),
        ("average", MeanOfPatches, 1),
        ("SigLIP", AttentionPool, 2),
        ("Perception Encoder", AttentionPool, 2),
    ],
)
def test_what_reads_the_tokens(kind, reader, last):
    clip = from_timm(small_tower(kind))
    assert isinstance(clip.reader, reader)
    assert clip.last_effect_layer == last
    assert clip.tokens == clip.prefix + 16


@pytest.mark.parametrize("kind", ["SigLIP", "average", "EVA-02", "DINOv3"])
def test_every_precision(kind):
    checks = list(verify(from_timm(small_tower(kind, torch.float32))))
    assert [check for check in checks if not check.passed] == []


@pytest.mark.parametrize(
    "kind", ["SigLIP", "average", "EVA-02", "DINOv3", "mixed rotary", "ViTamin"]
)
def test_an_accelerator_agrees_with_the_cpu(kind):
    tower = small_tower(kind, torch.float32)
    images = some_images(tower, 2)
    clip = from_timm(tower)
    expected, straight = sl.second_order(clip, images, 0), sl.direct(clip, images, 1)
    there = from_timm(copy.deepcopy(tower).to(f"fake:{fake.COUNT - 1}"))
    found = sl.second_order(there, images, 0)
    assert found.device == there.device == torch.device("fake", fake.COUNT - 1)
    assert torch.allclose(found.cpu(), expected, atol=1e-5)
    assert torch.allclose(sl.direct(there, images, 1).cpu(), straight, atol=1e-5)


@pytest.mark.parametrize("kind", ["CLIP", "SigLIP", "EVA-02", "DINOv3", "mixed rotary", "average"])
def test_larger_pictures_are_those_of_timm(kind):
    tower = small_tower(kind)
    larger = copy.deepcopy(tower)
    larger.set_input_size(img_size=(40, 64))
    images = torch.randn(
        2, 3, 40, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    before = copy.deepcopy(tower.state_dict())
    clip, expected = sl.resized(from_timm(tower), 40, 64), from_timm(larger)
    assert clip.grid == expected.grid == (5, 8)
    assert close(clip.encode_image(images), expected.encode_image(images), 1e-12)
    assert close(sl.second_order(clip, images, 0), sl.second_order(expected, images, 0), 1e-12)
    assert all(torch.equal(before[key], value) for key, value in tower.state_dict().items())
    assert tuple(tower.patch_embed.img_size) == (32, 32)


@pytest.mark.parametrize("kind", ["class token", "norms everywhere", "EVA-02", "DINOv2"])
def test_the_last_block_for_the_class_token_only(kind):
    tower = small_tower(kind)
    clip, images = from_timm(tower), some_images(tower)
    expected = clip.encode_image(images)
    with clip.class_token_only():
        assert close(clip.encode_image(images), expected, 1e-12)
    assert torch.equal(clip.encode_image(images), expected)


@pytest.mark.parametrize("kind", ["SigLIP", "average", "EVA-02", "ViTamin"])
def test_ablated_runs_are_those_of_the_network(kind):
    tower = small_tower(kind)
    clip, images = from_timm(tower), some_images(tower)
    block = tower.blocks[1].mlp
    last, layer, neuron = block.w2 if hasattr(block, "w2") else block.fc2, 1, 3

    def hold(module, inputs):
        activations = inputs[0].clone()
        activations[:, :, neuron] = 0.25
        return (activations,)

    handle = last.register_forward_pre_hook(hold)
    ablated = clip.encode_image(images)
    handle.remove()
    original = clip.encode_image(images)
    mean = torch.full((clip.tokens, clip.neurons), 0.25, dtype=torch.float64)
    found = sl.indirect(clip, images, layer, [neuron], mean)[:, 0]
    assert close(found, (original - ablated) / original.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("kind", ["SigLIP", "average", "EVA-02"])
def test_inside_open_clip(kind):
    model = small_clip(kind)
    clip = sl.from_open_clip(model, tokenizer=tiny_tokenizer)
    alone = from_timm(model.visual.trunk)
    images = some_images(model.visual.trunk)
    assert torch.equal(clip.encode_image(images), model.encode_image(images))
    assert torch.equal(sl.second_order(clip, images, 0), sl.second_order(alone, images, 0))
    texts = ["a dog", "a ship"]
    expected = nn.functional.normalize(model.encode_text(tiny_tokenizer(texts)), dim=-1)
    assert torch.allclose(clip.encode_text(texts), expected)


def test_a_configuration_for_other_pictures_than_its_tower_takes():
    model = small_clip("average")  # 32 pixels
    model.visual.image_size = (48, 48)
    preprocess = image_transform((48, 48), is_train=False)
    with pytest.warns(sl.SecondLensWarning, match="of 48 x 48 pixels, and its tower takes 32 x 32"):
        clip = sl.from_open_clip(model, preprocess)
    picture = _picture()
    assert clip.prepare([picture]).shape == (1, 3, 32, 32)
    assert torch.allclose(clip.preprocess(picture)[:, 0, 0], preprocess(picture)[:, 0, 0])


def test_the_projection_of_open_clip():
    model = small_clip("average")
    trunk = model.visual.trunk
    trunk.reset_classifier(0)
    model.visual.head = nn.Sequential(nn.Dropout(0.0), nn.Linear(32, 12, bias=False))
    clip = sl.from_open_clip(model.eval())
    assert clip.dim == 12
    assert clip.read_offset is None


def test_without_a_head_the_embedding_is_what_the_norm_gives():
    clip = from_timm(small_tower("DINOv2", outputs=0))
    assert torch.equal(clip.projection, torch.eye(32, dtype=torch.float64))


def test_texts_of_a_classifier_are_its_classes():
    tower = small_tower("class token", torch.float32)
    names = ["dog", "ship", "crane", "toy, plaything", "cat", "cup", "sea"]
    clip = from_timm(tower, classes=names, name="eyes")
    assert clip.encode_text(["ship"]).tolist() == [[0, 1, 0, 0, 0, 0, 0]]
    assert clip.encode_text(["plaything"]).tolist() == [[0, 0, 0, 1, 0, 0, 0]]
    with pytest.raises(sl.SecondLensError, match="'a ship' is none of its 7 classes"):
        clip.encode_text(["a ship"])
    with pytest.raises(sl.SecondLensError, match="7 classes, and 2 names"):
        from_timm(tower, classes=names[:2])
    with pytest.raises(sl.SecondLensError, match="embeds images only"):
        from_timm(tower).encode_text(["ship"])


def wide(name, **options):
    small = {"embed_dim": 32, "depth": 1, "num_heads": 4, "img_size": 32, "patch_size": 8}
    return timm.create_model(name, **small, **options)


def with_a_gate():
    tower = wide("vit_tiny_patch16_224")
    tower.blocks[0].attn.gate = nn.Linear(32, 32)
    return tower


def with_a_new_part(place):
    def make():
        tower = wide("vit_tiny_patch16_224", global_pool="map")
        tower.get_submodule(place).novelty = nn.Identity()
        return tower

    return make


def two_queries():
    tower = wide("vit_base_patch16_siglip_224")
    tower.attn_pool = timm.layers.AttentionPoolLatent(32, num_heads=4, latent_len=2)
    return tower


def own_head():
    tower = wide("vit_tiny_patch16_224")
    tower.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 7))
    return tower


REFUSED = {
    "swin": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", embed_dim=12, depths=(1, 1), num_heads=(1, 2)
        ),
        "shifted windows",
    ),
    "fastvit": (
        lambda: timm.create_model("fastvit_t8", layers=(1, 1, 1, 1), embed_dims=(8, 8, 8, 8)),
        "convolution with an activation function",
    ),
    "relpos": (
        lambda: timm.create_model(
            "vit_relpos_small_patch16_224", embed_dim=32, depth=1, num_heads=2
        ),
        "a bias to every pair of places",
    ),
    "resnet": (lambda: timm.create_model("resnet10t"), "a ResNet of timm"),
    "post-norm": (
        lambda: wide("eva_giant_patch14_224", use_post_norm=True),
        "over a scale of each",
    ),
    "res-post": (
        lambda: wide("vit_tiny_patch16_224", block_fn=timm.models.vision_transformer.ResPostBlock),
        "over a scale of each",
    ),
    "parallel": (
        lambda: wide(
            "vit_tiny_patch16_224",
            block_fn=timm.models.vision_transformer.ParallelScalingBlock,
        ),
        "block 0 is a ParallelScalingBlock",
    ),
    "max": (lambda: wide("vit_tiny_patch16_224", global_pool="max"), "its pooling is 'max'"),
    "no pool": (lambda: wide("vit_tiny_patch16_224", global_pool=""), "its pooling is ''"),
    "padding": (
        lambda: wide("vit_tiny_patch16_224", dynamic_img_size=True, dynamic_img_pad=True),
        "dynamic_img_pad",
    ),
    "RMSNorm": (lambda: wide("vit_tiny_patch16_224", norm_layer="rmsnorm"), "RmsNorm"),
    "two norms": (
        lambda: wide("eva_giant_patch14_224", use_fc_norm=True, use_post_transformer_norm=True),
        "two norms",
    ),
    "gate": (with_a_gate, "gates what its heads read"),
    "queries": (two_queries, "2 queries"),
    "head": (own_head, "its head has a Sequential"),
    "differential": (lambda: wide("vit_tiny_patch16_224", attn_layer="diff"), "DiffAttention"),
} | {
    f"new part {place}": (with_a_new_part(place), "'novelty' in its")
    for place in ("", "patch_embed", "blocks.0", "blocks.0.attn", "blocks.0.mlp", "attn_pool")
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_refusals(make, reason):
    with pytest.raises(sl.UnsupportedModel, match=reason):
        from_timm(make().eval(), name="mine")


def test_training_mode_is_left_to_the_owner():
    with pytest.raises(sl.SecondLensError, match="training mode"):
        from_timm(small_tower("CLIP").train())


@pytest.mark.parametrize("kind", ["average", "EVA-02"])
def test_the_published_convention_is_that_of_class_tokens_behind_plain_norms(kind):
    tower = small_tower(kind)
    with pytest.raises(sl.SecondLensError, match="take exact"):
        sl.second_order(from_timm(tower), some_images(tower), 0, convention="official")


def test_a_name_of_the_registry():
    with pytest.warns(sl.SecondLensWarning, match="random weights"):
        clip = sl.load("timm:vit_tiny_patch16_224")
    assert clip.name == "timm:vit_tiny_patch16_224"
    assert (clip.layers, clip.dim) == (12, 1000)
    assert int(clip.encode_text(["goldfish"]).argmax()) == 1
    picture = clip.preprocess(_picture())
    assert picture.shape == (3, 224, 224)
    assert clip.halves is not None


def _picture():
    from PIL.Image import new

    return new("RGB", (300, 200), "red")


@pytest.fixture
def folder(tmp_path):
    """What timm writes: a configuration, and weights."""
    tower = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3)
    randomise(tower)
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "model_args": {"depth": 1},
        "pretrained_cfg": {**tower.pretrained_cfg, "label_names": ["a dog", "a ship", "the sea"]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tower.state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def test_a_folder(folder):
    clip = sl.load(f"timm:{folder}", precision="bf16")
    assert clip.name == f"timm:{folder.name}"
    assert (clip.layers, clip.dtype) == (1, torch.bfloat16)
    assert clip.encode_text(["the sea"]).tolist() == [[0, 0, 1]]
    with pytest.raises(sl.SecondLensError, match="names its own weights"):
        sl.load(f"timm:{folder}", pretrained="augreg_in21k")


def test_a_checkpoint_file(folder):
    weights = folder / "model.safetensors"
    with pytest.raises(sl.SecondLensError, match="does not fit the model"):
        sl.load("timm:vit_tiny_patch16_224", pretrained=weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoModel": "mine.Model"}}, "names code of its own"),
        ({"architecture": "vit_of_nobody"}, "Unknown model"),
        ({"architecture": "resnet10t", "model_args": {}, "pretrained_cfg": {}}, "a ResNet of timm"),
    ],
)
def test_folders_of_strangers(folder, change, message):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(sl.SecondLensError, match=message):
        sl.load(f"timm:{folder}")


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("timm:vit_tiny_patch16_225", None, r"no model .* \(did you mean vit_tiny_patch16_224"),
        ("timm:vit_tiny_patch16_224.of_nobody", None, "no pretrained tag 'of_nobody': it has"),
        ("timm:vit_tiny_patch16_224", "of_nobody", "no pretrained tag 'of_nobody'"),
        ("timm:vit_tiny_patch16_224.augreg_in21k", "x", "names its own weights"),
        ("timm:swin_tiny_patch4_window7_224.ms_in1k", None, "shifted windows"),
        ("timm:./nowhere/at/all", None, "there is no folder"),
    ],
)
def test_names_that_do_not_exist(name, pretrained, message):
    with pytest.raises(sl.SecondLensError, match=message):
        sl.load(name, pretrained)
