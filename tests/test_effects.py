"""Effects against their definition, against published outputs, and against each other."""

from importlib import import_module

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import golden_model, sequence_first, tiny_images, tiny_model
from scale import TIMES

from secondlens.effects.ablated_runs import indirect, indirect_seconds, sample, stop_after
from secondlens.effects.capture import Capture
from secondlens.effects.value_paths import (
    bias_effect,
    direct,
    extended_coefficients,
    image_scale,
    isometry,
    path_factors,
    second_order,
    value_paths,
)
from secondlens.errors import SecondLensError
from secondlens.models.open_clip.views import from_open_clip

# torch.func.jvp, which the oracle uses, still scripts some of its own functions
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")


def close(found, expected, tolerance):
    """Largest error over largest value."""
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def pooled_of(clip, images, layers):
    with Capture(clip, layers) as capture:
        return capture.pool(clip.encode_image(images))


@pytest.fixture
def clip():
    return from_open_clip(tiny_model(dtype=torch.float64))


# -- second order ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny-gelu", "tiny-quickgelu"])
def test_official_is_what_the_published_code_computes(name):
    model, tensors, metadata = golden_model(name)
    clip = from_open_clip(model)
    assert clip.activation == {"True": "quick_gelu", "False": "gelu"}[metadata["quick_gelu"]]
    images = tensors["images"]
    assert close(clip.encode_image(images), tensors["representation"], 1e-5)
    layers = [key for key in tensors if key.startswith("second_order/")]
    assert len(layers) == clip.last_effect_layer + 1
    for key in layers:
        effects = second_order(clip, images, int(key.split("_")[-1]), convention="official")
        assert close(effects, tensors[key], 1e-4)


