"""Edges between neurons and runs with held edges, against the network's own gradients and against a
run in which every receiver has a stream of its own."""

import pytest
import timm
import torch
from models import randomise, sequence_first, tiny_model, tiny_transformers_model

import secondlens as sl
from secondlens.data.reader import Reader
from secondlens.data.sources import as_source
from secondlens.effects.edges import (
    FLOWS,
    Means,
    Nodes,
    Sources,
    Unit,
    edges,
    frozen_worth,
    gradient,
    inputs_of,
    means,
)
from secondlens.effects.held_runs import held_run
from secondlens.effects.linearised import linearise
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.timm.views import from_timm
from secondlens.models.transformers.views import from_transformers
from secondlens.models.view import hooked

HEADS, LAYERS, NEURONS, TOKENS = 3, 3, 48, 5


def tiny_timm_tower():
    """A plain tower of timm with the shape of `tiny_model`, always the same."""
    shape = {"embed_dim": 24, "depth": LAYERS, "num_heads": HEADS, "mlp_ratio": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=8, num_classes=12, **shape
        )
        randomise(tower)
    return tower.double().eval()


FAMILIES = {
    "open_clip": lambda: from_open_clip(tiny_model(dtype=torch.float64)),
    "open_clip, sequence first": lambda: from_open_clip(
        sequence_first(tiny_model(dtype=torch.float64, ls_init_value=None))
    ),
    "open_clip, layer scale": lambda: from_open_clip(
        tiny_model(dtype=torch.float64, ls_init_value=0.5, quick_gelu=True)
    ),
    "transformers": lambda: from_transformers(tiny_transformers_model().double()),
    "timm": lambda: from_timm(tiny_timm_tower()),
}
EVERY_NEURON = tuple((layer, n) for layer in range(LAYERS) for n in range(NEURONS))
EVERY_HEAD = tuple((layer, h) for layer in range(LAYERS) for h in range(HEADS))
EVERYTHING = Nodes(neurons=EVERY_NEURON, heads=EVERY_HEAD)


@pytest.fixture(scope="module", params=FAMILIES)
def clip(request):
    return FAMILIES[request.param]()


@pytest.fixture(scope="module")
def images(clip):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def sources(clip, images):
    seen = Sources(clip)
    with hooked([], seen.hooks()):
        clip.encode_image(images)
    return seen


@pytest.fixture(scope="module")
def tower(clip, images):
    return linearise(clip, images)


