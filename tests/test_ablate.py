"""Ablations against materialised effects, one image and neuron at a time."""

import math

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from models import Unreadable, tiny_images, tiny_model, tiny_tokenizer

from secondlens.applications.ablation.accuracy import BASELINE, EFFECTS, KINDS, Ablation, ablate
from secondlens.applications.ablation.all_paths import ablate_paths
from secondlens.applications.ablation.readings import Direct, Indirect, SecondOrder
from secondlens.applications.ablation.recoding import TextCodes
from secondlens.data.embedding import normalise
from secondlens.data.labelled import ranks
from secondlens.data.vocabularies import vocabulary
from secondlens.effects.ablated_runs import indirect, stop_after
from secondlens.effects.all_paths import CLASSES as PATHS
from secondlens.effects.finite_paths import finite_paths
from secondlens.effects.value_paths import direct, second_order
from secondlens.errors import SecondLensError
from secondlens.intervals import of_mean
from secondlens.lens.fitting import fit
from secondlens.models.open_clip.views import from_open_clip
from secondlens.sparse.pursuit import omp

CLASSES = 5
EXACT = ("all", "large", "small", "first component", "unsigned")


@pytest.fixture(scope="module")
def clip():
    model = tiny_model(dtype=torch.float64, layers=4)
    return from_open_clip(model, tokenizer=tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def images(clip):
    return tiny_images(clip, 40, seed=8)


@pytest.fixture(scope="module")
def reference(clip):
    return tiny_images(clip, 60, seed=9)


@pytest.fixture(scope="module")
def lens(clip, reference):
    return fit(clip, reference, top=6)


@pytest.fixture(scope="module")
def classifier():
    random = torch.randn(CLASSES, 12, dtype=torch.float64, generator=torch.Generator())
    return F.normalize(random, dim=1)


@pytest.fixture(scope="module")
def codes(clip):
    words = ["ship", "car", "dog", "cat", "sea", "sky", "snow"]
    return TextCodes(clip, vocabulary(words, name="words"), [1, 3])


def literally(embeddings, effects, mean, directions, threshold, kind):
    """Embeddings after ablation, one image and neuron at a time."""
    embeddings = embeddings.clone()
    for i in range(len(embeddings)):
        for n in range(effects.shape[1]):
            away = effects[i, n] - mean[n]
            along = away @ directions[n]
            large = away.norm() > threshold[n]
            if kind == "all" or (kind == "large" and large) or (kind == "small" and not large):
                embeddings[i] -= away
            if kind == "first component":
                embeddings[i] -= away - along * directions[n]
            if kind == "unsigned":
                embeddings[i] -= away - abs(along) * directions[n]
    return embeddings


def ranked(embeddings, classifier, labels):
    """The place of each label in a sorted list of scores."""
    order = (embeddings @ classifier.T).argsort(dim=1, descending=True)
    return (order == torch.tensor(labels)[:, None]).nonzero()[:, 1]


def embeddings_of(clip, images):
    return F.normalize(clip.encode_image(images), dim=1)


def fitted(effects):
    """Mean, direction and threshold of materialised effects, by numpy's SVD of each neuron."""
    mean = effects.mean(0)
    directions, thresholds = torch.zeros_like(mean), []
    for n in range(effects.shape[1]):
        away = effects[:, n] - mean[n]
        top = away.norm(dim=1).topk(2).indices  # 2 % of 60 images, and at least 2
        direction = torch.from_numpy(np.linalg.svd(away[top].numpy())[2][0])
        votes = (away[top] @ direction).sign().sum()
        side = votes if votes else (away[top] @ direction).sum()
        directions[n] = direction * (-1 if side < 0 else 1)
        thresholds.append(away[top].norm(dim=1).min() * (1 - 1e-9))
    return mean, directions, torch.stack(thresholds)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("kind", EXACT)
def test_second_order_ablation_equals_materialised_effects(
    clip, lens, images, classifier, layer, kind
):
    own = lens[layer]
    expected = literally(
        embeddings_of(clip, images),
        second_order(clip, images, layer),
        *(own.mean, own.directions, own.threshold, kind),
    )
    for labels in ([i % CLASSES for i in range(40)], [0] * 40):
        found = ablate(clip, lens, images, labels, classifier, batch_size=7)
        assert torch.equal(found.ranks[layer, kind], ranked(expected, classifier, labels))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str
)
@pytest.mark.parametrize("convention", ["exact", "official"])
@pytest.mark.parametrize("neurons", [None, [40, 3, 17]])
def test_logits_equal_a_literal_implementation(dtype, tolerance, convention, neurons, classifier):
    clip = from_open_clip(tiny_model(dtype=dtype, layers=4))
    images, unit = tiny_images(clip, 12), 100 if convention == "official" else 1
    lens = fit(clip, tiny_images(clip, 30, seed=5), convention=convention)
    chosen = list(range(48)) if neurons is None else neurons
    for layer in (0, 2):
        own = lens[layer]
        fixed = [each[chosen] / unit for each in (own.mean, own.threshold)]
        directions = own.directions[chosen]
        found = SecondOrder(clip, {layer: own}, convention, chosen)
        found.aim({layer: directions[:, None]})
        with found:
            embeddings, readings = found.read(images)
        effects = second_order(clip, images, layer, convention)[:, chosen] / unit
        away = effects - fixed[0]
        reading = readings[layer]
        scores = classifier.to(dtype)
        large = reading.norms > fixed[1]
        sums = {
            "all": reading.sum(None),
            "large": reading.sum(large),
            "first component": reading.sum(None) - reading.along[:, :, 0] @ directions,
        }
        for kind, removed in sums.items():
            literal = literally(embeddings, effects, fixed[0], directions, fixed[1], kind)
            off = ((embeddings - removed - literal) @ scores.T).abs().max()
            assert off <= tolerance
        assert (reading.norms - away.norm(dim=-1)).abs().max() <= tolerance


