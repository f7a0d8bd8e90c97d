"""Descriptions against one pursuit for each size, and what the command line prints and writes."""

import json
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from models import tiny_images, tiny_model, tiny_tokenizer
from pyarrow import parquet

from secondlens.commands.group import main
from secondlens.data import named_vocabularies
from secondlens.data.embedding import normalise
from secondlens.data.vocabularies import vocabulary
from secondlens.errors import SecondLensError
from secondlens.lens.codes import Stability
from secondlens.lens.fitting import fit
from secondlens.lens.lens import Lens
from secondlens.models.open_clip.views import from_open_clip
from secondlens.sparse.pursuit import omp
from secondlens.words.describing import (
    default_size,
    describe,
    described,
    random_directions,
    rebuild,
    signed,
)

WORDS = ["ship", "car", "dog", "whale", "sea", "red", "one two", "zebra", "tree", "x"]
OTHERS = ["[bold]a", "noon", "yak", "0", "kiwi", "quilt"]


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(), tokenizer=tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def fitted(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lens")
    fit(clip, tiny_images(clip, 20), top=4).save(folder)
    return folder


@pytest.fixture
def lens(fitted):
    return Lens.load(fitted)


@pytest.mark.parametrize("how", ["unit", "centred", "official"])
def test_curves_are_medians_of_shorter_codes(clip, lens, how):
    words = vocabulary(WORDS)
    codes = describe(clip, lens, words, 6, how=how)
    rows = words.embed(clip)
    atoms = normalise(rows, how)

    def median_cosine(directions, m):
        made = rebuild(*omp(directions, atoms, m), atoms)
        return F.cosine_similarity(made, directions, dim=1).sort().values[(len(made) - 1) // 2]

    for m in range(1, 7):
        for layer in lens.layers:
            expected = median_cosine(lens[layer].directions, m)
            torch.testing.assert_close(codes.curve[layer][m - 1], expected)
        control = median_cosine(random_directions(512, clip.dim).float(), m)
        torch.testing.assert_close(codes.control[m - 1], control)
    torch.testing.assert_close(codes.mean_text, rows.mean(0))
    for layer in lens.layers:
        indices, coefficients = omp(lens[layer].directions, atoms, 6)
        torch.testing.assert_close(codes.indices[layer], indices)
        torch.testing.assert_close(codes.coefficients[layer], coefficients)
        assert codes.brief[layer].equal(codes.coefficients[layer])  # at most eight texts


def test_brief_codes_are_those_of_eight_texts(clip, lens):
    words = vocabulary(WORDS)
    codes = describe(clip, lens, words, 10)
    atoms = normalise(words.embed(clip), "centred")
    for layer in lens.layers:
        indices, coefficients = omp(lens[layer].directions, atoms, 8)
        torch.testing.assert_close(codes.indices[layer][:, :8], indices)
        torch.testing.assert_close(codes.brief[layer], coefficients)
        best = coefficients[3].abs().argmax()
        expected = WORDS[indices[3, best]], pytest.approx(float(coefficients[3, best]))
        assert codes.words(layer, 3)[0] == expected


def test_random_texts_rebuild_random_directions_as_a_random_subspace_does_at_least():
    """m texts chosen for their fit explain at least the share m / width that any m would."""
    dim = 32
    targets = random_directions(600, dim)
    indices, coefficients = omp(targets[:500], targets[500:], 8)
    made = rebuild(indices, coefficients, targets[500:])
    assert F.cosine_similarity(made, targets[:500], dim=1).square().median() > 8 / dim
    torch.testing.assert_close(targets.norm(dim=1), torch.ones(600, dtype=torch.float64))
    assert targets.mean(dim=0).norm() < 0.1


def test_curves_are_saved_and_codes_without_them_load(clip, lens, tmp_path):
    codes = describe(clip, lens, vocabulary(WORDS, name="ten"), 3)
    lens.codes["old"] = type(codes)(
        labels=codes.labels,
        normalise=codes.normalise,
        indices=codes.indices,
        coefficients=codes.coefficients,
        brief=codes.brief,
        cosine=codes.cosine,
    )
    lens.save(tmp_path)
    loaded = Lens.load(tmp_path).codes
    for name in ("control", "mean_text"):
        torch.testing.assert_close(getattr(loaded["ten"], name), getattr(codes, name))
        assert getattr(loaded["old"], name) is None
    for layer in lens.layers:
        torch.testing.assert_close(loaded["ten"].curve[layer], codes.curve[layer])
    assert loaded["old"].curve == {}


def test_default_size(clip, lens):
    assert clip.dim == 12
    assert default_size(clip, vocabulary(WORDS)) == 3
    assert default_size(clip, vocabulary(["a", "b"])) == 2
    assert describe(clip, lens, WORDS).indices[0].shape == (clip.neurons, 3)


def test_signs():
    assert signed([("dog", 0.5), ("sea", -0.25)]) == "+dog −sea"
    assert signed([]) == ""


@pytest.fixture
def run(clip, monkeypatch, tmp_path):
    """The command line, with the tiny model for every name, in a folder with two vocabularies."""
    monkeypatch.setattr("secondlens.models.loading.load", lambda *_, **__: clip)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ten.txt").write_text("\n".join(WORDS))
    (tmp_path / "others.txt").write_text("\n".join(OTHERS))

    def call(*arguments):
        return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)

    return call


def test_command_prints_curves_and_words_side_by_side(run, lens, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lens.save(tmp_path / "lens")
    arguments = ("describe", "lens", "--texts", "ten.txt", "--texts", "others.txt", "-k", 4)
    result = run(*arguments, "--parquet", "codes.parquet")
    assert result.exit_code == 0
    codes = Lens.load(tmp_path / "lens").codes
    assert list(codes) == ["ten", "others"]
    lines = result.stdout.splitlines()
    for name, pool in codes.items():
        title = next(i for i, line in enumerate(lines) if f"{name}: " in line)
        table = [line.replace("┃", "│").split("│") for line in lines[title + 1 : title + 10]]
        cells = [[cell.strip() for cell in row if cell.strip()] for row in table]
        assert ["layer", "1", "2", "4"] in cells
        for label, curve in (("1", pool.curve[1]), ("random directions", pool.control)):
            assert [label, *(f"{curve[m - 1]:.2f}" for m in (1, 2, 4))] in cells
        assert ["texts / width", "0.08", "0.17", "0.33"] in cells
    best = int(codes["ten"].cosine[1].argmax())
    (row,) = [line for line in lines if f"L1 #{best} " in line]
    for pool in codes.values():
        assert signed(pool.words(1, best, 4)) in row


def test_command_writes_every_neuron(run, lens, tmp_path):
    lens.save(tmp_path / "lens")
    arguments = ("describe", "lens", "--texts", "ten.txt", "--texts", "others.txt", "-k", 4)
    result = run(*arguments, "--json", "--parquet", "codes.parquet")
    assert result.exit_code == 0
    codes = Lens.load(tmp_path / "lens").codes
    written = json.loads(result.stdout)
    rows = parquet.read_table(tmp_path / "codes.parquet").to_pylist()
    assert list(written) == ["ten", "others"]
    assert not list(tmp_path.glob("*.partial"))
    for name, pool in codes.items():
        assert written[name]["control"] == pytest.approx(pool.control.tolist())
        assert written[name]["curve"]["1"] == pytest.approx(pool.curve[1].tolist())
        mine = [
            {key: value for key, value in row.items() if key != "vocabulary"}
            for row in rows
            if row["vocabulary"] == name
        ]
        assert written[name]["neurons"] == mine
        assert len(mine) == sum(map(len, pool.cosine.values()))
        row = next(row for row in mine if (row["layer"], row["neuron"]) == (1, 5))
        assert list(zip(row["words"], row["coefficients"], strict=True)) == pool.code(1, 5)
        assert row["cosine"] == pytest.approx(float(pool.cosine[1][5]))


def test_command_takes_templates_and_a_default_size(run, clip, lens, tmp_path):
    lens.save(tmp_path / "lens")
    assert run("describe", "lens", "--texts", "ten.txt", "--template", "my {}").exit_code == 0
    codes = Lens.load(tmp_path / "lens").codes["ten"]
    expected = describe(clip, lens, vocabulary(WORDS, templates=["my {}"]), 3)
    torch.testing.assert_close(codes.coefficients[1], expected.coefficients[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--texts", "tne.txt"], "no file tne.txt"),
        (["--texts", "ten.txt", "--texts", "ten.txt"], "two vocabularies are called ten"),
        (["--texts", "ten.txt", "--parquet", "no/codes.parquet"], "no folder no"),
        (["--texts", "ten.txt", "--template", "word"], "'word' has no {}"),
        (["--texts", "ten.txt", "-k", "11"], "k must lie between 1 and 10"),
    ],
)
def test_command_refuses_before_it_works(run, lens, tmp_path, options, message):
    lens.save(tmp_path / "lens")
    result = run("describe", "lens", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert Lens.load(tmp_path / "lens").codes == {}


def test_parquet_without_pyarrow(run, lens, tmp_path, monkeypatch):
    lens.save(tmp_path / "lens")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    result = run("describe", "lens", "--texts", "ten.txt", "--parquet", "codes.parquet")
    assert result.exit_code == 2
    assert "pip install 'secondlens[parquet]'" in result.stderr


def test_describing_anew_drops_the_evidence_about_the_old_words(clip, lens):
    found = {layer: torch.zeros(1) for layer in lens.layers}
    names = ("cosine", "cosine_null", "overlap", "overlap_null")
    evidence = Stability(vocabulary="words", images=2, **dict.fromkeys(names, found))
    fresh = replace(lens, codes={}, stability={"words": evidence})
    describe(clip, fresh, vocabulary(["a", "b", "c"], name="others"), 2)
    assert fresh.stability
    describe(clip, fresh, vocabulary(["a", "b", "c"], name="words"), 2)
    assert not fresh.stability


def test_words_of_layers_and_neurons_that_are_not_there(clip, lens):
    codes = describe(clip, lens, WORDS, 3)
    for place, message in (
        ((7, 0), "layer 7 is not in this description: it has 0, 1"),
        ((1, 48), "layer 1 has no neuron 48: choose from 0 to 47"),
        ((1, -1), "layer 1 has no neuron -1"),
    ):
        with pytest.raises(SecondLensError, match=message):
            codes.words(*place)
        with pytest.raises(SecondLensError, match=message):
            codes.code(*place)


def test_a_single_text_has_nothing_but_the_mean(clip, lens):
    with pytest.raises(SecondLensError, match="centred texts are what differs from their mean"):
        describe(clip, lens, ["ship"], 1)
    assert describe(clip, lens, ["ship"], 1, how="unit").labels == ("ship",)


def test_lenses_and_codes_print_in_one_line(clip, lens):
    codes = describe(clip, lens, WORDS, 3)
    assert repr(lens) == "Lens('tiny', layers 0, 1, 20 images, described with texts)"
    assert repr(lens[1]) == "LayerLens(48 neurons, 12 dimensions, top 4 images)"
    assert repr(codes) == "Codes(10 texts, at most 3 a neuron, layers 0, 1)"


def test_a_file_named_like_a_vocabulary_does_not_change_what_a_lens_says(
    clip, tmp_path, monkeypatch
):
    planets = vocabulary(["mars", "venus"], name="planets", templates=["on {}"])
    named_vocabularies.register("planets", lambda: planets, help="two of them")
    lens = fit(clip, tiny_images(clip, 8), top=2)
    describe(clip, lens, "planets", 2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planets").write_text("nothing\n", encoding="utf-8")
    texts, codes = described(lens)
    assert texts == planets and codes is lens.codes["planets"]
    assert described(lens, "planets")[0] == planets
    with pytest.raises(SecondLensError, match="described with other texts of the name planets"):
        described(lens, tmp_path / "planets")
