"""Virtual weights against the linearised network, and co-activation against numpy."""

import numpy as np
import pytest
import torch
from models import tiny_model, tiny_transformers_model

import secondlens as sl
from secondlens.effects.edges import Sources
from secondlens.effects.linearised import linearise
from secondlens.effects.virtual_weights import inputs, outputs
from secondlens.models.open_clip.views import from_open_clip
from secondlens.models.transformers.views import from_transformers
from secondlens.models.view import hooked

FAMILIES = {
    "open_clip": lambda: from_open_clip(tiny_model(dtype=torch.float64, ls_init_value=0.5)),
    "transformers": lambda: from_transformers(tiny_transformers_model().double()),
}
NEURONS = 48


@pytest.fixture(scope="module", params=FAMILIES)
def clip(request):
    return FAMILIES[request.param]()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 3, 16, 16, generator=generator, dtype=torch.float64)


def test_a_weight_is_what_the_network_reads_at_a_scale_of_one(clip, images):
    tower = linearise(clip, images[:1])
    row = clip.blocks[0].neuron_rows[5]
    stack = row.expand(1, clip.tokens, 1, -1)
    found = {(layer, block, head): weights for layer, block, head, weights in outputs(clip, 0, 5)}
    assert len(found) == 2 + 3 * (1 + 2)
    for later in (1, 2):
        norm = tower.blocks[later].norm_2
        reads = tower.blocks[later].neuron_inputs
        straight = (norm.linear(stack) @ reads.T)[0, 2, 0] * norm.sigma[0, 2, 0]
        torch.testing.assert_close(found[later, None, None], straight)
        for block in range(1, later + 1):
            edges = tower.blocks[block]
            values = (edges.norm_1.linear(stack) @ edges.value_rows.T)[0, 1, 0]
            values = (values * edges.norm_1.sigma[0, 1, 0]).unflatten(0, (3, -1))
            for head in range(3):
                written = values[head] @ edges.output_rows.unflatten(0, (3, -1))[head]
                read = norm.linear(written.expand(1, clip.tokens, 1, -1)) @ reads.T
                expected = read[0, 3, 0] * norm.sigma[0, 3, 0]
                torch.testing.assert_close(found[later, block, head], expected)


def test_inputs_are_outputs_seen_from_the_other_end(clip):
    for layer, block, head, weights in inputs(clip, 2, 7):
        for neuron in (0, 11, 47):
            there = outputs(clip, layer, neuron)
            (expected,) = (w[7] for la, b, h, w in there if (la, b, h) == (2, block, head))
            torch.testing.assert_close(weights[neuron], expected)


def test_the_strongest_are_chosen_of_all(clip):
    found = sl.connections(clip, None, 1, 7, top=4)
    assert found.neuron.name == "L1 #7"
    every = [
        (abs(float(w)), layer, n, block, head)
        for layer, block, head, weights in (*inputs(clip, 1, 7),)
        for n, w in enumerate(weights)
    ]
    for shown, straight in ((found.inputs, True), (found.inputs_by_heads, False)):
        best = sorted((each for each in every if (each[3] is None) == straight), reverse=True)[:4]
        assert [(each.layer, each.neuron) for each in shown] == [each[1:3] for each in best]
        np.testing.assert_allclose([abs(each.weight) for each in shown], [b[0] for b in best])
    assert all(each.layer == 2 and each.coactivation is None for each in found.outputs)
    assert not sl.connections(clip, None, 2, 0).outputs
    assert not sl.connections(clip, None, 0, 0).inputs


def test_coactivation_is_a_correlation(clip, images):
    found = sl.connections(clip, None, 1, 7, images, top=3)
    seen = Sources(clip)
    with hooked([], seen.hooks()):
        clip.encode_image(images)
    own = seen.activations[1][:, :, 7].detach().numpy()
    for each in (*found.inputs, *found.outputs_by_heads):
        other = seen.activations[each.layer][:, :, each.neuron].detach().numpy()
        one, two = (own, other) if each.head is None else (own.mean(1), other.mean(1))
        expected = np.corrcoef(one.ravel(), two.ravel())[0, 1]
        assert each.coactivation == pytest.approx(expected, abs=1e-9)
    assert found.document()["neuron"] == {"layer": 1, "neuron": 7}


def test_batches_do_not_matter(clip, images):
    many = torch.cat([images * (1 + each / 7) for each in range(12)])
    found = sl.connections(clip, None, 1, 7, many, top=1)
    seen = Sources(clip)
    with hooked([], seen.hooks()):
        clip.encode_image(many)
    (each,) = found.outputs
    both = [seen.activations[1][:, :, 7], seen.activations[2][:, :, each.neuron]]
    expected = np.corrcoef(*(x.detach().numpy().ravel() for x in both))[0, 1]
    assert each.coactivation == pytest.approx(expected, abs=1e-9)


def test_mistakes_are_told(clip):
    with pytest.raises(sl.SecondLensError, match="no neuron 48"):
        sl.connections(clip, None, 1, NEURONS)
    with pytest.raises(sl.SecondLensError, match="layer"):
        sl.connections(clip, None, 3, 0)
    with pytest.raises(sl.SecondLensError, match="at least 1 connection"):
        sl.connections(clip, None, 1, 0, top=0)
