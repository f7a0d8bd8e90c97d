"""Every baseline against its formula, written out with loops over tokens, heads and units."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import sequence_first, tiny_images, tiny_model, tiny_tokenizer
from oracle import Run, split_heads
from PIL import Image

from secondlens.applications.segmentation.baselines import baselines
from secondlens.applications.segmentation.baselines.attention import raw_attention, rollout
from secondlens.applications.segmentation.baselines.first_order import textspan
from secondlens.applications.segmentation.baselines.gradients import chefer, grad_cam, legrad
from secondlens.applications.segmentation.baselines.last_block import (
    clear_clip,
    mask_clip,
    nac_clip,
    proxy_clip,
    sclip,
    seen_by,
)
from secondlens.applications.segmentation.baselines.relevance import lrp, partial_lrp
from secondlens.applications.segmentation.baselines.similarity import patch_similarity
from secondlens.applications.segmentation.baselines.surgery import clip_surgery
from secondlens.applications.segmentation.baselines.tower import run
from secondlens.errors import SecondLensError
from secondlens.models.open_clip.views import from_open_clip

CLOSE = {"rtol": 1e-5, "atol": 1e-9}


MODELS = {"quick gelu": {"quick_gelu": True}, "layer scale": {"ls_init_value": 0.4}}


@pytest.fixture(scope="module", params=[*MODELS, "sequence first"])
def models(request):
    """A model to take formulas literally on, and one of equal weights to view."""
    literal, viewed = (
        tiny_model(dtype=torch.float64, **MODELS.get(request.param, {})) for _ in range(2)
    )
    return literal, sequence_first(viewed) if request.param == "sequence first" else viewed


@pytest.fixture(scope="module")
def clip(models):
    return from_open_clip(models[1])


@pytest.fixture(scope="module")
def images(clip):
    return tiny_images(clip, 2)


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(4)
    return F.normalize(torch.randn(2, 12, dtype=torch.float64, generator=generator), dim=1)


@pytest.fixture(scope="module")
def literal(models, images):
    with torch.no_grad():
        return Literal(models[0], images)


class Literal:
    """What every step of every block computed, [images, tokens, ...], with no view in between."""

    def __init__(self, model, images):
        self.model, self.tower = model, model.visual
        self.blocks = self.tower.transformer.resblocks
        self.tokens = Run(model, images).streams[0]
        self.steps, self.slopes = [], {}
        self.forward(keep=True)

    def forward(self, added=None, keep=False):
        """Representations, with `added[j]` put on top of the attention maps of block j."""
        x = self.tokens
        for j, block in enumerate(self.blocks):
            attention = block.attn
            normal = block.ln_1(x)
            projected = F.linear(normal, attention.in_proj_weight, attention.in_proj_bias)
            query, key, value = (
                split_heads(each, attention.num_heads) for each in projected.chunk(3, dim=-1)
            )
            maps = (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1)
            if added is not None and j in added:
                maps = maps + added[j]
            mixed = maps @ value
            joined = mixed.transpose(1, 2).flatten(2)
            attended = block.ls_1(attention.out_proj(joined))
            middle = x + attended
            normal_2 = block.ln_2(middle)
            hidden = block.mlp.c_fc(normal_2)
            active = block.mlp.gelu(hidden)
            written = block.ls_2(block.mlp.c_proj(active))
            step = dict(locals())
            x = middle + written
            if keep:
                self.steps.append({**step, "end": x})
        return self.tower.ln_post(x[:, 0]) @ self.tower.proj

    def similarity(self, texts, added=None):
        return (F.normalize(self.forward(added), dim=-1) * texts).sum(-1)

    def attention(self):
        return [step["maps"] for step in self.steps]


@torch.no_grad()
def slopes(literal, texts, j, size=1e-5):
    """[images, heads, tokens, tokens]: central differences of the similarity by each entry."""
    if j in literal.slopes:
        return literal.slopes[j]
    maps = literal.steps[j]["maps"]
    slope = torch.zeros_like(maps)
    for h in range(maps.shape[1]):
        for i in range(maps.shape[2]):
            for t in range(maps.shape[3]):
                step = torch.zeros_like(maps)
                step[:, h, i, t] = size
                up, down = (
                    literal.similarity(texts, {j: step}),
                    literal.similarity(texts, {j: -step}),
                )
                slope[:, h, i, t] = (up - down) / (2 * size)
    literal.slopes[j] = slope
    return slope


def linear_relevance(x, weight, output, relevance, rule):
    """Bach et al. 2015: unit by unit, the share of each input in what arrives at the unit."""
    arrived = torch.zeros_like(x)
    for unit in range(len(weight)):
        parts = x * weight[unit]
        if rule == "plus":
            parts = parts.clamp(min=0)
            whole = parts.sum(-1, keepdim=True)
        else:
            whole = output[..., unit, None]
        arrived += parts / whole * relevance[..., unit, None]
    return arrived


def norm_relevance(norm, x, output, relevance):
    """The LayerNorm as a matrix, with the scale it had at x."""
    width = x.shape[-1]
    sigma = (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    centring = torch.eye(width, dtype=x.dtype) - 1 / width
    arrived = torch.zeros_like(x)
    for unit in range(width):
        parts = x * centring[unit] * norm.weight[unit] / sigma
        arrived += parts / output[..., unit, None] * relevance[..., unit, None]
    return arrived


def folded(scale, weight):
    """Layer scale belongs to the weights before it."""
    return scale.gamma[:, None] * weight if hasattr(scale, "gamma") else weight


@torch.no_grad()
def relevances(literal, texts, rule):
    """Relevance of block 0's input, and of each block's attention maps, message by message."""
    tower, x = literal.tower, literal.steps[-1]["end"]
    relevance = torch.zeros_like(x)
    normal = tower.ln_post(x[:, 0])
    at_output = normal * (texts @ tower.proj.T)
    relevance[:, 0] = norm_relevance(tower.ln_post, x[:, 0], normal, at_output)
    of_maps = []
    for step in reversed(literal.steps):
        block, end = step["block"], step["end"]
        through_mlp = relevance * step["written"] / end
        relevance = relevance * step["middle"] / end
        weight = folded(block.ls_2, block.mlp.c_proj.weight)
        back = linear_relevance(step["active"], weight, step["written"], through_mlp, rule)
        back = linear_relevance(step["normal_2"], block.mlp.c_fc.weight, step["hidden"], back, rule)
        relevance = relevance + norm_relevance(block.ln_2, step["middle"], step["normal_2"], back)
        through_attention = relevance * step["attended"] / step["middle"]
        relevance = relevance * step["x"] / step["middle"]
        weight = folded(block.ls_1, block.attn.out_proj.weight)
        back = linear_relevance(step["joined"], weight, step["attended"], through_attention, rule)
        share = split_heads(back, block.attn.num_heads) / step["mixed"]
        of_maps.insert(0, step["maps"] * torch.einsum("bhie,bhte->bhit", share, step["value"]))
        of_value = step["value"] * torch.einsum("bhie,bhit->bhte", share, step["maps"])
        back = linear_relevance(
            step["normal"],
            block.attn.in_proj_weight.chunk(3)[2],
            step["projected"].chunk(3, dim=-1)[2],
            of_value.transpose(1, 2).flatten(2),
            rule,
        )
        relevance = relevance + norm_relevance(block.ln_1, step["x"], step["normal"], back)
    return relevance, of_maps


def test_raw_attention(clip, literal, images, texts):
    last, before = literal.attention()[-1], literal.attention()[-2]
    expected = sum(last[:, h, 0, 1:] for h in range(3)) / 3
    torch.testing.assert_close(raw_attention(clip, images, texts).flatten(1), expected, **CLOSE)
    both = (expected + sum(before[:, h, 0, 1:] for h in range(3)) / 3) / 2
    found = raw_attention(clip, images, texts, layers=2).flatten(1)
    torch.testing.assert_close(found, both, **CLOSE)


@pytest.mark.parametrize("first", [0, 1])
def test_rollout(clip, literal, images, texts, first):
    product = torch.eye(5, dtype=torch.float64)
    for maps in literal.attention()[first:]:
        product = (0.5 * maps.mean(1) + 0.5 * torch.eye(5)) @ product
    found = rollout(clip, images, texts, first=first)
    torch.testing.assert_close(found.flatten(1), product[:, 0, 1:], **CLOSE)


@pytest.mark.parametrize("layer", [-1, 1])
def test_grad_cam(clip, literal, images, texts, layer):
    slope = slopes(literal, texts, layer % 3)[:, :, 0, 1:]
    maps = literal.attention()[layer][:, :, 0, 1:]
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for h in range(3):
        expected += slope[:, h].mean(-1, keepdim=True) * maps[:, h]
    found = grad_cam(clip, images, texts, layer=layer).flatten(1)
    torch.testing.assert_close(found, expected.clamp(min=0), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rule", ["plus", "zero"])
def test_lrp_and_partial_lrp(clip, literal, images, texts, rule):
    of_tokens, of_maps = relevances(literal, texts, rule)
    found = lrp(clip, images, texts, rule=rule).flatten(1)
    torch.testing.assert_close(found, of_tokens.sum(-1)[:, 1:], **CLOSE)
    expected = of_maps[-1][:, :, 0, 1:].clamp(min=0).mean(1)
    found = partial_lrp(clip, images, texts, rule=rule).flatten(1)
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize(("rule", "first"), [("plus", 0), ("zero", 1)])
def test_chefer(clip, literal, images, texts, rule, first):
    of_maps = relevances(literal, texts, rule)[1]
    product = torch.eye(5, dtype=torch.float64)
    for j in range(first, 3):
        weighted = (slopes(literal, texts, j) * of_maps[j]).clamp(min=0).mean(1)
        product = (torch.eye(5) + weighted) @ product
    found = chefer(clip, images, texts, rule=rule, first=first).flatten(1)
    torch.testing.assert_close(found, product[:, 0, 1:], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("layers", [None, 1])
def test_textspan(clip, literal, images, texts, layers):
    tower, end = literal.tower, literal.steps[-1]["end"][:, 0]
    sigma = (end.var(-1, correction=0) + tower.ln_post.eps).sqrt()
    length = literal.forward().norm(dim=-1)
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for step in literal.steps[-(layers or 3) :]:
        block = step["block"]
        for h in range(3):
            rows = block.attn.out_proj.weight[:, 8 * h : 8 * h + 8]
            for t in range(1, 5):
                moved = step["maps"][:, h, 0, t, None] * step["value"][:, h, t]
                added = block.ls_1(moved @ rows.T)
                centred = (added - added.mean(-1, keepdim=True)) / sigma[:, None]
                reached = (centred * tower.ln_post.weight) @ tower.proj
                expected[:, t - 1] += (reached * texts).sum(-1) / length
    found = textspan(clip, images, texts, layers=layers).flatten(1)
    torch.testing.assert_close(found, expected.detach(), **CLOSE)


def test_patch_similarity(clip, literal, images, texts):
    tower = literal.tower
    embedded = tower.ln_post(literal.steps[-1]["end"][:, 1:]) @ tower.proj
    expected = F.cosine_similarity(embedded, texts[:, None], dim=-1).detach()
    found = patch_similarity(clip, images, texts).flatten(1)
    torch.testing.assert_close(found, expected, **CLOSE)


def looked_at(step, scores):
    """What the block's attention writes where token i looks at token t by `scores`, one by one."""
    block, value = step["block"], step["value"]
    images, heads, tokens, width = value.shape
    mixed = torch.zeros_like(value)
    for b in range(images):
        for h in range(heads):
            for i in range(tokens):
                weights = scores(b, h, i)
                for t in range(tokens):
                    mixed[b, h, i] += weights[t] * value[b, h, t]
    joined = mixed.transpose(1, 2).reshape(images, tokens, heads * width)
    return block.ls_1(block.attn.out_proj(joined))


