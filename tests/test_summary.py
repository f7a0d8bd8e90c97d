import pytest
import torch
from models import tiny_images, tiny_model, tiny_tokenizer

from secondlens.clip import from_open_clip
from secondlens.describe import describe, rebuild
from secondlens.errors import SecondLensError
from secondlens.fit import fit
from secondlens.lens import Lens
from secondlens.summary import effective_number, group, neurons_in_words, quartiles
from secondlens.texts import normalise, vocabulary

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
    assert len(codes.words(1, 5, 2)) == 2


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
        positive = {text for text, weight in neuron.words if weight > 0}
        assert {text for concept in neuron.concepts for text in concept} == positive
        assert 0 <= neuron.clarity <= 1
        assert len(positive) == 0 or 1 <= neuron.polysemy <= len(neuron.concepts) + 1e-6
    assert neurons[0].name == "L0 #0"


def test_related_texts_share_a_group():
    related = torch.eye(4, dtype=torch.bool)
    related[0, 2] = related[2, 0] = True
    assert group([(0, 3.0), (1, 4.0), (2, 2.0)], related) == [([0, 2], 5.0), ([1], 4.0)]
    assert group([], related) == []


def test_effective_number():
    assert effective_number([1.0, 1.0, 1.0]) == pytest.approx(3)
    assert effective_number([5.0]) == pytest.approx(1)
    assert effective_number([]) == 0


def test_quartiles():
    assert quartiles(torch.arange(5.0)) == (1, 2, 3)
