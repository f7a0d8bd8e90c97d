import json
from dataclasses import replace
from importlib import import_module
from itertools import combinations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from models import tiny_images, tiny_model, tiny_tokenizer
from PIL import Image
from sklearn.metrics import roc_auc_score

from secondlens.commands.group import main
from secondlens.data.embedding import normalise
from secondlens.data.sources import InMemory
from secondlens.data.vocabularies import vocabulary
from secondlens.demo.scenes import FIT_SEED, Scenes, World
from secondlens.effects.projections import Projector, embed, project
from secondlens.effects.value_paths import second_order
from secondlens.errors import SecondLensError, SecondLensWarning
from secondlens.explorer.atlas import Atlas
from secondlens.intervals import of_median
from secondlens.lens.codes import CONTROLS, Codes, Scores
from secondlens.lens.fitting import fit
from secondlens.lens.hub import lens_card
from secondlens.lens.lens import Lens
from secondlens.models.loading import load
from secondlens.models.open_clip.views import from_open_clip
from secondlens.words.describing import describe
from secondlens.words.scoring import area_under_roc, compare, score, score_table, sides

COUNT = 400
TOP = 8


def literal_delong(positives, negatives):
    """Area and variance from all pairs."""
    wins = np.sign(positives[:, None] - negatives[None]) / 2 + 0.5
    of_positives, of_negatives = wins.mean(1), wins.mean(0)
    variance = of_positives.var(ddof=1) / len(positives) + of_negatives.var(ddof=1) / len(negatives)
    return wins.mean(), variance


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_area_equals_scikit_learns_and_the_interval_delongs(levels):
    rng = np.random.default_rng(levels)
    positives = rng.integers(0, levels, (4, 11)) + rng.integers(0, 2, (4, 11)) * 0.5
    negatives = rng.integers(0, levels, (4, 50)).astype(float)
    found = area_under_roc(torch.from_numpy(positives), torch.from_numpy(negatives))
    truth = np.repeat([1, 0], [11, 50])
    for i in range(4):
        area, variance = literal_delong(positives[i], negatives[i])
        predicted = np.concatenate([positives[i], negatives[i]])
        assert found.auc[i] == pytest.approx(roc_auc_score(truth, predicted))
        assert found.auc[i] == pytest.approx(area)
        assert found.low[i] == pytest.approx(max(0, area - 1.959964 * variance**0.5))
        assert found.high[i] == pytest.approx(min(1, area + 1.959964 * variance**0.5))


def test_delongs_interval_covers():
    generator = torch.Generator().manual_seed(0)
    positives = torch.randn(4000, 40, generator=generator) + 0.5
    negatives = torch.randn(4000, 60, generator=generator)
    found = area_under_roc(positives, negatives)
    true = torch.special.ndtr(torch.tensor(0.5 / 2**0.5))
    covered = ((found.low <= true) & (true <= found.high)).float().mean()
    assert 0.92 < covered < 0.97


def test_median_interval_covers():
    rng = np.random.default_rng(0)
    inside = [
        low <= 0 <= high for low, high in (of_median(rng.normal(size=40), 200) for _ in range(60))
    ]
    assert 0.88 < np.mean(inside) <= 1
    assert of_median([3.0]) == (3, 3)