def like_one_another(*vectors):
    """The sum over kinds of vectors of softmax(<v_i, v_t> / sqrt(width))."""

    def scores(b, h, i):
        total = 0
        for each in vectors:
            products = [each[b, h, i] @ each[b, h, t] for t in range(each.shape[2])]
            total = total + (torch.stack(products) / each.shape[3] ** 0.5).softmax(0)
        return total

    return scores


def own_values(b, h, i):
    return torch.eye(5, dtype=torch.float64)[i]


def near_and_alike(key, std):
    def scores(b, h, i):
        products = (
            torch.stack([key[b, h, i] @ key[b, h, t] for t in range(5)]) / key.shape[3] ** 0.5
        )
        if i > 0:
            for t in range(1, 5):
                rows, columns = (i - 1) // 2 - (t - 1) // 2, (i - 1) % 2 - (t - 1) % 2
                products[t] += torch.tensor(-(rows**2 + columns**2) / (2 * std**2)).exp()
        return products.softmax(0)

    return scores


def read_off(literal, states, texts):
    tower = literal.tower
    embedded = tower.ln_post(states[:, 1:]) @ tower.proj
    return F.cosine_similarity(embedded, texts[:, None], dim=-1).detach()


@pytest.mark.parametrize(
    ("method", "residual", "block"),
    [
        *((each, each in (mask_clip, sclip), -1) for each in (mask_clip, sclip, clear_clip)),
        *((nac_clip, residual, block) for residual in (False, True) for block in (-1, 1)),
    ],
)
@torch.no_grad()
def test_last_block(clip, literal, images, texts, method, residual, block):
    step = literal.steps[block % 3]
    scores = {
        mask_clip: own_values,
        sclip: like_one_another(step["query"], step["key"]),
        clear_clip: like_one_another(step["query"]),
        nac_clip: near_and_alike(step["key"], 5),
    }[method]
    states = looked_at(step, scores)
    if residual:
        middle = step["x"] + states
        states = middle + step["block"].ls_2(step["block"].mlp(step["block"].ln_2(middle)))
    options = {} if method is not nac_clip else {"residual": residual, "block": block}
    found = method(clip, images, texts, **options).flatten(1)
    torch.testing.assert_close(found, read_off(literal, states, texts), **CLOSE)