@settings(derandomize=True, deadline=None, max_examples=25 * TIMES)
@given(data=st.data())
def test_exact_is_the_definition(data):
    head_width, heads = data.draw(st.sampled_from([(4, 1), (4, 3), (8, 2), (5, 3)]))
    model = tiny_model(
        seed=data.draw(st.integers(0, 99)),
        dtype=torch.float64,
        quick_gelu=data.draw(st.booleans()),
        dim=data.draw(st.sampled_from([2, 7, 30])),
        width=head_width * heads,
        head_width=head_width,
        layers=data.draw(st.integers(2, 5)),
        patch_size=data.draw(st.sampled_from([4, 8])),
        image_size=data.draw(st.sampled_from([8, (8, 16)])),
        mlp_ratio=data.draw(st.sampled_from([1.0, 2.5, 4.0])),
        ls_init_value=data.draw(st.sampled_from([None, 0.5])),
        final_ln_after_pool=data.draw(st.booleans()),
        no_ln_pre=data.draw(st.booleans()),
        block_type=data.draw(st.sampled_from(["default", "custom"])),
    )
    clip = from_open_clip(model)
    images = tiny_images(clip, count=data.draw(st.integers(1, 3)))
    layer = data.draw(st.integers(0, clip.last_effect_layer))
    run = oracle.Run(model, images)
    effects = second_order(clip, images, layer)
    for neuron in (0, clip.neurons // 2, clip.neurons - 1):
        expected = oracle.second_order(run, layer, run.neuron_write(layer, neuron))
        assert close(effects[:, neuron], expected, 1e-9)
    whole = effects.sum(dim=1) + bias_effect(clip, pooled_of(clip, images, [layer]), layer)
    assert close(whole, oracle.second_order(run, layer, run.writes[layer]), 1e-9)


def test_sequence_first_blocks_have_the_same_effects(clip):
    images = tiny_images(clip)
    mean = torch.ones(clip.tokens, clip.neurons, dtype=torch.float64)
    other = from_open_clip(sequence_first(tiny_model(dtype=torch.float64)))
    assert close(second_order(other, images, 0), second_order(clip, images, 0), 1e-12)
    assert close(direct(other, images, 0), direct(clip, images, 0), 1e-12)
    found, expected = (indirect(each, images, 0, [3, 1], mean) for each in (other, clip))
    assert close(found, expected, 1e-12)


@pytest.mark.parametrize("convention", ["exact", "official"])
def test_neurons_keep_their_effects_when_permuted(clip, convention):
    images, order = tiny_images(clip), torch.randperm(clip.neurons)
    effects = second_order(clip, images, 0, convention)
    model = tiny_model(dtype=torch.float64)
    mlp = model.visual.transformer.resblocks[0].mlp
    with torch.no_grad():
        mlp.c_fc.weight.copy_(mlp.c_fc.weight[order])
        mlp.c_fc.bias.copy_(mlp.c_fc.bias[order])
        mlp.c_proj.weight.copy_(mlp.c_proj.weight[:, order])
    permuted = second_order(from_open_clip(model), images, 0, convention)
    assert close(permuted, effects[:, order], 1e-12)


def test_official_adds_one_vector_that_all_neurons_share(clip):
    images = tiny_images(clip)
    factors = path_factors(clip, 0, "official")
    pooled = pooled_of(clip, images, [0])
    own = torch.einsum("bkn,nkd->bnd", pooled.coefficients[0], factors.rows()[:, :6])
    shared = second_order(clip, images, 0, "official") - 100 * pooled.scale[:, None, None] * own
    assert close(shared, shared[:, :1].expand_as(shared), 1e-11)
    assert len(factors.shared) == 2 * 6 + 3
    assert shared.abs().max() > 0


def test_sizes(clip):
    images = tiny_images(clip)
    assert second_order(clip, images, 1).shape == (3, 48, 12)
    assert second_order(clip, images[:1], 1).shape == (1, 48, 12)
    assert value_paths(clip, 0).shape == (48, 6, 12)
    assert value_paths(clip, 1).shape == (48, 3, 12)
    assert value_paths(clip, 1, "official").shape == (48, 3 * 3 + 3, 12)


def test_precision_of_paths():
    clip = from_open_clip(tiny_model())
    wide = value_paths(clip, 0, dtype=torch.float64)
    assert wide.dtype == torch.float64 and value_paths(clip, 0).dtype == torch.float32
    assert close(value_paths(clip, 0).double(), wide, 1e-5)
    assert value_paths(from_open_clip(tiny_model(dtype=torch.bfloat16)), 0).dtype == torch.float32


def test_neurons_come_in_chunks(clip, monkeypatch):
    images = tiny_images(clip)
    effects, paths = second_order(clip, images, 0, "official"), value_paths(clip, 0)
    basis = isometry(paths).basis
    monkeypatch.setattr("secondlens.effects.value_paths.NEURONS_PER_CHUNK", 5)
    monkeypatch.setattr("secondlens.effects.value_paths.NEURONS_PER_CHUNK", 5)
    assert close(second_order(clip, images, 0, "official"), effects, 1e-13)
    assert close(isometry(paths).basis, basis, 1e-13)
    assert close(path_factors(clip, 0).rows(slice(3, 7)), paths[3:7], 1e-13)


# -- direct and indirect ---------------------------------------------------------------------


@pytest.mark.parametrize("vision", [{}, {"ls_init_value": 0.5, "final_ln_after_pool": True}])
def test_direct(vision):
    model = tiny_model(dtype=torch.float64, **vision)
    clip = from_open_clip(model)
    images = tiny_images(clip)
    run = oracle.Run(model, images)
    for layer in range(clip.layers):
        effects = direct(clip, images, layer)
        assert effects.shape == (3, 48, 12)
        for neuron in (0, 20, 47):
            write = run.neuron_write(layer, neuron)
            assert close(effects[:, neuron], oracle.direct(run, write), 1e-12)
            centred = write[:, 0] - write[:, 0].mean(dim=-1, keepdim=True)
            sigma = (run.class_token.var(-1, correction=0) + clip.post_eps).sqrt()
            literal = (clip.post_gain * centred) @ clip.projection
            literal = literal / (sigma * run.representation.norm(dim=-1))[:, None]
            assert close(effects[:, neuron], literal, 1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str
)
@pytest.mark.parametrize("vision", [{}, {"ls_init_value": 0.5}])
def test_indirect(dtype, tolerance, vision, monkeypatch):
    model = tiny_model(dtype=dtype, **vision)
    clip = from_open_clip(model)
    images, neurons = tiny_images(clip), [7, 0, 47, 7]
    run = oracle.Run(model, images)
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(clip.tokens, clip.neurons, generator=generator, dtype=dtype)
    for layer in range(clip.layers):
        expected = [oracle.indirect(run, images, layer, neuron, mean) for neuron in neurons]
        assert close(
            indirect(clip, images, layer, neurons, mean), torch.stack(expected, 1), tolerance
        )
    monkeypatch.setattr(import_module("secondlens.effects.ablated_runs"), "IMAGES_PER_PASS", 2)
    assert close(indirect(clip, images, layer, neurons, mean), torch.stack(expected, 1), tolerance)
    assert indirect(clip, images, 0, [], mean).shape == (3, 0, 12)


def test_a_neuron_at_its_own_activation_has_no_indirect_effect(clip):
    images = tiny_images(clip, count=1)
    own = oracle.Run(clip.model, images).activations[1][0]
    assert indirect(clip, images, 1, [4], own).abs().max() < 1e-14


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_all_neurons_at_their_means_at_once(clip, layer):
    images = tiny_images(clip)
    mean = torch.randn(clip.tokens, clip.neurons, dtype=torch.float64)
    tower = clip.model.visual
    handle = tower.transformer.resblocks[layer].mlp.c_proj.register_forward_pre_hook(
        lambda module, inputs: (mean.expand_as(inputs[0]),)
    )
    with torch.no_grad():
        expected = tower(images)
    handle.remove()
    assert close(stop_after(clip, images, layer).without_all(mean), expected, 1e-12)


def test_running_on_leaves_the_model_as_it_was(clip):
    images = tiny_images(clip)
    before = clip.encode_image(images)
    mean = torch.zeros(clip.tokens, clip.neurons, dtype=torch.float64)
    with clip.class_token_only():
        shortcut = clip.blocks[-1].module.forward
        inside = indirect(clip, images, 1, [3], mean)
        assert clip.blocks[-1].module.forward is shortcut
    assert all("forward" not in vars(block.module) for block in clip.blocks)
    assert torch.equal(clip.encode_image(images), before)
    assert close(inside, indirect(clip, images, 1, [3], mean), 1e-12)
    assert indirect_seconds(clip, 1) > 0


def test_earlier_blocks_run_once_for_all_neurons(clip):
    passes = []
    handle = clip.blocks[0].ln_1.register_forward_hook(lambda *_: passes.append(0))
    mean = torch.zeros(clip.tokens, clip.neurons, dtype=torch.float64)
    indirect(clip, tiny_images(clip), 1, range(clip.neurons), mean)
    handle.remove()
    assert len(passes) == 1


def test_samples_of_neurons(clip):
    assert sample(clip, None) == list(range(48))
    assert sample(clip, 5) == sample(clip, 5) != sample(clip, 5, seed=1)
    assert len(set(sample(clip, 48))) == 48
    for count in (0, 49):
        with pytest.raises(SecondLensError, match="48 neurons"):
            sample(clip, count)


def test_effects_leave_no_hooks(clip):
    images = tiny_images(clip)
    before = clip.encode_image(images)
    second_order(clip, images, 0)
    direct(clip, images, 0)
    indirect(clip, images, 0, [1], torch.zeros(clip.tokens, clip.neurons))
    for module in clip.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert torch.equal(clip.encode_image(images), before)


# -- isometric coordinates -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str
)
@pytest.mark.parametrize("convention", ["exact", "official"])
@pytest.mark.parametrize("dim", [4, 40])
def test_coordinates_keep_lengths(dtype, tolerance, convention, dim):
    clip = from_open_clip(tiny_model(dtype=dtype, dim=dim))
    images = tiny_images(clip, count=5)
    paths = value_paths(clip, 0, convention)
    found = isometry(paths)
    rank = min(paths.shape[1], dim)
    assert found.basis.shape == (48, dim, rank)
    assert found.transform.shape == (48, rank, paths.shape[1])
    assert close(found.basis.mT @ found.basis, torch.eye(rank, dtype=dtype), tolerance)
    assert close(found.basis @ found.transform, paths.mT, tolerance)

    pooled = pooled_of(clip, images, [0])
    z = found.coordinates(
        extended_coefficients(pooled, 0, convention), image_scale(pooled, convention)
    )
    effects = second_order(clip, images, 0, convention)
    assert z.shape == (5, 48, rank)
    assert close(z.norm(dim=-1), effects.norm(dim=-1), tolerance)
    assert close(torch.einsum("ndr,bnr->bnd", found.basis, z), effects, tolerance)
    assert close((z - z.mean(0)).norm(dim=-1), (effects - effects.mean(0)).norm(dim=-1), tolerance)