@pytest.fixture(scope="module")
def clip():
    model = tiny_model(dtype=torch.float64, layers=4)
    return from_open_clip(model, tokenizer=tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def other():
    model = tiny_model(seed=9, dtype=torch.float64, dim=10)
    return from_open_clip(model, tokenizer=tiny_tokenizer, name="other")


@pytest.fixture(scope="module")
def unseen(clip):
    return tiny_images(clip, COUNT, seed=5)


def fitted(clip, convention="exact"):
    return fit(clip, tiny_images(clip, 30), [0, 2], top=5, convention=convention)


def projections(clip, lens, images, layer):
    effects = second_order(clip, images, layer, lens.convention)
    return torch.einsum("bnd,nd->bn", effects, lens[layer].directions)


@pytest.mark.parametrize("convention", ["exact", "official"])
def test_projector_equals_materialised_effects(clip, unseen, convention):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(clip.neurons, 3, clip.dim, generator=generator, dtype=torch.float64)
    some = unseen[:7]
    chosen = [5, 0, 11]
    projectors = {
        0: Projector(clip, 0, vectors, convention),
        1: Projector(clip, 1, vectors[chosen], convention, chosen),
    }
    found = project(clip, some, projectors, batch_size=3)
    for layer, neurons in ((0, list(range(clip.neurons))), (1, chosen)):
        effects = second_order(clip, some, layer, convention)[:, neurons]
        expected = torch.einsum("bnd,nmd->bnm", effects, vectors[neurons])
        torch.testing.assert_close(found.products[layer], expected)
    rows = torch.nn.functional.normalize(clip.encode_image(some), dim=1)
    torch.testing.assert_close(found.embeddings, rows)
    torch.testing.assert_close(embed(clip, some, batch_size=4), rows)


def test_sides_split_the_words_of_a_brief_code():
    indices = torch.tensor([[7, 3, 5, -1], [1, 2, -1, -1]])
    coefficients = torch.tensor([[0.5, -2.0, 1.0, 0.0], [0.1, 0.2, 0.0, 0.0]])
    found = sides(indices, coefficients)
    words = torch.eye(8)
    positive, negative = found.rows(words)[0]
    assert positive.nonzero().flatten().tolist() == [5, 7]
    assert negative.nonzero().flatten().tolist() == [3]
    assert negative[3] == 2
    assert found.rows(words)[1, 1].abs().sum() == 0
    brief = sides(torch.arange(12)[None], torch.arange(1.0, 9)[None])
    assert brief.texts[0].tolist() == list(range(8))


def planted(clip, unseen, lens):
    """Labels, texts and codes such that each neuron's words are true of its top images alone.

    Text 2n holds in the images with neuron n's largest projections, text 2n + 1 in those with the
    most negative ones; the other texts, as many again, hold anywhere.
    """
    layer = lens.layers[0]
    count = 2 * clip.neurons
    texts = vocabulary([f"text {i}" for i in range(2 * count)], name="planted")
    labels = [set() for _ in range(COUNT)]
    order = projections(clip, lens, unseen, layer).argsort(0, descending=True)
    for n in range(clip.neurons):
        for text, images in ((2 * n, order[:TOP, n]), (2 * n + 1, order[-TOP:, n])):
            for image in images.tolist():
                labels[image].add(texts.labels[text])
    rng = np.random.default_rng(0)
    for text in texts.labels[count:]:
        for image in rng.choice(COUNT, 80, replace=False):
            labels[image].add(text)
    neurons = torch.arange(clip.neurons)
    indices = torch.stack([2 * neurons, 2 * neurons + 1], dim=1)
    coefficients = torch.tensor([1.0, -0.5], dtype=torch.float64).expand(clip.neurons, 2)
    codes = Codes(
        labels=texts.labels,
        normalise="centred",
        indices={layer: indices.clone() for layer in lens.layers},
        coefficients={layer: coefficients.clone() for layer in lens.layers},
        brief={layer: coefficients.clone() for layer in lens.layers},
        cosine={layer: torch.ones(clip.neurons, dtype=torch.float64) for layer in lens.layers},
    )
    return texts, labels, replace(lens, codes={"planted": codes}, scores={})


@pytest.fixture(scope="module", params=["exact", "official"])
def scored(request, clip, unseen):
    texts, labels, lens = planted(clip, unseen, fitted(clip, request.param))
    return texts, labels, lens, score(clip, lens, texts, unseen, labels, batch_size=50)


def test_planted_descriptions_are_perfect_and_controls_are_chance(scored):
    *_, lens, scores = scored
    layer = lens.layers[0]
    assert scores.top == TOP
    torch.testing.assert_close(scores.auc[layer], torch.ones_like(scores.auc[layer]))
    medians = scores.controls[layer].nanmedian(0).values
    assert ((medians > 0.4) & (medians < 0.6)).all()
    for each in compare(scores, [layer]):
        assert each.ours == 1
        assert each.low > 0.3
        assert each.low <= each.difference <= each.high


def test_codes_of_another_layer_are_chance(scored):
    *_, lens, scores = scored
    assert 0.4 < scores.auc[lens.layers[1]].median() < 0.6


def test_score_equals_scikit_learns_on_labels(clip, unseen, scored):
    texts, labels, lens, scores = scored
    layer = lens.layers[1]
    projection = projections(clip, lens, unseen, layer)
    for n in (0, 4, 9):
        for side, sign, text in ((0, 1, 2 * n), (1, -1, 2 * n + 1)):
            order = (sign * projection[:, n]).argsort(descending=True)
            top = np.isin(np.arange(COUNT), order[:TOP])
            holds = [texts.labels[text] in each for each in labels]
            assert scores.auc[layer][n, side] == pytest.approx(roc_auc_score(top, holds), abs=1e-6)


@pytest.fixture
def described(clip):
    """Random codes with random words, so that any mistake in a prediction shows."""
    lens = fitted(clip, "official")
    texts = vocabulary([f"{i} text" for i in range(20)])
    generator = torch.Generator().manual_seed(3)
    indices = torch.stack(
        [torch.randperm(20, generator=generator)[:3] for _ in range(clip.neurons)]
    )
    coefficients = torch.randn(clip.neurons, 3, generator=generator, dtype=torch.float64)
    lens.codes["texts"] = Codes(
        labels=texts.labels,
        normalise="unit",
        indices={layer: indices.clone() for layer in lens.layers},
        coefficients=dict.fromkeys(lens.layers, coefficients),
        brief=dict.fromkeys(lens.layers, coefficients),
        cosine=dict.fromkeys(lens.layers, coefficients[:, 0]),
    )
    return lens, texts, indices, coefficients


@pytest.mark.parametrize("itself", [False, True])
def test_score_equals_scikit_learns_with_a_model_as_referee(clip, other, unseen, described, itself):
    lens, texts, indices, coefficients = described
    referee = clip if itself else other
    scores = score(clip, lens, texts, unseen, referee, batch_size=100)
    words = normalise(texts.embed(referee))
    embeddings = torch.nn.functional.normalize(referee.encode_image(unseen), dim=1)
    layer = lens.layers[1]
    effects = second_order(clip, unseen, layer, "official") / 100
    projection = projections(clip, lens, unseen, layer)
    similarity = normalise(texts.embed(clip), "unit") @ lens[layer].directions.T
    for n in range(clip.neurons):
        for side, sign in ((0, 1), (1, -1)):
            own = embeddings - effects[:, n] if itself else embeddings
            top = np.isin(
                np.arange(COUNT), (sign * projection[:, n]).argsort(descending=True)[:TOP]
            )
            weights = (sign * coefficients[n]).clamp(min=0)
            found = scores.auc[layer][n, side]
            if weights.sum() == 0:
                assert found.isnan()
                continue
            predicted = own @ words[indices[n]].T @ weights
            assert found == pytest.approx(roc_auc_score(top, predicted), abs=1e-6)
            one = (sign * similarity[:, n]).argmax()
            found = scores.controls[layer][n, side, CONTROLS.index("most similar word")]
            assert found == pytest.approx(roc_auc_score(top, own @ words[one]), abs=1e-6)
    assert ("itself" in scores.referee) == itself


def test_controls_are_other_descriptions(clip, unseen, scored):
    """With labels true of nothing but a neuron's own words, no control can find them."""
    texts, labels, lens, scores = scored
    control = scores.controls[lens.layers[0]][:, 0, CONTROLS.index("random neuron")]
    assert (control < 1).all()
    fresh = replace(lens, scores={})
    again = score(clip, fresh, texts, unseen, labels, seed=1).controls[lens.layers[0]][:, 0]
    assert not torch.equal(again[:, 0], control)


def test_unreadable_pictures_are_left_out(clip, scored, unseen):
    texts, labels, lens, _ = scored
    lens = replace(lens, scores={})

    class Gaps:
        ids = tuple(map(str, range(COUNT)))

        def load(self, index):
            if index % 10 == 3:
                raise OSError("gone")
            return unseen[index]

    kept = [i for i in range(COUNT) if i % 10 != 3]
    found = score(clip, lens, texts, Gaps(), labels)
    expected = score(clip, lens, texts, InMemory(unseen[kept]), [labels[i] for i in kept])
    assert found.images == expected.images == 360
    for layer in lens.layers:
        torch.testing.assert_close(found.auc[layer], expected.auc[layer], equal_nan=True)


def test_scores_are_saved_with_the_lens(scored, tmp_path):
    *_, lens, scores = scored
    lens.save(tmp_path)
    (loaded,) = Lens.load(tmp_path).scores.values()
    assert loaded.name == scores.name == "planted by true labels on 400 pictures in memory"
    assert (loaded.images, loaded.top) == (COUNT, TOP)
    for name in ("auc", "low", "high", "controls"):
        for layer, tensor in getattr(scores, name).items():
            torch.testing.assert_close(getattr(loaded, name)[layer], tensor, equal_nan=True)
    table = score_table(loaded)
    assert "planted, judged by true labels" in table.title
    assert table.row_count == 2 * len(CONTROLS)


def test_ranked_leaves_out_neurons_without_words():
    auc = torch.tensor([[0.5, 0.1], [torch.nan, 0.9], [0.8, 0.2]])
    scores = Scores(
        vocabulary="a",
        referee="b",
        images=9,
        top=2,
        auc={0: auc},
        low={0: auc},
        high={0: auc},
        controls={0: auc[:, :, None].expand(-1, -1, 4)},
    )
    assert scores.ranked(0) == [2, 0]
    assert scores.ranked(0, side=1) == [1, 2, 0]
    assert [each.neurons for each in compare(scores)] == [2] * 4 + [3] * 4


def test_related_words_count_as_much_as_the_other_model_says(clip, other, unseen, described):
    lens, texts, indices, coefficients = described
    rng = np.random.default_rng(0)
    triples = list(combinations(texts.labels, 3))  # all different: equal ones would tie
    labels = [triples[i] for i in rng.choice(len(triples), COUNT, replace=False)]
    scores = score(clip, lens, texts, unseen, labels, related=other)
    assert other.name in scores.name
    words = normalise(texts.embed(other))
    layer = lens.layers[0]
    projection = projections(clip, lens, unseen, layer)
    for n in (0, 7):
        top = np.isin(np.arange(COUNT), projection[:, n].argsort(descending=True)[:TOP])
        predicted = [
            sum(
                float(weight) * float(words[text] @ words[texts.labels.index(label)])
                for text, weight in zip(indices[n], coefficients[n], strict=True)
                for label in held
                if weight > 0
            )
            for held in labels
        ]
        assert scores.auc[layer][n, 0] == pytest.approx(roc_auc_score(top, predicted), abs=1e-6)


def test_refusals(clip, other, unseen, scored):
    texts, labels, lens, _ = scored
    with pytest.raises(SecondLensError, match="cannot say which words are related"):
        score(clip, lens, texts, unseen, labels, related=clip)
    with pytest.raises(SecondLensError, match="no description 'else': choose one of planted"):
        score(clip, lens, vocabulary(["a"], name="else"), unseen, labels)
    with pytest.raises(SecondLensError, match="400 images and labels of 3"):
        score(clip, lens, texts, unseen, labels[:3])
    with pytest.raises(SecondLensError, match="referee of score must be"):
        score(clip, lens, texts, unseen, ["text 1"] * COUNT)
    for count in (1, 3):
        with pytest.raises(SecondLensError, match=f"{count} readable images are too few to score"):
            score(clip, lens, texts, unseen[:count], labels[:count])
    with pytest.raises(SecondLensError, match="other weights"):
        score(other, lens, texts, unseen, labels)


@pytest.fixture(scope="module")
def demo_lens(tmp_path_factory):
    clip = load("demo")
    lens = fit(clip, Scenes(World(), FIT_SEED, 50), [6])
    describe(clip, lens, ["dog", "cat", "whale", "ship", "snow", "sea"], 3)
    path = tmp_path_factory.mktemp("lens")
    lens.save(path)
    words = path.parent / "texts.txt"
    words.write_text("dog\ncat\nwhale\nship\nsnow\nsea\n")
    return path, words


def run(*arguments):
    return CliRunner().invoke(main, ["score", *map(str, arguments)])


def test_command_scores_on_unseen_scenes_and_saves(demo_lens, monkeypatch):
    path, words = demo_lens
    monkeypatch.setattr(import_module("secondlens.commands.score"), "UNSEEN_SCENES", 60)
    result = run(path, "--texts", words, "--dissect", "--stability")
    assert result.exit_code == 0, result.output
    assert "random neuron" in result.output
    assert "Refitted on two halves of 50 images" in result.output
    lens = Lens.load(path)
    for pool in ("texts", "texts, by activation"):
        for judge in ("true labels", "true labels, related words by demo-twin"):
            scores = lens.scores[f"{pool} by {judge} on 60 unseen scenes"]
            assert scores.images == 60
            assert scores.auc[6].isfinite().any()
    assert lens.stability["texts"].cosine[6].shape == (768,)


def test_command_needs_the_images_of_the_fit_to_refit(demo_lens, tmp_path):
    path, words = demo_lens
    lens = replace(Lens.load(path), image_ids=tuple(f"other-{i}" for i in range(50)))
    lens.save(tmp_path / "lens")
    result = run(tmp_path / "lens", "--texts", words, "--stability")
    assert result.exit_code == 2
    assert "--fit-images" in result.stderr


@pytest.fixture(scope="module")
def own_lens(demo_lens, tmp_path_factory):
    """A lens of pictures in a folder, and that folder."""
    folder = tmp_path_factory.mktemp("own")
    scenes = Scenes(World(), FIT_SEED, 20)
    (folder / "fitted").mkdir()
    for index in range(20):
        scenes.load(index).save(folder / "fitted" / f"{index:02}.png")
    clip = load("demo")
    lens = fit(clip, folder / "fitted", [6])
    describe(clip, lens, vocabulary(["dog", "cat", "whale", "ship"], name="mine"), 2)
    lens.save(folder / "lens")
    return folder


def pictures(folder, count, seed=99):
    """Scenes that nothing was fitted on."""
    folder.mkdir(parents=True)
    for index in range(count):
        Scenes(World(), seed, count).load(index).save(folder / f"new-{index}.png")
    return folder


def judged(*arguments):
    return run(*arguments, "--referee", "demo-twin")


def test_own_lenses_are_never_scored_on_drawn_scenes(own_lens):
    result = run(own_lens / "lens")
    assert result.exit_code == 2
    assert "needs --images, --referee: it was fitted on pictures of your own" in result.stderr
    result = run(own_lens / "lens", "--stability")
    assert "needs --images, --referee, --fit-images" in result.stderr


@pytest.mark.parametrize("renamed", [False, True])
def test_pictures_of_the_fit_are_not_unseen(own_lens, tmp_path, renamed):
    folder = pictures(tmp_path / "some", 6)
    name = "holiday.bmp" if renamed else "03.png"
    Image.open(own_lens / "fitted" / "03.png").save(folder / name)
    result = judged(own_lens / "lens", "--images", folder)
    assert result.exit_code == 2
    assert f"the picture '{name}' shows what '03.png' shows" in result.stderr
    assert not Lens.load(own_lens / "lens").scores


def test_ids_tell_where_a_lens_does_not_know_what_its_pictures_show(own_lens):
    lens = Lens.load(own_lens / "lens")
    clip, old = load("demo"), replace(lens, digests=())
    with pytest.raises(SecondLensError, match="fitted on 20 of these pictures, '00"):
        score(clip, old, "mine", own_lens / "fitted", load("demo-twin"))


def test_other_pictures_of_the_same_name_are_said_to_be_that(own_lens, tmp_path):
    folder = pictures(tmp_path / "some", 6)
    (folder / "new-1.png").rename(folder / "03.png")
    with pytest.warns(SecondLensWarning, match="1 of these pictures have ids of the fit, '03.png'"):
        score(load("demo"), Lens.load(own_lens / "lens"), "mine", folder, load("demo-twin"))


def test_scores_are_named_after_description_judge_and_pictures(own_lens, tmp_path):
    lens = tmp_path / "lens"
    Lens.load(own_lens / "lens").save(lens)
    one, other = (
        pictures(tmp_path / where / "val", 6, seed) for where, seed in (("a", 5), ("b", 6))
    )
    name = "mine by demo-twin on val"
    first = judged(lens, "--images", one, "--texts", "mine")
    assert first.exit_code == 0, first.output
    assert "mine, judged by demo-twin" in first.output
    assert "6 unseen images of val" in " ".join(first.output.split())
    before = Lens.load(lens).scores[name]
    assert judged(lens, "--images", other).exit_code == 0
    found = Lens.load(lens).scores
    assert list(found) == [name, f"{name} (2)"]
    torch.testing.assert_close(found[name].auc[6], before.auc[6], equal_nan=True)
    again = judged(lens, "--images", one)
    assert f"the earlier scores of {name} are replaced" in " ".join(again.stderr.split())
    assert list(Lens.load(lens).scores) == [name, f"{name} (2)"]
    said = json.loads(judged(lens, "--images", other, "--json").stdout)["scores"]
    assert [(each["referee"], each["pictures"]) for each in said] == [("demo-twin", "val (2)")]
    card = lens_card(Lens.load(lens))
    assert f"| `{name}` | 6 |" in card
    assert f"| `{name} (2)` | 6 |" in card
    assert Atlas(Lens.load(lens)).model()["scored_on"] == "val"


def test_descriptions_are_named(own_lens, tmp_path):
    folder = pictures(tmp_path / "some", 6)
    result = judged(own_lens / "lens", "--images", folder, "--texts", "yours")
    assert result.exit_code == 2
    assert "yours" in result.stderr


def test_command_says_what_is_missing(demo_lens, tmp_path):
    path, words = demo_lens
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    result = run(path, "--texts", words, "--images", tmp_path)
    assert result.exit_code == 2
    assert "need a referee" in result.stderr