def test_direct_ablation(clip, lens, images, reference, classifier):
    labels = [i % CLASSES for i in range(40)]
    for layer in (1, 2):
        found = ablate(
            *(clip, lens, images, labels, classifier),
            effect="direct",
            layers=[layer],
            reference=reference,
            batch_size=9,
        )
        known = fitted(direct(clip, reference, layer))
        for kind in EXACT:
            expected = literally(
                embeddings_of(clip, images), direct(clip, images, layer), *known, kind
            )
            assert torch.equal(found.ranks[layer, kind], ranked(expected, classifier, labels))
        assert torch.equal(found.ranks[layer, "first component"], found.ranks[BASELINE])


def test_indirect_ablation(clip, lens, images, reference, classifier):
    labels, neurons, layer = [i % CLASSES for i in range(40)], [4, 40, 11, 30], 1
    found = ablate(
        *(clip, lens, images, labels, classifier),
        effect="indirect",
        layers=[layer],
        neurons=neurons,
        reference=reference,
        batch_size=9,
    )
    held = lens[layer].activation_mean
    known = fitted(indirect(clip, reference, layer, neurons, held))
    effects = indirect(clip, images, layer, neurons, held)
    for kind in EXACT:
        expected = literally(embeddings_of(clip, images), effects, *known, kind)
        assert torch.equal(found.ranks[layer, kind], ranked(expected, classifier, labels))


def test_what_references_tell(clip, lens, reference):
    batches = list(reference.split(16))
    found = Indirect(clip, 1, [5, 6], batches, lens[1].activation_mean)
    effects = indirect(clip, reference, 1, [5, 6], lens[1].activation_mean)
    mean, directions, _ = fitted(effects)
    assert (found.fitted.mean - mean).abs().max() < 1e-12
    assert (found.fitted.directions - directions).abs().max() < 1e-6
    energy = (effects - mean).square().sum(-1).mean(0)
    assert torch.allclose(found.fitted.energy, energy)
    line = Direct(clip, 1, [5, 6], batches).fitted
    assert torch.allclose(line.explained_all, torch.ones(2, dtype=torch.float64))


def test_all_neurons_together(clip, lens, images, classifier):
    labels = [i % CLASSES for i in range(40)]
    found = ablate(clip, lens, images, labels, classifier, effect="together")
    for layer in lens.layers:
        without = stop_after(clip, images, layer).without_all(lens[layer].activation_mean)
        # divided by the original length: the classifier does not mind
        assert torch.equal(found.ranks[layer, "all"], ranked(without, classifier, labels))
    assert found.kinds == ["all"] and found.layers == [0, 1, 2] and not found.significant


def test_codes_stand_in_for_directions(clip, lens, images, classifier, codes):
    labels, layer = [i % CLASSES for i in range(40)], 2
    own, effects = lens[layer], second_order(clip, images, layer)
    away = effects - own.mean
    atoms = normalise(
        vocabulary(["ship", "car", "dog", "cat", "sea", "sky", "snow"]).embed(clip), "unit"
    )
    indices, coefficients = omp(own.directions, atoms, 3)
    vectors = torch.zeros_like(own.directions)
    for n in range(clip.neurons):
        for i, c in zip(indices[n].tolist(), coefficients[n].tolist(), strict=True):
            vectors[n] += c * atoms[i] * (i >= 0)
    for shrunk in (False, True):
        found = ablate(
            clip, lens, images, labels, classifier, recode=codes, shrunk=shrunk, layers=[layer]
        )
        x = torch.einsum("bnd,nd->bn", away, vectors if shrunk else own.directions)
        removed = away.sum(1) - x @ vectors
        expected = ranked(embeddings_of(clip, images) - removed, classifier, labels)
        assert torch.equal(found.ranks[layer, "words 3"], expected)
    names = {"words", "random texts", "random directions"}
    assert set(found.kinds) == {*KINDS, *(f"{name} {size}" for name in names for size in (1, 3))}


