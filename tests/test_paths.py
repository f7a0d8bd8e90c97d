"""All paths: against every path written out, against differentiation, and against each other."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Unreadable, sequence_first, tiny_images, tiny_model, tiny_tokenizer
from scale import TIMES
from torch import nn
from torch.func import jacrev
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import secondlens as sl
from secondlens.effects.all_paths import CLASSES, backward
from secondlens.effects.linearised import linearise
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.transformers.views import from_transformers


def close(found, expected, tolerance):
    """Largest error over largest value."""
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def some_directions(clip, count=2, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, clip.dim, generator=generator, dtype=clip.compute_dtype)


def double(**vision):
    model = tiny_model(dtype=torch.float64, **vision)
    return model, from_open_clip(model)


# -- every path written out -------------------------------------------------------------------


def jacobian(function, at):
    """[out, in] of a function of states [tokens, width]."""
    found = jacrev(lambda x: function(x.view_as(at)).flatten())(at.flatten())
    return found.detach()


def frozen(norm, x):
    """A LayerNorm whose scale is that at `x`."""
    sigma = (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    return lambda y: (y - y.mean(-1, keepdim=True)) / sigma * norm.weight + norm.bias


def both_edges(norm, x):
    """Jacobians of a LayerNorm with its scale frozen, and through its scale alone."""
    linear = jacobian(frozen(norm, x), x)
    return {"linear": linear, "norm": jacobian(norm, x) - linear}


def attention_edges(attention, y):
    """Jacobians of attention through one of query, key and value, the others as they are at `y`."""
    heads, (wq, wk, wv) = attention.num_heads, attention.in_proj_weight.chunk(3)
    bq, bk, bv = attention.in_proj_bias.chunk(3)

    def split(x):
        return x.unflatten(-1, (heads, -1)).transpose(0, 1)

    def attend(q, k, v):
        q, k, v = split(q @ wq.T + bq), split(k @ wk.T + bk), split(v @ wv.T + bv)
        shares = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        return attention.out_proj((shares @ v).transpose(0, 1).flatten(1))

    return attend(y, y, y), {
        "query": jacobian(lambda x: attend(x, y, y), y),
        "key": jacobian(lambda x: attend(y, x, y), y),
        "value": jacobian(lambda x: attend(y, y, x), y),
    }


def steps(model, stream):
    """For each later sublayer the ways through it: (edges, matrix)."""
    for block in model.visual.transformer.resblocks[1:]:
        for norm, inner in ((block.ln_1, "attention"), (block.ln_2, "mlp")):
            edges = both_edges(norm, stream)
            y = norm(stream)
            if inner == "attention":
                added, ends = attention_edges(block.attn, y)
            else:
                added, ends = block.mlp(y), {"mlp": jacobian(block.mlp, y)}
            ways = [((), torch.eye(stream.numel(), dtype=stream.dtype))]
            for (first, a), (second, b) in product(edges.items(), ends.items()):
                ways.append(((first, second), b @ a))
            yield ways
            stream = stream + added
    last = both_edges(model.visual.ln_post, stream[:1])
    top = torch.zeros(stream.shape[1], stream.numel(), dtype=stream.dtype)
    top[:, : stream.shape[1]] = torch.eye(stream.shape[1])
    yield [((name,), model.visual.proj.T @ matrix @ top) for name, matrix in last.items()]


def class_of(edges):
    other = [edge for edge in edges if edge not in ("linear", "value")]
    if other:
        return other[0]
    return ("direct", "value", "higher")[min(2, edges.count("value"))]


def test_classes_are_those_of_all_paths_written_out():
    model = tiny_model(dtype=torch.float64, width=8, head_width=4, dim=5)
    clip = from_open_clip(model)
    images = tiny_images(clip, 1)
    with torch.no_grad():
        seen = {}
        block = model.visual.transformer.resblocks[0]
        hooks = [
            block.register_forward_hook(lambda m, i, o: seen.update(stream=o[0])),
            block.mlp.gelu.register_forward_hook(lambda m, i, o: seen.update(p=o[0])),
        ]
        r = model.visual(images)
        [hook.remove() for hook in hooks]
    rows = model.visual.transformer.resblocks[0].mlp.c_proj.weight.T
    writes = (seen["p"][:, :, None] * rows).transpose(0, 1).flatten(1).detach()
    expected = torch.zeros(clip.neurons, 7, clip.dim, dtype=torch.float64)
    ways = list(steps(model, seen["stream"]))
    every = list(product(*ways))
    assert len(every) == 882
    for path in every:
        x, edges = writes.T, ()
        for names, matrix in path:
            x, edges = matrix @ x, edges + names
        expected[:, CLASSES.index(class_of(edges))] += x.T.detach() / r.norm()
    assert (expected.norm(dim=-1) > 1e-4).all()
    forward = sl.paths_of(clip, images, 0, range(clip.neurons))
    assert close(forward[0], expected, 1e-12)
    directions = some_directions(clip)
    back = sl.paths(clip, images, directions=directions, layers=[0])[0][0]
    assert close(back, torch.einsum("ncd,md->mnc", expected, directions), 1e-12)


# -- against each other and differentiation ------------------------------------------------------


def small_transformers_model():
    config = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=16,
        patch_size=8,
        projection_dim=12,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = CLIPVisionModelWithProjection(config).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


FAMILIES = {
    "plain": lambda: double()[1],
    "layer scale": lambda: double(ls_init_value=0.5, final_ln_after_pool=True)[1],
    "quick": lambda: double(quick_gelu=True, layers=5)[1],
    "wide picture": lambda: double(image_size=(8, 16), no_ln_pre=True)[1],
    "sequence first": lambda: from_open_clip(sequence_first(tiny_model(dtype=torch.float64))),
    "transformers": lambda: from_transformers(small_transformers_model()),
}


def pictures(clip, count=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, *clip.image_size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    clip = FAMILIES[family]()
    images, directions = pictures(clip), some_directions(clip)
    found = sl.paths(clip, images, directions=directions)
    assert found.layers == list(range(clip.layers)) and found.classes == CLASSES
    alone = sl.paths(clip, images, directions=directions, classes="value", batch_size=2)
    assert alone.classes == ("value",) and alone.image_ids == found.image_ids
    chosen = [0, 7, clip.neurons - 1]
    for layer in found.layers:
        effects = found[layer]
        assert effects.shape == (3, 2, clip.neurons, 7)
        whole = sl.paths_of(clip, images, layer, chosen)
        assert whole.shape == (3, 3, 7, clip.dim)
        along = torch.einsum("bncd,md->bmnc", whole, directions)
        assert close(effects[:, :, chosen], along, 1e-12)
        straight = torch.einsum("bnd,md->bmn", sl.direct(clip, images, layer), directions)
        assert close(effects[..., 0], straight, 1e-12)
        if layer <= clip.last_effect_layer:
            once = torch.einsum("bnd,md->bmn", sl.second_order(clip, images, layer), directions)
            assert close(effects[..., 1], once, 1e-12)
        else:
            assert effects[..., 1:6].abs().max() < 1e-14
        assert close(alone[layer][..., 0], effects[..., 1], 1e-12)
        # central differences of the network itself, one neuron's activation scaled a little
        for place, neuron in enumerate(chosen):
            change = differences(clip, images, layer, neuron)
            assert close(whole[:, place].sum(1), change, 1e-7)


def differences(clip, images, layer, neuron, step=1e-4):
    def scaled(factor):
        def hook(module, inputs, output):
            output = output.clone()
            output[..., neuron] *= factor
            return output

        handle = clip.blocks[layer].activation.register_forward_hook(hook)
        found = clip.encode_image(images)
        handle.remove()
        return found

    length = clip.encode_image(images).norm(dim=-1, keepdim=True)
    return (scaled(1 + step) - scaled(1 - step)) / (2 * step * length)


@settings(derandomize=True, deadline=None, max_examples=10 * TIMES)
@given(data=st.data())
def test_classes_add_up_to_the_derivative(data):
    head_width, heads = data.draw(st.sampled_from([(4, 1), (4, 3), (8, 2), (5, 3)]))
    model = tiny_model(
        seed=data.draw(st.integers(0, 99)),
        dtype=torch.float64,
        dim=data.draw(st.sampled_from([2, 7, 30])),
        width=head_width * heads,
        head_width=head_width,
        layers=data.draw(st.integers(1, 5)),
        patch_size=data.draw(st.sampled_from([4, 8])),
        ls_init_value=data.draw(st.sampled_from([None, 0.5])),
    )
    clip = from_open_clip(model)
    images = tiny_images(clip, data.draw(st.integers(1, 3)))
    layer = data.draw(st.integers(0, clip.layers - 1))
    direction = some_directions(clip, 1)
    block, kept = clip.blocks[layer], []

    def keep(module, inputs, output):
        output.requires_grad_()
        kept.append(output)

    handle = block.activation.register_forward_hook(keep)
    with torch.enable_grad():
        r = model.visual(images)
        (gradient,) = torch.autograd.grad((r @ direction[0]).sum(), kept[0])
    handle.remove()
    expected = (gradient * kept[0]).sum(1).detach() / r.norm(dim=-1, keepdim=True).detach()
    found = sl.paths(clip, images, directions=direction, layers=[layer])[layer]
    assert close(found.sum(-1)[:, 0], expected, 1e-12)


# -- finite changes ------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_finite_changes(layer):
    _, clip = double()
    images, directions, chosen = tiny_images(clip), some_directions(clip), [0, 9, 47, 9]
    generator = torch.Generator().manual_seed(3)
    mean = 0.3 * torch.randn(clip.tokens, clip.neurons, generator=generator, dtype=torch.float64)
    found = sl.finite_paths(clip, images, layer, chosen, mean, directions=directions)
    expected = torch.einsum(
        "bnd,md->bmn", sl.indirect(clip, images, layer, chosen, mean), directions
    )
    assert close(found.total, expected, 1e-12)
    assert found.effects.shape == (3, 2, 4, 7) and found.remainder.shape == (3, 2, 4)
    assert close(found.effects.sum(-1) + found.remainder, found.total, 1e-12)
    assert found.missed <= 0.001 and found.nodes <= 3
    closer = sl.finite_paths(
        clip, images, layer, chosen, mean, directions=directions, tolerance=1e-9
    )
    assert closer.missed <= 1e-9 < found.missed and closer.nodes > found.nodes

    everything = range(clip.neurons)
    whole = sl.finite_paths(
        clip, images, layer, everything, mean, directions=directions, together=True
    )
    handle = clip.blocks[layer].activation.register_forward_hook(
        lambda module, inputs, output: mean.expand_as(output)
    )
    base = clip.encode_image(images)
    handle.remove()
    r = clip.encode_image(images)
    moved = (r - base) / r.norm(dim=-1, keepdim=True) @ directions.T
    assert close(whole.total, moved, 1e-12)
    assert whole.missed <= 0.001
    assert close(whole.effects.sum((2, 3)) + whole.remainder, moved, 1e-12)


def test_neurons_that_are_at_their_means_do_nothing():
    _, clip = double()
    images = tiny_images(clip, 1)
    own = linearise(clip, images).activations[1][0]
    found = sl.finite_paths(clip, images, 1, [3], own, directions=some_directions(clip))
    assert found.missed == 0 and found.effects.abs().max() == 0


def test_neurons_come_in_groups(monkeypatch):
    _, clip = double()
    images, directions = tiny_images(clip), some_directions(clip, 3)
    mean = torch.zeros(clip.tokens, clip.neurons, dtype=torch.float64)
    arguments = (clip, images, 0, [5, 1, 8])
    one = sl.paths(clip, images, directions=directions)
    whole, finite = (
        sl.paths_of(*arguments),
        sl.finite_paths(*arguments, mean, directions=directions),
    )
    for place, name in (
        ("all_paths", "DIRECTIONS_PER_PASS"),
        ("all_paths", "NEURONS_PER_PASS"),
        ("all_paths", "IMAGES_PER_PASS"),
        ("finite_paths", "COPIES_PER_PASS"),
    ):
        monkeypatch.setattr(f"secondlens.effects.{place}.{name}", 2)
    again = sl.paths(clip, images, directions=directions, batch_size=2)
    assert close(again[1], one[1], 1e-13)
    assert close(sl.paths_of(*arguments), whole, 1e-13)
    once_more = sl.finite_paths(*arguments, mean, directions=directions)
    assert close(once_more.effects, finite.effects, 1e-12)


# -- use -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_precisions(dtype):
    exact = double()[1]
    clip = from_open_clip(tiny_model(dtype=dtype))
    images, directions = tiny_images(clip), some_directions(exact)
    found = sl.paths(clip, images, directions=directions)
    expected = sl.paths(exact, images.double(), directions=directions)
    for layer in found.layers:
        assert found[layer].dtype == torch.float32
        ours, theirs = found[layer].double(), expected[layer]
        if dtype == torch.float32:
            assert close(ours, theirs, 1e-5)
        assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999


def test_value_paths_of_the_last_layer_are_none():
    clip = from_open_clip(tiny_model())
    rows = some_directions(clip)
    found = sl.paths(clip, tiny_images(clip), directions=rows, layers=[2], classes="value")
    assert found[2].shape == (3, 2, 48, 1) and not found[2].any()


def test_texts_are_unit_directions():
    clip = from_open_clip(tiny_model(), tokenizer=tiny_tokenizer)
    images = tiny_images(clip)
    found = sl.paths(clip, images, ["a ship", "no ship"], layers=[1])
    rows = clip.encode_text(["a ship", "no ship"])
    assert close(found[1], sl.paths(clip, images, directions=rows, layers=[1])[1], 1e-6)
    assert found.image_ids == ("0", "1", "2") and not found.skipped
    with pytest.raises(sl.SecondLensError, match="no paths of layer 0, only of 1"):
        found[0]


def test_pictures_that_cannot_be_read_are_listed():
    clip = from_open_clip(tiny_model())
    with pytest.raises(sl.SecondLensError, match="none of the pictures"):
        sl.paths(clip, Unreadable(), directions=some_directions(clip))


def test_mistakes():
    clip = from_open_clip(tiny_model())
    images, rows = tiny_images(clip), some_directions(clip)
    mean = torch.zeros(clip.tokens, clip.neurons)
    for wrong, message in (
        ({}, "give texts or directions, and not both"),
        ({"texts": ["a"], "directions": rows}, "give texts or directions, and not both"),
        ({"directions": rows[:, :3]}, r"\[directions, 12\], and these are \[2, 3\]"),
        ({"directions": rows[0]}, r"these are \[12\]"),
        ({"directions": rows, "layers": [3]}, "no layer 3"),
        ({"directions": rows, "layers": []}, "no layers are named"),
        ({"directions": rows, "classes": "norm"}, "classes .* 'all' or 'value'"),
    ):
        with pytest.raises(sl.SecondLensError, match=message):
            sl.paths(clip, images, **wrong)
    for arguments, options, message in (
        ((3, [0], mean), {}, "no layer 3"),
        ((0, [48], mean), {}, "no neuron 48"),
        ((0, [], mean), {}, "no neurons"),
        ((0, [1], mean[1:]), {}, "mean needs a row"),
        ((0, [1], mean), {"tolerance": 0.0}, "more than 0"),
        ((0, [1], mean), {"nodes": 0}, "at least 1 node"),
    ):
        with pytest.raises(sl.SecondLensError, match=message):
            sl.finite_paths(clip, images, *arguments, directions=rows, **options)
    with pytest.raises(sl.SecondLensError, match="no neuron 48"):
        sl.paths_of(clip, images, 0, [48])


def test_a_model_with_another_mlp_is_refused():
    model = tiny_model()
    block = model.visual.transformer.resblocks[1]
    block.mlp.c_fc = nn.Sequential(block.mlp.c_fc).eval()
    clip = from_open_clip(model)
    with pytest.raises(sl.SecondLensError, match="block 1 read through a Sequential"):
        sl.paths(clip, tiny_images(clip), directions=some_directions(clip))


def test_the_model_is_as_it_was():
    _, clip = double()
    images = tiny_images(clip)
    before = clip.encode_image(images)
    sl.paths(clip, images, directions=some_directions(clip))
    for module in clip.model.modules():
        assert not module._forward_hooks and "forward" not in vars(module)
    assert torch.equal(clip.encode_image(images), before)
    assert not any(parameter.grad is not None for parameter in clip.model.parameters())


def test_gradients_of_one_change_are_those_of_neurons():
    _, clip = double()
    images, directions = tiny_images(clip), some_directions(clip)
    tower = linearise(clip, images)
    layers = [0, 2]
    found = dict(backward(tower, directions, layers))
    assert list(found) == [2, 0]
    assert found[0].shape == (3, 2, 48, 7)


# -- attention ----------------------------------------------------------------------------------


def test_attention_is_what_the_model_computes():
    model, clip = double()
    images = tiny_images(clip)
    found = sl.attention(clip, images)
    assert found.shape == (3, 3, 3, 5, 5)
    for layer, block in enumerate(model.visual.transformer.resblocks):
        seen = []
        handle = block.ln_1.register_forward_hook(lambda m, i, o, seen=seen: seen.append(o))
        clip.encode_image(images)
        handle.remove()
        y = seen[0].detach()
        _, expected = block.attn.forward(y, y, y, need_weights=True, average_attn_weights=False)
        assert close(found[:, layer], expected.detach(), 1e-12)