@pytest.mark.parametrize("blocks", [None, 2])
@torch.no_grad()
def test_clip_surgery(clip, literal, images, texts, blocks):
    steps = literal.steps[-(blocks or 1) :]
    path = steps[0]["x"]
    for step in steps:
        path = path + looked_at(step, like_one_another(step["value"]))
    found = clip_surgery(clip, images, texts, blocks=blocks).flatten(1)
    torch.testing.assert_close(found, read_off(literal, path, texts), **CLOSE)


@pytest.mark.parametrize("layers", [1, 2])
def test_legrad(clip, literal, images, texts, layers):
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for step in literal.steps[-layers:]:
        block, size = step["block"], 1e-5

        def score(added, step=step, block=block):
            mixed = ((step["maps"] + added) @ step["value"]).transpose(1, 2).flatten(2)
            middle = step["x"] + block.ls_1(block.attn.out_proj(mixed))
            end = middle + block.ls_2(block.mlp(block.ln_2(middle)))
            read = literal.tower.ln_post(end.mean(1)) @ literal.tower.proj
            return F.cosine_similarity(read, texts, dim=-1)

        with torch.no_grad():
            for h in range(3):
                for i in range(5):
                    for t in range(1, 5):
                        moved = torch.zeros_like(step["maps"])
                        moved[:, h, i, t] = size
                        slope = (score(moved) - score(-moved)) / (2 * size)
                        expected[:, t - 1] += slope.clamp(min=0) / 15
    found = legrad(clip, images, texts, layers=layers).flatten(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@torch.no_grad()
def test_proxy_clip(clip, literal, images, texts):
    other_model = tiny_model(seed=3, dtype=torch.float64)
    other = from_open_clip(other_model)
    features = other_model.visual.ln_post(Literal(other_model, images).steps[-1]["end"][:, 1:])
    step = literal.steps[-1]

    def scores(b, h, i):
        cosines = torch.zeros(4, 4, dtype=torch.float64)
        for p in range(4):
            for q in range(4):
                cosines[p, q] = F.cosine_similarity(features[b, p], features[b, q], dim=0)
        weights = torch.zeros(5, dtype=torch.float64)
        if i == 0:
            return weights
        level = 1.2 * cosines.mean()
        kept = [t for t in range(4) if cosines[i - 1, t] >= level or t == i - 1]
        for t in kept:
            weights[t + 1] = (3 * (cosines[i - 1, t] - level)).exp()
        return weights / weights.sum()

    expected = read_off(literal, looked_at(step, scores), texts)
    found = proxy_clip(clip, images, texts, second=other).flatten(1)
    torch.testing.assert_close(found, expected, **CLOSE)


@torch.no_grad()
def test_a_second_model_has_its_own_size_colours_and_grid(texts):
    def prepared(size, mean, std):
        def preprocess(picture):
            pixels = np.asarray(picture.resize((size, size), Image.Resampling.BOX)) / 255
            return (torch.from_numpy(pixels).permute(2, 0, 1).double() - mean) / std

        return preprocess

    sizes = {16: prepared(16, 0.5, 0.25), 32: prepared(32, 0.1, 0.7)}
    clip, other = (
        from_open_clip(tiny_model(dtype=torch.float64, image_size=size), each, tiny_tokenizer)
        for size, each in sizes.items()
    )
    squares = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    picture = Image.fromarray(squares.repeat(8, 0).repeat(8, 1))
    found = seen_by(clip, other, clip.prepare([picture]))
    coarse = F.interpolate(sizes[32](picture)[None], (16, 16), mode="area")
    expected = F.interpolate(coarse, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(found, expected)
    assert torch.equal(seen_by(clip, clip, found[..., :16, :16]), found[..., :16, :16])
    maps = proxy_clip(clip, [picture], texts[:1], second=other)
    assert maps.shape == (1, *other.grid) != (1, *clip.grid)


@pytest.mark.parametrize(
    "method",
    [
        *(textspan, patch_similarity, mask_clip, sclip),
        *(clear_clip, nac_clip, clip_surgery, proxy_clip),
    ],
)
def test_several_texts_at_once(clip, images, texts, method):
    found = method(clip, images, texts.expand(2, 2, -1))
    for number, text in enumerate(texts):
        one = method(clip, images, text.expand(2, -1))
        torch.testing.assert_close(found[:, number], one, **CLOSE)


@pytest.mark.parametrize("relevance", [None, "plus", "zero"])
def test_the_spelt_out_tower_computes_the_same_and_leaves_no_hooks(clip, images, relevance):
    before = clip.encode_image(images)
    found = run(clip, images, relevance=relevance).representation
    torch.testing.assert_close(found.detach(), before, rtol=1e-9, atol=1e-12)
    modules = list(clip.model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    assert torch.equal(clip.encode_image(images), before)


@pytest.mark.parametrize("method", baselines, ids=baselines.names)
def test_images_of_a_batch_do_not_touch_one_another(clip, images, texts, method):
    together = method(clip, images, texts)
    assert together.shape == (2, 2, 2)
    assert not together.requires_grad
    alone = method(clip, images[1:], texts[1:])
    torch.testing.assert_close(together[1:], alone, **CLOSE)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (raw_attention, {"layers": 0}, "0 blocks cannot be read: give from 1 to 3"),
        (raw_attention, {"layers": 4}, "4 blocks cannot be read: give from 1 to 3"),
        (textspan, {"layers": 0}, "0 blocks cannot be read"),
        (rollout, {"first": 3}, "no layer 3"),
        (chefer, {"first": -1}, "no layer -1"),
        (grad_cam, {"layer": 3}, "no layer 3"),
        (grad_cam, {"layer": -4}, "no layer -1"),
        (legrad, {"layers": 4}, "4 blocks cannot be read: give from 1 to 3"),
        (clip_surgery, {"blocks": 0}, "0 blocks cannot be read"),
        (nac_clip, {"block": 3}, "no layer 3"),
        (nac_clip, {"std": 0.0}, "a standard deviation of 0.0 patches is none"),
    ],
)
def test_blocks_that_do_not_exist(method, options, message):
    clip = from_open_clip(tiny_model())
    with pytest.raises(SecondLensError, match=message):
        method(clip, tiny_images(clip, 1), torch.ones(1, 12), **options)