def test_controls_are_no_codes_of_the_neurons(clip, lens, codes):
    directions = lens[1].directions
    found = codes(directions)
    cosine = {k: F.cosine_similarity(v, directions).median() for k, v in found.items()}
    assert cosine["words 3"] > cosine["words 1"] > cosine["random directions 3"]
    assert cosine["random texts 3"] > cosine["random texts 1"] > 0
    random = found["random directions 1"]
    assert not torch.allclose(random, found["words 1"])


def test_the_random_kind_ablates_as_many_as_the_large_kind(clip, lens, images, classifier):
    labels = [0] * len(images)
    found = ablate(clip, lens, images, labels, classifier)
    norms = (second_order(clip, images, 1) - lens[1].mean).norm(dim=-1)
    assert torch.equal(found.significant[1], (norms > lens[1].threshold).sum(1))
    again = ablate(clip, lens, images, labels, classifier)
    assert torch.equal(found.ranks[1, "random"], again.ranks[1, "random"])
    assert set(found.ranks) == {BASELINE} | {(n, kind) for n in (0, 1, 2) for kind in KINDS}


def test_random_neurons_are_not_the_large_ones(clip, lens, images):
    from secondlens.applications.ablation.accuracy import removals

    own = lens[1]
    effects = SecondOrder(clip, {1: own}, "exact", range(48))
    effects.aim({1: own.directions[:, None]})
    with effects:
        _, readings = effects.read(images)
    large = readings[1].norms > own.threshold
    generator = torch.Generator().manual_seed(0)
    removed = dict(removals(readings[1], large, own.directions, {}, False, generator))
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(removed["random"], readings[1].sum(large[:, order]))
    assert removed["random"].norm() < removed["large"].norm()


def test_ranks_count_better_classes_and_break_ties_by_number():
    scores = torch.tensor([[0.1, 0.4, 0.4, 0.2], [0.0, 0.0, 0.0, 0.0]])
    for label, expected in enumerate([(3, 0), (0, 1), (1, 2), (2, 3)]):
        found = ranks(scores, torch.eye(4), torch.tensor([label, label]))
        assert found.tolist() == list(expected)


def test_accuracies_and_intervals(clip, lens, images, classifier):
    labels = [i % CLASSES for i in range(40)]
    found = ablate(clip, lens, images, labels, classifier, layers=[2])
    right = ranked(embeddings_of(clip, images), classifier, labels)
    assert found.baseline() == pytest.approx(float((right == 0).double().mean()))
    assert found.baseline(top=3) == pytest.approx(float((right < 3).double().mean()))
    assert found.accuracy(2, "all", top=CLASSES) == 1
    low, high = found.interval(2, "all")
    assert low <= found.accuracy(2, "all") <= high
    cost, (low, high) = found.cost(2, "all")
    assert cost == pytest.approx(found.baseline() - found.accuracy(2, "all"))
    assert low <= cost <= high
    assert found.cost(*BASELINE) == (0, (0, 0))


def test_bootstrap_of_a_mean_is_that_of_resampling():
    values = np.repeat([0, 1, 3], [50, 30, 20])
    rng = np.random.default_rng(1)
    means = rng.choice(values, (20000, len(values))).mean(1)
    expected = np.quantile(means, [0.025, 0.975])
    assert of_mean(values, draws=20000) == pytest.approx(expected, abs=0.02)
    assert of_mean([1.0, 1.0, 1.0]) == (1, 1)
    assert all(map(math.isnan, of_mean([])))


# torch.func.jvp, which the oracle uses, still scripts some of its own functions
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")
def test_definition_of_the_oracle(clip, lens, images):
    """The effects that are ablated are those of the definition, not only of this package."""
    run = oracle.Run(clip.model, images)
    own = lens[2]
    effects = SecondOrder(clip, {2: own}, "exact", [7])
    effects.aim({2: own.directions[[7], None]})
    with effects:
        _, readings = effects.read(images)
    expected = oracle.second_order(run, 2, run.neuron_write(2, 7)) - own.mean[7]
    assert torch.allclose(readings[2].sum(None), expected, atol=1e-12)


def test_save_and_load(clip, lens, images, classifier, tmp_path):
    found = ablate(clip, lens, images, [0] * len(images), classifier)
    found.save(tmp_path / "ablation.safetensors")
    loaded = Ablation.load(tmp_path / "ablation.safetensors")
    for name in ("ranks", "significant"):
        ours, theirs = getattr(loaded, name), getattr(found, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], each) for key, each in theirs.items())