@pytest.fixture(scope="module")
def direction():
    return torch.randn(12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def random_means(seed=3):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Means(
        images=1,
        activations={layer: drawn(TOKENS, NEURONS) for layer in range(LAYERS)},
        embedding=drawn(TOKENS, 24),
    )


def close(found, expected, tolerance=1e-10):
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def test_edges_add_up_to_the_classes_of_paths(clip, images, sources, tower, direction):
    found = edges(gradient(tower, direction), EVERYTHING, sources.activations, sources.embedding)
    paths = sl.paths(clip, images, directions=direction[None])
    expected = torch.cat([paths[layer][:, 0] for layer in range(LAYERS)], dim=1)
    count, heads = len(EVERY_NEURON), len(EVERY_HEAD)
    output, neurons, query, key = found.weights[:, :count].split([1, count, heads, heads], dim=2)
    by_class = dict(zip(paths.classes, expected.unbind(-1), strict=True))
    straight = by_class["direct"] + by_class["value"] + by_class["higher"]
    for these, those in (
        (output[..., 0], straight),
        (neurons.sum(-1), by_class["mlp"]),
        (query.sum(-1), by_class["query"]),
        (key.sum(-1), by_class["key"]),
    ):
        assert close(these, those)
    flows = dict(zip(FLOWS, found.flows.unbind(-1), strict=True))
    assert close(flows["norm"][:, :count], by_class["norm"])
    # embeddings too: all but the norm
    assert close(flows["output"], found.weights[:, :, 0])
    assert close(flows["mlp"], found.weights[:, :, 1 : 1 + count].sum(-1))
    assert close(flows["query"], found.weights[:, :, 1 + count : 1 + count + heads].sum(-1))
    assert close(flows["key"], found.weights[:, :, 1 + count + heads :].sum(-1))


def test_an_embedding_does_what_its_derivative_says(clip, sources, direction):
    step = 1e-5
    scores = []
    for sign in (1, -1):

        def moved(module, inputs, sign=sign):
            (x,) = inputs[:1]
            change = torch.zeros_like(sources.embedding)
            change[:, 3] = sign * step * sources.embedding[:, 3]
            return (x + clip.as_module(change), *inputs[1:])

        with hooked([], [(clip.blocks[0].module, moved)]):
            scores.append(clip.image_tower(torch.zeros(2, 3, 16, 16, dtype=torch.float64)))
    # the picture is another one: its own derivative
    seen = Sources(clip)
    blank = torch.zeros(2, 3, 16, 16, dtype=torch.float64)
    with hooked([], seen.hooks()):
        clip.encode_image(blank)
    other = linearise(clip, blank)
    found = edges(gradient(other, direction), Nodes(neurons=()), {}, sources.embedding)
    expected = (scores[0] - scores[1]) @ direction / (2 * step) / other.length
    assert close(found.flows[:, 3].sum(-1), expected, 1e-7)


class Literal:
    """The frozen network, one stream at a time, with scales and attention from some streams."""

    def __init__(self, clip, before, between, post):
        self.clip, self.before, self.between, self.post = clip, before, between, post

    def norm(self, norm, at, x, bias=True):
        sigma = (at.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
        y = (x - x.mean(-1, keepdim=True)) / sigma.detach() * norm.weight.detach()
        return y + norm.bias.detach() if bias else y

    def attention(self, layer):
        block = self.clip.blocks[layer]
        queries, keys = block.queries_and_keys(
            self.norm(block.ln_1, self.before[layer], self.before[layer])
        )
        return (queries @ keys.mT).softmax(-1).detach()

    def attended(self, layer, x, bias=True):
        block = self.clip.blocks[layer]
        y = self.norm(block.ln_1, self.before[layer], x, bias)
        written = block.output_bias * bias
        for head, attention in enumerate(self.attention(layer).unbind(1)):
            value = y @ block.value[head].T + block.value_bias[head] * bias
            written = written + attention @ value @ block.output[head]
        return x + written

    def read(self, layer, x, bias=True):
        """Inputs of the activation function."""
        block = self.clip.blocks[layer]
        y = self.norm(block.ln_2, self.between[layer], x, bias)
        return y @ block.mlp_input.weight.detach().T + block.mlp_input.bias.detach() * bias


def states(clip, images):
    before, between, post = {}, {}, []
    hooks = []
    for layer, block in enumerate(clip.blocks):
        for norm, into in ((block.ln_1, before), (block.ln_2, between)):

            def see(module, inputs, output, layer=layer, into=into):
                into[layer] = clip.batch_major(inputs[0])

            hooks.append((norm, see))
    hooks.append((clip.ln_post, lambda module, inputs, output: post.append(inputs[0])))
    with hooked(hooks):
        clip.encode_image(images)
    return before, between, clip.reader.pooled(post[0])


def worth_by_autograd(clip, images, layer, direction):
    """The gradient of the score, over the length, in all activations of a layer."""
    seen = []

    def see(module, inputs):
        activation = inputs[0].detach().requires_grad_()
        seen.append(activation)
        return (activation,)

    with torch.enable_grad(), hooked([], [(clip.blocks[layer].mlp_output, see)]):
        found = _with_gradient(clip, images)
        (found @ direction).sum().backward()
    return clip.batch_major(seen[0].grad) / found.detach().norm(dim=-1)[:, None, None]


def _with_gradient(clip, images):
    for parameter in clip.model.parameters():
        parameter.requires_grad_(True)
    return clip.image_tower(images)


PAIRS = [((0, 3), (1, 7)), ((0, 11), (2, 40)), ((1, 0), (2, 5)), ((0, 47), (2, 0))]


def test_edges_are_reading_times_worth(clip, images, sources, tower, direction):
    """What m reads of n in the frozen network, times the gain and what m's activation is worth."""
    found = edges(gradient(tower, direction), EVERYTHING, sources.activations, sources.embedding)
    literal = Literal(clip, *states(clip, images))
    for (layer, n), (later, m) in PAIRS:
        x = sources.activations[layer][:, :, n, None] * clip.blocks[layer].neuron_rows[n]
        for each in range(layer + 1, later + 1):
            x = literal.attended(each, x.detach(), bias=False)
        moved = literal.read(later, x, bias=False)[:, :, m]
        at = literal.read(later, literal.between[later])[:, :, m].requires_grad_()
        with torch.enable_grad():
            (gain,) = torch.autograd.grad(clip.blocks[later].activation(at).sum(), at)
        worth = worth_by_autograd(clip, images, later, direction)[:, :, m]
        expected = (moved * gain * worth).sum(1)
        weight = found.weights[:, layer * NEURONS + n, 1 + later * NEURONS + m]
        torch.testing.assert_close(weight, expected.detach(), rtol=1e-9, atol=1e-14)


def test_a_subset_has_the_edges_of_the_whole(sources, tower, direction):
    traced = gradient(tower, direction)
    whole = edges(traced, EVERYTHING, sources.activations, sources.embedding)
    some = Nodes(neurons=((0, 3), (0, 40), (1, 7), (2, 5)), heads=((0, 2), (1, 1), (2, 0), (2, 2)))
    found = edges(traced, some, sources.activations, sources.embedding)
    count, heads = len(EVERY_NEURON), len(EVERY_HEAD)
    rows = [EVERY_NEURON.index(each) for each in some.neurons]
    hot = [EVERY_HEAD.index(each) for each in some.heads]
    lines = [*rows, *range(count, count + TOKENS)]
    columns = [0, *(1 + row for row in rows), *(1 + count + at for at in hot)]
    columns += [1 + count + heads + at for at in hot]
    torch.testing.assert_close(found.weights, whole.weights[:, lines][:, :, columns])
    torch.testing.assert_close(found.flows, whole.flows[:, lines])


def test_heads_divide_an_edge(clip, images, sources, tower, direction):
    """With identities they add up; between neighbouring layers, a head is what it alone carries."""
    traced = gradient(tower, direction)
    found = edges(traced, EVERYTHING, sources.activations, sources.embedding, heads=True)
    assert found.by_head.shape == (2, LAYERS, HEADS, 3 * NEURONS + TOKENS, 1 + 3 * NEURONS)
    literal = Literal(clip, *states(clip, images))
    count = len(EVERY_NEURON)
    for (layer, n), (later, m) in PAIRS[2:3]:
        at, to = layer * NEURONS + n, 1 + later * NEURONS + m
        block = clip.blocks[later]
        write = sources.activations[layer][:, :, n, None] * clip.blocks[layer].neuron_rows[n]
        identity = literal.read(later, write.detach(), bias=False)[:, :, m]
        gain = tower.blocks[later].slope[:, :, m] * traced.worth[later][:, :, m]
        left = found.weights[:, at, to] - found.by_head[:, :, :, at, to].sum((1, 2))
        torch.testing.assert_close(left, (identity * gain).sum(1), rtol=1e-9, atol=1e-14)
        y = literal.norm(block.ln_1, literal.before[later], write.detach(), bias=False)
        for head, attention in enumerate(literal.attention(later).unbind(1)):
            x = attention @ (y @ block.value[head].T) @ block.output[head]
            part = (literal.read(later, x, bias=False)[:, :, m] * gain).sum(1)
            carried = found.by_head[:, later, head, at, to]
            torch.testing.assert_close(carried, part, rtol=1e-9, atol=1e-14)
    # the embeddings' identities to the first neurons, and everything of the last layer's
    last = slice(2 * NEURONS, count)
    assert not found.by_head[:, :, :, last].any()
    x = sources.embedding.detach()
    gain = tower.blocks[0].slope * traced.worth[0]
    expected = literal.read(0, x, bias=False) * gain
    left = found.weights[:, count:, 1 : 1 + NEURONS] - found.by_head[
        :, :, :, count:, 1 : 1 + NEURONS
    ].sum((1, 2))
    torch.testing.assert_close(left, expected, rtol=1e-8, atol=1e-13)


def test_a_neuron_as_the_target(clip, images, sources, tower):
    unit = Unit(layer=2, neuron=5, token=3)
    traced = gradient(tower, unit)
    assert sorted(traced.worth) == [0, 1] and traced.last == 2
    found = edges(traced, EVERYTHING, sources.activations, sources.embedding)
    seen = []
    with torch.enable_grad():
        block = clip.blocks[0]

        def see(module, inputs):
            seen.append(inputs[0].detach().requires_grad_())
            return (seen[-1],)

        ends = []
        with hooked(
            [],
            [(block.mlp_output, see), (clip.blocks[2].mlp_output, lambda m, i: ends.append(i[0]))],
        ):
            _with_gradient(clip, images)
        clip.batch_major(ends[0])[:, 3, 5].sum().backward()
    expected = (clip.batch_major(seen[0].grad) * sources.activations[0].detach()).sum(1)
    assert close(found.flows[:, :NEURONS].sum(-1), expected)
    assert close(traced.of_neurons(0, sources.activations[0]), expected)
    assert not found.weights[:, 2 * NEURONS : 3 * NEURONS].any()


def test_worth_with_attention_and_scales_frozen(clip, images, tower, direction):
    """By differentiation of the frozen network."""
    found = frozen_worth(tower, direction)
    literal = Literal(clip, *states(clip, images))
    for layer in range(LAYERS):
        activation = tower.activations[layer].clone().requires_grad_()
        with torch.enable_grad():
            block = clip.blocks[layer]
            x = literal.between[layer] + activation @ block.neuron_rows + block.mlp_bias
            for later in range(layer + 1, LAYERS):
                x = literal.attended(later, x)
                block = clip.blocks[later]
                p = block.activation(literal.read(later, x))
                x = x + p @ block.neuron_rows + block.mlp_bias
            read = literal.norm(clip.ln_post, literal.post, x[:, 0]) @ clip.projection
            (expected,) = torch.autograd.grad((read @ direction / tower.length).sum(), activation)
        assert close(found[layer], expected)
    unit = frozen_worth(tower, Unit(layer=1, neuron=7, token=2))
    assert list(unit) == [0]
    only = edges(
        gradient(tower, Unit(layer=1, neuron=7, token=2)),
        EVERYTHING,
        tower.activations,
        literal.before[0],
    )
    assert close((unit[0] * tower.activations[0]).sum(1), only.weights[:, :NEURONS, 0])


def test_what_heads_matter(tower, direction):
    traced = gradient(tower, direction)
    found = traced.of_heads()
    step = 1e-6
    for layer, head in ((2, 1), (1, 0)):
        block = tower.blocks[layer]
        scores = block.queries @ block.keys.mT
        written = []
        for sign in (1, -1):
            moved = scores.clone()
            moved[:, head] *= 1 + sign * step
            written.append((moved.softmax(-1) @ block.values).transpose(1, 2).flatten(2))
        change = (written[0] - written[1]) / (2 * step) @ block.output_rows
        expected = (change * traced.between[layer]).sum((1, 2))
        torch.testing.assert_close(found[:, layer, head], expected, rtol=1e-6, atol=1e-9)


# -- held edges ----------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [False, True])
def test_with_everything_kept_it_is_the_network(clip, sources, tower, free):
    kept = torch.ones(3 * NEURONS + TOKENS, 1 + 3 * NEURONS, dtype=torch.bool)
    found = held_run(tower, sources.embedding, random_means(), EVERYTHING, kept, free=free)
    assert close(found.representation, tower.representation, 1e-12)
    assert close(found.length, tower.length, 1e-12)
    for layer, block in enumerate(clip.blocks):
        assert close(block.activation(found.inputs[layer]).detach(), sources.activations[layer])
        assert close(inputs_of(tower, layer, list(range(NEURONS))), found.inputs[layer])


def literally_held(clip, images, embedding, means, nodes, kept, free):
    """Every receiver has a stream of its own; with free attention, scales and attention are those
    of the stream to which all kept nodes write."""
    count = len(nodes.neurons)
    given = states(clip, images)
    place = {neuron: row for row, neuron in enumerate(nodes.neurons)}
    activations = {}

    def stream_of(receiver, layer, literal, half):
        """The stream before the block, or before its MLP, as one receiver has it; None has all."""

        def holds(source):
            return receiver is None or bool(kept[source, receiver])

        x = torch.stack(
            [
                embedding[:, t] if holds(count + t) else means.embedding[t].expand(len(images), -1)
                for t in range(TOKENS)
            ],
            dim=1,
        )
        for each in range(layer + 1):
            if each == layer and not half:
                return x
            x = literal.attended(each, x)
            if each == layer:
                return x
            p = means.activations[each].expand(len(images), -1, -1).clone()
            for (own, n), row in place.items():
                if own == each and holds(row):
                    p[:, :, n] = activations[own, n]
            x = x + p @ clip.blocks[each].neuron_rows + clip.blocks[each].mlp_bias
        return x

    before, between = ({}, {}) if free else given[:2]
    literal = Literal(clip, before, between, None)
    for layer in range(clip.layers):
        if free:
            before[layer] = stream_of(None, layer, literal, half=False)
            between[layer] = stream_of(None, layer, literal, half=True)
        for (own, n), row in place.items():
            if own == layer:
                x = literal.read(layer, stream_of(1 + row, layer, literal, half=True))[:, :, n]
                activations[own, n] = clip.blocks[layer].activation(x).detach()

    def end(receiver):
        x = stream_of(receiver, clip.layers - 1, literal, half=True)
        p = means.activations[clip.layers - 1].expand(len(images), -1, -1).clone()
        for (own, n), row in place.items():
            if own == clip.layers - 1 and (receiver is None or kept[row, receiver]):
                p[:, :, n] = activations[own, n]
        return (x + p @ clip.blocks[-1].neuron_rows + clip.blocks[-1].mlp_bias)[:, 0]

    post = end(None) if free else given[2]
    found = literal.norm(clip.ln_post, post, end(0)) @ clip.projection
    return found if clip.read_offset is None else found + clip.read_offset()


@pytest.mark.parametrize("free", [False, True])
def test_held_edges_against_streams_of_their_own(clip, images, sources, tower, free):
    nodes = Nodes(neurons=((0, 3), (0, 40), (1, 7), (1, 9), (2, 5)))
    generator = torch.Generator().manual_seed(8)
    kept = torch.rand(5 + TOKENS, 6, generator=generator) < 0.6
    means, embedding = random_means(), sources.embedding.detach()
    found = held_run(tower, embedding, means, nodes, kept, free=free)
    expected = literally_held(clip, images, embedding, means, nodes, kept, free)
    assert close(found.representation, expected.detach(), 1e-10)


def test_means_are_those_of_all_images(clip, images):
    more = torch.cat([images, images.flip(0) * 0.5, images[:1] + 1])
    reader = Reader(source=as_source(more), clip=clip, batch_size=2)
    found = means(clip, reader)
    seen = Sources(clip)
    with hooked([], seen.hooks()):
        clip.encode_image(more)
    assert found.images == 5
    assert close(found.embedding, seen.embedding.mean(0))
    assert all(close(found.activations[each], seen.activations[each].mean(0)) for each in range(3))