def test_a_neuron_that_writes_nothing_has_coordinates():
    paths = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    paths[1] = 0
    found = isometry(paths)
    assert close(found.basis.mT @ found.basis, torch.eye(4), 1e-5)
    assert found.transform[1].abs().max() == 0


# -- refusals --------------------------------------------------------------------------------


def test_what_is_refused(clip):
    images = tiny_images(clip)
    mean = torch.zeros(clip.tokens, clip.neurons)
    refused = {
        "no convention 'published'": lambda: second_order(clip, images, 0, "published"),
        "no convention 'none'": lambda: value_paths(clip, 0, "none"),
        "no later attention": lambda: second_order(clip, images, 2),
        "no layer 7": lambda: value_paths(clip, 7),
        "no layer -1": lambda: direct(clip, images, -1),
        "no layer 3: choose one of 0 to 2": lambda: indirect(clip, images, 3, [0], mean),
        "no neuron 48": lambda: indirect(clip, images, 0, [1, 48], mean),
        "no neuron -1": lambda: indirect(clip, images, 0, [-1], mean),
        r"\[5, 48\], and it is \[4, 48\]": lambda: indirect(clip, images, 0, [0], mean[1:]),
        "takes preprocessed float images": lambda: second_order(clip, images[..., :8], 0),
    }
    for message, call in refused.items():
        with pytest.raises(SecondLensError, match=message):
            call()