def test_mistakes(clip, lens, images, reference, classifier):
    labels = [0] * 40
    refused = {
        "40 images and 3 labels": {"labels": [0, 1, 2]},
        "between 0 and 4, .* and one is 5": {"labels": [5] * 40},
        "one is -1": {"labels": [-1] * 40},
        "no effect 'third'": {"effect": "third"},
        "need pictures": {"effect": "direct"},
        "no neuron 48": {"neurons": [48]},
        "no neurons": {"neurons": []},
        "no layers": {"layers": []},
        "leave none to choose": {"effect": "together", "neurons": [1]},
        "layer 3 is not in this lens": {"layers": [3]},
    }
    for message, change in refused.items():
        options = {"labels": labels} | change
        with pytest.raises(SecondLensError, match=message):
            ablate(clip, lens, images, options.pop("labels"), classifier, **options)
    other = from_open_clip(tiny_model(seed=1, dtype=torch.float64, layers=4))
    with pytest.raises(SecondLensError, match="other weights"):
        ablate(other, lens, images, labels, classifier)
    for size in (0, 8):
        with pytest.raises(SecondLensError, match="a code cannot have"):
            TextCodes(clip, vocabulary(["a", "b"]), [size])
    assert set(EFFECTS) == {"second-order", "direct", "indirect", "together"}


def test_pictures_that_cannot_be_read(clip, lens, images, classifier):
    with pytest.raises(SecondLensError, match="none of the pictures could be read"):
        ablate(clip, lens, Unreadable(), [0, 1], classifier)
    for effect in ("direct", "indirect"):
        with pytest.raises(SecondLensError, match="none of the reference pictures could be read"):
            ablate(
                *(clip, lens, images, [0] * 40, classifier),
                effect=effect,
                reference=Unreadable(),
            )


@pytest.mark.parametrize("effect", EFFECTS)
def test_ablation_leaves_the_model_as_it_was(clip, lens, images, reference, classifier, effect):
    before = clip.encode_image(images)
    ablate(
        *(clip, lens, images[:4], [0] * 4, classifier),
        effect=effect,
        layers=[2],
        neurons=None if effect == "together" else [1, 2],
        reference=reference[:8],
    )
    for module in clip.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert "forward" not in vars(module)
    assert torch.equal(clip.encode_image(images), before)


# -- one class of paths ------------------------------------------------------------------------


@pytest.mark.parametrize("neurons", [None, [3, 40]], ids=["all", "two"])
def test_one_class_of_paths(clip, lens, images, classifier, neurons):
    """Effects that were taken back from every direction, and a hook on the model, not forward."""
    labels, some = [i % CLASSES for i in range(40)], neurons or range(clip.neurons)
    found = ablate_paths(
        *(clip, lens, images, labels, classifier),
        layers=[0, 2],
        neurons=neurons,
        nodes=2,
        batch_size=16,
    )
    assert found.kinds == [*PATHS, "together", "missed"] and not found.significant
    unit, r = embeddings_of(clip, images), clip.encode_image(images)
    moved = 0
    for layer in (0, 2):
        held = lens[layer].activation_mean
        back = finite_paths(
            *(clip, images, layer, some, held),
            directions=torch.eye(clip.dim, dtype=torch.float64),
            together=True,
            nodes=2,
        )
        for place, kind in enumerate(PATHS):
            expected = ranked(unit - back.effects[..., place].sum(2), classifier, labels)
            assert torch.equal(found.ranks[layer, kind], expected)
            moved += int((expected != ranked(unit, classifier, labels)).sum())

        def hold(module, inputs, output, held=held):
            output = output.clone()
            output[..., list(some)] = held[:, list(some)]
            return output

        handle = clip.blocks[layer].activation.register_forward_hook(hold)
        without = clip.encode_image(images)
        handle.remove()
        assert torch.equal(found.ranks[layer, "together"], ranked(without, classifier, labels))
        rest = (r - without) / r.norm(dim=-1, keepdim=True) - back.effects.sum((2, 3))
        assert torch.equal(found.ranks[layer, "missed"], ranked(unit - rest, classifier, labels))
    assert moved > 10  # or nothing would have been compared


def test_mistakes_in_classes_of_paths(clip, lens, images, classifier):
    for options, message in (
        ({"layers": []}, "nothing to ablate"),
        ({"neurons": []}, "nothing to ablate"),
        ({"neurons": [48]}, "no neuron 48"),
        ({"layers": [3]}, "layer 3 is not in this lens"),
        ({"nodes": 0}, "at least 1 node"),
    ):
        with pytest.raises(SecondLensError, match=message):
            ablate_paths(clip, lens, images, [0] * 40, classifier, **options)
    with pytest.raises(SecondLensError, match="none of the pictures"):
        ablate_paths(clip, lens, Unreadable(), [0, 1], classifier)
