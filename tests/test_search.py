"""Search against every cosine computed one by one."""

import json

import pytest
import torch
from click.testing import CliRunner
from models import tiny_images, tiny_model, tiny_tokenizer

from secondlens.commands.group import main
from secondlens.data.vocabularies import vocabulary
from secondlens.errors import SecondLensError
from secondlens.lens.fitting import fit
from secondlens.lens.lens import Lens
from secondlens.models.open_clip.views import from_open_clip
from secondlens.words.describing import describe, signed
from secondlens.words.searching import search, similar, strongest

WORDS = ["ship", "car", "dog", "whale", "sea", "red", "one two", "zebra", "tree", "x"]
OTHERS = ["noon", "yak", "kiwi", "quilt"]


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(), tokenizer=tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def bare(clip):
    return fit(clip, tiny_images(clip, 20), top=4)


@pytest.fixture(scope="module")
def lens(clip, bare, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lens")
    bare.save(folder)
    lens = Lens.load(folder)
    describe(clip, lens, vocabulary(WORDS, name="ten"))
    describe(clip, lens, vocabulary(OTHERS, name="others"))
    return lens


def slow_ranking(lens, query):
    """(layer, neuron, cosine) of all neurons, one after another in float64."""
    query = query.double() / query.double().norm()
    found = [
        (layer, neuron, float(row.double() @ query / row.double().norm()))
        for layer in lens.layers
        for neuron, row in enumerate(lens[layer].directions)
    ]
    return sorted(found, key=lambda each: -abs(each[2]))


def same(matches, expected):
    assert [(m.layer, m.neuron) for m in matches] == [each[:2] for each in expected]
    assert [m.cosine for m in matches] == pytest.approx([each[2] for each in expected], abs=1e-6)


@pytest.mark.parametrize("description", [None, "ten", "others"])
def test_text_is_compared_with_every_direction(clip, lens, description):
    words = OTHERS if description == "others" else WORDS
    query = clip.encode_text(["a boat"])[0] - clip.encode_text(words).mean(0)
    expected = slow_ranking(lens, query)
    same(search(clip, lens, "a boat", 15, description=description), expected[:15])
    same(search(clip, lens, "a boat", 10**6, description=description), expected)
    assert {cosine > 0 for _, _, cosine in expected[:15]} == {True, False}
    assert len({layer for layer, _, _ in expected[:15]}) == 2


def test_similar_neurons(lens):
    expected = slow_ranking(lens, lens[1].directions[7])
    assert expected[0][:2] == (1, 7)
    same(similar(lens, 1, 7, 5), expected[1:6])
    assert len(similar(lens, 1, 7, 10**6)) == len(expected) - 1


def test_ties_go_to_the_lowest_layer_and_neuron():
    rows = torch.eye(3)[[0, 1, 0, 2, 0]]
    directions = {4: -rows, 2: rows}
    found = strongest(directions, torch.eye(3)[0], 4)
    assert [(m.layer, m.neuron, m.cosine) for m in found] == [
        *[(2, neuron, 1.0) for neuron in (0, 2, 4)],
        (4, 0, -1.0),
    ]
    assert [m.neuron for m in strongest({0: rows}, torch.eye(3)[0], 2)] == [0, 2]


def test_copies_of_a_neuron_are_similar_to_it(lens):
    copy = Lens(**{**vars(lens), "by_layer": {3: lens[0], 1: lens[0]}})
    found = similar(copy, 3, 5, 1)
    assert [(m.name, m.cosine) for m in found] == [("L1 #5", pytest.approx(1))]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("",), {}, "a text with nothing in it"),
        ((" ",), {}, "a text with nothing in it"),
        (("a", 0), {}, "at least 1 neuron must be asked for, and top is 0"),
        (("a",), {"description": "tne"}, "no description 'tne': choose one of ten, others"),
    ],
)
def test_search_refuses(clip, lens, arguments, options, message):
    with pytest.raises(SecondLensError, match=message):
        search(clip, lens, *arguments, **options)


def test_search_needs_a_description_and_the_same_model(clip, bare, lens):
    with pytest.raises(SecondLensError, match="no description yet"):
        search(clip, bare, "a")
    other = from_open_clip(tiny_model(seed=1), tokenizer=tiny_tokenizer, name="other")
    with pytest.raises(SecondLensError, match="other weights"):
        search(other, lens, "a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 0), "layer 2 is not in this lens"),
        ((1, -1), "layer 1 has no neuron -1: choose one of 0 to"),
        ((1, 10**6), "has no neuron 1000000"),
        ((1, 0, 0), "top is 0"),
    ],
)
def test_similar_refuses(lens, arguments, message):
    with pytest.raises(SecondLensError, match=message):
        similar(lens, *arguments)


@pytest.fixture
def run(clip, lens, bare, monkeypatch, tmp_path):
    monkeypatch.setattr("secondlens.models.loading.load", lambda *_, **__: clip)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    lens.save(tmp_path / "lens")
    bare.save(tmp_path / "bare")

    def call(*arguments):
        return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)

    return call


@pytest.mark.parametrize("described", [True, False])
def test_command_finds_similar_neurons(run, lens, described):
    place = "lens" if described else "bare"
    arguments = ("search", place, "--neuron", "1:7", "--top", 3)
    result = run(*arguments)
    assert result.exit_code == 0
    expected = similar(lens, 1, 7, 3)
    for match in expected:
        (line,) = [line for line in result.stdout.splitlines() if f"{match.name} " in line]
        assert f"{match.cosine:+.2f}" in line
        words = signed(lens.codes["ten"].words(match.layer, match.neuron, 6))
        assert (words in line) == described
    written = json.loads(run(*arguments, "--json").stdout)
    assert written["like"] == [1, 7] and written["text"] is None
    assert [row["neuron"] for row in written["neurons"]] == [match.neuron for match in expected]


def test_command_finds_neurons_for_a_text(run, clip, lens):
    arguments = ("search", "lens", "[b]", "--description", "others")
    result = run(*arguments)
    assert result.exit_code == 0
    assert "“[b]”" in result.stdout
    expected = search(clip, lens, "[b]", description="others")
    written = json.loads(run(*arguments, "--json").stdout)
    assert written["text"] == "[b]"
    found = [(row["layer"], row["neuron"], row["cosine"]) for row in written["neurons"]]
    assert found == [(m.layer, m.neuron, m.cosine) for m in expected]
    first = lens.codes["others"].words(*found[0][:2], 6)
    assert written["neurons"][0]["words"] == [list(pair) for pair in first]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lens"], "give either a text"),
        (["lens", "ship", "--neuron", "1:7"], "give either a text"),
        (["lens", "--neuron", "seven"], "such as 9:123, not 'seven'"),
        (["lens", "--neuron", "9:123"], "layer 9 is not in this lens: it has 0, 1"),
        (["bare", "ship"], "no description yet"),
        (["lens", "ship", "--description", "x"], "no description 'x'"),
        (["nowhere", "ship"], "holds no lens"),
    ],
)
def test_command_refuses(run, arguments, message):
    result = run("search", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
