"""Towers that read other things than a class token, against what their own modules compute."""

import pytest
import torch
from models import tiny_images, tiny_model
from oracle import Run, frozen_norm

import secondlens as sl
from secondlens.applications.segmentation.segmenter import Segmenter, encode
from secondlens.models.checks import parity_errors
from secondlens.verify import LiteralPass, literal_second_order

READERS = {
    "mean, then norm": {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
    "norm, then mean": {"pool_type": "avg"},
    "pool": {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 3},
    "pool of another width": {
        "attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 3, "dim": 16,
    },
    "class token": {},
}  # fmt: skip
READER = pytest.mark.parametrize("reader", READERS)
PRECISE = {"rtol": 1e-9, "atol": 1e-12}


def built(reader, dtype=torch.float64):
    model = tiny_model(dtype=dtype, **READERS[reader])
    return model, sl.from_open_clip(model, name=reader), tiny_images(model)


def weights_of(attention, queries, keys):
    """[images, heads, queries, tokens], by torch's own attention."""
    return attention(queries, keys, keys, need_weights=True, average_attn_weights=False)[1]


def mixed(attention, weights, states):
    """[images, queries, width]: values of `states` by these weights, and the output, no biases."""
    own = attention.v_proj_weight
    value = states @ (attention.in_proj_weight.chunk(3)[2] if own is None else own).T
    heads = value.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    return (weights @ heads).transpose(1, 2).flatten(2) @ attention.out_proj.weight.T


def linear(norm, seen, states):
    """`states` through a norm whose scale is that of `seen`; no bias."""
    frozen = frozen_norm(norm, seen)
    return frozen(states) - frozen(torch.zeros_like(states))


@torch.no_grad()
def literal(model, images, layer, neuron):
    """[images, dim]: the value paths of one neuron, one module after another."""
    tower, run = model.visual, Run(model, images)
    seen = {}
    hook = tower.ln_post.register_forward_pre_hook(lambda m, x: seen.update(post=x[0]))
    last = tower.transformer.register_forward_hook(lambda m, x, y: seen.update(last=y))
    length = tower(images)
    length = (length[0] if isinstance(length, tuple) else length).norm(dim=-1, keepdim=True)
    hook.remove()
    last.remove()
    write, post = run.neuron_write(layer, neuron), seen["post"]
    if tower.attn_pool is not None:
        pool = tower.attn_pool
        queries = pool.ln_q(pool.query).expand(len(images), -1, -1)
        rows = weights_of(pool.attn, queries, pool.ln_k(seen["last"]))
        out = mixed(pool.attn, rows, linear(pool.ln_k, seen["last"], write))
        return linear(tower.ln_post, post, out)[:, 0] @ tower.proj / length
    total = 0
    for block, stream in list(zip(run.blocks, run.streams, strict=True))[layer + 1 :]:
        normalised = block.ln_1(stream)
        rows = weights_of(block.attn, normalised, normalised)
        total = total + mixed(block.attn, rows, linear(block.ln_1, stream, write))
    if tower.pool_type == "tok":
        return linear(tower.ln_post, post[:, :1], total[:, :1])[:, 0] @ tower.proj / length
    if tower.final_ln_after_pool:
        return linear(tower.ln_post, post, total[:, 1:].mean(1)) @ tower.proj / length
    return linear(tower.ln_post, post, total)[:, 1:].mean(1) @ tower.proj / length


@READER
def test_second_order_effects_are_those_of_the_models_own_modules(reader):
    model, clip, images = built(reader)
    for layer in range(clip.last_effect_layer + 1):
        found = sl.second_order(clip, images, layer)
        for neuron in (0, 7, clip.neurons - 1):
            expected = literal(model, images, layer, neuron)
            torch.testing.assert_close(found[:, neuron], expected, **PRECISE)


@READER
def test_the_slow_formula_of_verify_agrees(reader):
    _, clip, images = built(reader)
    run = LiteralPass.of(clip, images)
    found = sl.second_order(clip, images, clip.last_effect_layer)
    for neuron in (0, 5):
        slow = literal_second_order(clip, run, clip.last_effect_layer, neuron)
        torch.testing.assert_close(found[:, neuron], slow, **PRECISE)


@READER
def test_the_view_rebuilds_what_the_model_computes(reader):
    _, clip, _ = built(reader)
    errors = parity_errors(clip)
    assert max(errors.values()) < 1e-10
    assert ("output of the attention pool" in errors) == reader.startswith("pool")


@READER
def test_direct_effects_are_what_the_output_changes_by_when_attention_stands_still(reader):
    """Finite differences of `ln_post` and what follows, its scale held."""
    model, clip, images = built(reader)
    tower, run = model.visual, Run(model, images)
    layer = clip.layers - 1
    found = sl.direct(clip, images, layer)
    assert found.shape == (len(images), clip.neurons, clip.dim)
    length = run.representation
    length = (length[0] if isinstance(length, tuple) else length).norm(dim=-1, keepdim=True)
    seen = {}
    tower.ln_post.register_forward_pre_hook(lambda m, x: seen.update(post=x[0]))
    with torch.no_grad():
        tower(images)
    for neuron in (0, 3):
        write = run.neuron_write(layer, neuron)
        if reader.startswith("pool"):
            expected = torch.zeros_like(found[:, neuron])
        elif reader == "class token":
            expected = linear(tower.ln_post, seen["post"], write)[:, 0] @ tower.proj / length
        elif tower.final_ln_after_pool:
            expected = linear(tower.ln_post, seen["post"], write[:, 1:].mean(1)) @ tower.proj
            expected = expected / length
        else:
            expected = linear(tower.ln_post, seen["post"], write)[:, 1:].mean(1) @ tower.proj
            expected = expected / length
        torch.testing.assert_close(found[:, neuron], expected, **PRECISE)


@READER
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_agree(reader, dtype):
    _, exact, images = built(reader)
    _, clip, _ = built(reader, dtype)
    layer = clip.last_effect_layer
    expected = sl.second_order(exact, images, layer)
    found = sl.second_order(clip, images.to(dtype), layer).double()
    cosine = torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
    assert cosine > (0.999999 if dtype is torch.float32 else 0.99)


@READER
def test_a_lens_of_it_is_fitted_described_and_used(reader, tmp_path):
    _, clip, _ = built(reader, torch.float32)
    images = torch.randn(24, 3, *clip.image_size, generator=torch.Generator().manual_seed(3))
    lens = sl.fit(clip, images, top=6)
    assert lens.layers == list(range(clip.last_effect_layer + 1))
    layer = clip.last_effect_layer
    effects = sl.second_order(clip, images, layer)
    torch.testing.assert_close(lens[layer].mean, effects.mean(0), rtol=1e-4, atol=1e-6)
    lens.save(tmp_path / "lens")
    loaded = sl.Lens.load(tmp_path / "lens")
    heat_maps = Segmenter(clip, loaded)
    texts = torch.eye(clip.dim)[:2].expand(2, -1, -1)
    found = heat_maps.heat_maps(encode(clip, images[:2], heat_maps.layers), texts)
    assert found.shape == (2, 2, *clip.grid)


@READER
def test_the_published_codes_convention_is_of_class_tokens_alone(reader):
    _, clip, images = built(reader)
    if reader == "class token":
        assert sl.second_order(clip, images, 0, "official").isfinite().all()
        return
    with pytest.raises(sl.SecondLensError, match="class token"):
        sl.second_order(clip, images, 0, "official")


def test_two_pools_are_refused():
    model = tiny_model(attentional_pool="parallel", attn_pooler_heads=2, attn_pooler_queries=3)
    with pytest.raises(sl.UnsupportedModel, match="two attention pools"):
        sl.from_open_clip(model)
