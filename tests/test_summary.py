import math

import pytest
import torch
from models import tiny_images, tiny_model, tiny_tokenizer

from secondlens.data.embedding import normalise
from secondlens.data.sources import InMemory
from secondlens.data.vocabularies import vocabulary
from secondlens.effects.value_paths import second_order
from secondlens.errors import SecondLensError
from secondlens.lens.fitting import fit
from secondlens.lens.lens import Lens
from secondlens.lens.names import NO_NAME
from secondlens.models.open_clip.views import from_open_clip
from secondlens.words.describing import describe, rebuild
from secondlens.words.naming import name
from secondlens.words.scoring import score
from secondlens.words.summary import label, neurons_in_words, quartiles

WORDS = ["ship", "car", "dog", "whale", "sea", "red", "one two", "zebra", "tree", "x"]


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(dtype=torch.float64), tokenizer=tiny_tokenizer, name="tiny")


@pytest.fixture
def lens(clip):
    return fit(clip, tiny_images(clip, 20), top=4)


@pytest.mark.parametrize("how", ["unit", "centred", "official"])
def test_codes_rebuild_directions(clip, lens, how):
    texts = vocabulary(WORDS)
    atoms = normalise(texts.embed(clip), how)
    few, many = describe(clip, lens, texts, 2, how=how), describe(clip, lens, texts, 8, how=how)
    for layer in lens.layers:
        assert many.indices[layer].shape == (clip.neurons, 8)
        rebuilt = rebuild(many.indices[layer], many.coefficients[layer], atoms)
        cosine = torch.cosine_similarity(rebuilt, lens[layer].directions, dim=1)
        torch.testing.assert_close(cosine, many.cosine[layer])
        assert (many.cosine[layer] > few.cosine[layer] - 1e-9).all()


def test_codes_are_saved_with_the_lens(clip, lens, tmp_path):
    codes = describe(clip, lens, vocabulary(WORDS, name="ten"), 3)
    lens.save(tmp_path)
    loaded = Lens.load(tmp_path).codes["ten"]
    assert loaded.labels == codes.labels
    assert loaded.normalise == "centred"
    assert loaded.words(1, 5) == codes.words(1, 5)
    strengths = [abs(weight) for _, weight in codes.words(1, 5)]
    assert strengths == sorted(strengths, reverse=True)
    assert codes.words(1, 5, 2) == codes.words(1, 5)[:2]
    assert len(codes.code(1, 5)) == 3


@pytest.mark.parametrize("k", [0, 11])
def test_k_is_checked(clip, lens, k):
    with pytest.raises(SecondLensError, match="k must lie between 1 and 10"):
        describe(clip, lens, WORDS, k)


def test_neurons_in_words(clip, lens):
    texts = vocabulary(WORDS)
    codes = describe(clip, lens, texts, 6)
    neurons = neurons_in_words(lens, codes)
    assert len(neurons) == len(lens.layers) * clip.neurons
    for neuron in neurons[::7]:
        assert list(neuron.words) == codes.words(neuron.layer, neuron.neuron, 8)
        squares = [weight**2 for _, weight in neuron.words]
        share = (squares[0] + squares[1]) / sum(squares)
        explained = float(lens[neuron.layer].explained_all[neuron.neuron])
        assert neuron.clarity == pytest.approx(share * explained)
        assert (neuron.title, neuron.names, neuron.polysemy) == ("", (), 0)
        assert math.isnan(neuron.score)
    assert neurons[0].name == "L0 #0"


def test_names_are_taken_over_and_stand_for_a_neuron(clip, lens):
    codes = describe(clip, lens, WORDS, 6)
    towards = [text for text, weight in codes.words(1, 5) if weight > 0][:2]
    assert label(lens, 1, 5) == f"pushes towards {', '.join(towards)}"
    images = InMemory(tiny_images(clip, 80, seed=5), ids=[f"new-{i}" for i in range(80)])
    effects = second_order(clip, images.pictures, 1)[:, 5] @ lens[1].directions[5]
    strong = set(effects.topk(16).indices.tolist())
    labels = [{"dog"} if i in strong else {"sea"} for i in range(80)]
    name(clip, lens, images, WORDS, labels)
    named = {(each.layer, each.neuron): each for each in neurons_in_words(lens, codes)}
    assert named[1, 5].title == label(lens, 1, 5) == "dog"
    assert [each.text for each in named[1, 5].names] == ["dog"]
    assert named[1, 5].polysemy == 1
    nameless = [each for each in named.values() if not each.names]
    assert {each.title for each in nameless} == {NO_NAME}
    assert label(lens, nameless[0].layer, nameless[0].neuron) == NO_NAME


def test_nothing_is_said_of_a_neuron_without_names_and_words(lens):
    assert label(lens, 1, 5) == ""


def test_scores_are_taken_over(clip, lens):
    texts = vocabulary(WORDS)
    codes = describe(clip, lens, texts, 6)
    labels = [{WORDS[i % 10]} for i in range(30)]
    scores = score(clip, lens, texts, tiny_images(clip, 30, seed=4), labels)
    scored = 0
    for neuron in neurons_in_words(lens, codes):
        found = (neuron.score, *neuron.score_interval)
        areas = (scores.auc, scores.low, scores.high)
        expected = [float(each[neuron.layer][neuron.neuron, 0]) for each in areas]
        assert found == pytest.approx(expected, nan_ok=True)
        scored += not math.isnan(neuron.score)
    assert scored > len(lens.layers) * clip.neurons / 2


def test_quartiles():
    assert quartiles(torch.arange(5.0)) == (1, 2, 3)
