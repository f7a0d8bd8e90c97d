import math

import pytest
import torch
from models import tiny_images, tiny_model, tiny_tokenizer

from secondlens.data.embedding import normalise
from secondlens.data.vocabularies import vocabulary
from secondlens.errors import SecondLensError
from secondlens.lens.fitting import fit
from secondlens.lens.lens import Lens
from secondlens.models.open_clip import from_open_clip
from secondlens.words.describing import describe, rebuild
from secondlens.words.scoring import score
from secondlens.words.summary import neurons_in_words, quartiles

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
    neurons = neurons_in_words(clip, lens, codes, texts)
    assert len(neurons) == len(lens.layers) * clip.neurons
    for neuron in neurons[::7]:
        assert list(neuron.words) == codes.words(neuron.layer, neuron.neuron, 8)
        for sign in (1, -1):
            side = {text for text, weight in neuron.words if weight * sign > 0}
            concepts = [each for each in neuron.concepts if each.weight * sign > 0]
            assert {text for each in concepts for text in each.words} == side
            assert sum(len(each.words) for each in concepts) == len(side)
        positive = [each for each in neuron.concepts if each.weight > 0]
        assert 0 <= neuron.clarity <= 1
        assert len(positive) == 0 or 1 - 1e-6 <= neuron.polysemy <= len(positive) + 1e-6
        assert math.isnan(neuron.score)
    assert neurons[0].name == "L0 #0"


def test_scores_are_taken_over(clip, lens):
    texts = vocabulary(WORDS)
    codes = describe(clip, lens, texts, 6)
    labels = [{WORDS[i % 10]} for i in range(30)]
    scores = score(clip, lens, texts, tiny_images(clip, 30, seed=4), labels)
    scored = 0
    for neuron in neurons_in_words(clip, lens, codes, texts):
        found = (neuron.score, *neuron.score_interval)
        areas = (scores.auc, scores.low, scores.high)
        expected = [float(each[neuron.layer][neuron.neuron, 0]) for each in areas]
        assert found == pytest.approx(expected, nan_ok=True)
        scored += not math.isnan(neuron.score)
    assert scored > len(lens.layers) * clip.neurons / 2


def test_quartiles():
    assert quartiles(torch.arange(5.0)) == (1, 2, 3)
