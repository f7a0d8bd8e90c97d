"""Fits over all paths against whole effects by class, and what reads them."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from engines import close
from models import tiny_images, tiny_model, tiny_tokenizer
from safetensors.torch import save_file
from test_fit import literal, same
from test_resume import Fragile, Interrupted

import secondlens as sl
from secondlens.applications.ablation.readings import Total
from secondlens.applications.auditing.ablated_clip import group_effects
from secondlens.commands.group import main
from secondlens.data.reader import Reader
from secondlens.data.sources import InMemory, as_source
from secondlens.demo.scenes import Scenes, World
from secondlens.effects import total_effects as module
from secondlens.effects.linearised import linearise
from secondlens.effects.projections import project
from secondlens.effects.total_effects import TotalProjector, by_token, outside, total_effects
from secondlens.engine.local import Local
from secondlens.errors import SecondLensError, SecondLensWarning
from secondlens.lens import total_shards
from secondlens.lens.lens import Lens
from secondlens.models.open_clip.views import from_open_clip
from secondlens.words.voting import vote

pytestmark = pytest.mark.filterwarnings("ignore:the .* axes leave out")
AXES, TOP, LAYER = 4, 6, 1
TEXTS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]
OPTIONS = {"top": TOP, "batch_size": 5, "paths": "all", "axes": AXES}


@pytest.fixture(scope="module")
def clip():
    model = tiny_model(dtype=torch.float64, layers=4)
    return from_open_clip(model, tokenizer=tiny_tokenizer, name="tiny")


@pytest.fixture(scope="module")
def images(clip):
    return tiny_images(clip, 23)


@pytest.fixture(scope="module")
def lens(clip, images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecondLensWarning)
        return sl.fit(clip, images, **OPTIONS)


@pytest.fixture
def own(lens):
    """One that may be written into."""
    total = replace(lens.all_paths, codes={}, names={}, scores={})
    return replace(lens, all_paths=total, codes={}, names={}, scores={})


def whole(clip, images, layer):
    """Total effects in the whole embedding, [images, neurons, dim], as the sum of their classes."""
    neurons = range(clip.neurons)
    return torch.cat([sl.paths_of(clip, some, layer, neurons).sum(2) for some in images.split(8)])


@pytest.fixture(scope="module")
def effects(clip, images):
    return {layer: whole(clip, images, layer) for layer in range(3)}


@pytest.mark.parametrize("numbers", [1, 10**9])
def test_total_effects_are_sums_over_classes(clip, images, monkeypatch, numbers):
    monkeypatch.setattr(module, "NUMBERS_ON_CPU", numbers)  # axes at a time
    axes = torch.randn(3, clip.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tower = linearise(clip, images[:4])
    found = total_effects(tower, axes, [0, 2, 3])
    for layer, own in found.items():
        expected = whole(clip, images[:4], layer) @ axes.T
        torch.testing.assert_close(own, expected.transpose(0, 1), rtol=1e-10, atol=1e-13)
    vectors = {
        layer: (torch.tensor([5, 1]), torch.randn(2, 3, 3, dtype=torch.float64)) for layer in (0, 3)
    }
    tokens = by_token(tower, axes, vectors)
    expected = sum(
        torch.einsum("nba,nva->bv", found[layer][neurons], kinds)
        for layer, (neurons, kinds) in vectors.items()
    )
    assert tokens.shape == (4, clip.tokens, 3)
    torch.testing.assert_close(tokens.sum(1), expected, rtol=1e-10, atol=1e-13)


def test_workers_give_the_same_lens(clip, images, lens, tmp_path):
    """Each has a process of its own and a part of the shards."""
    found = sl.fit(
        clip, images, **OPTIONS, shard_size=6, out=tmp_path / "lens", engine=Local(workers=2)
    )
    close(found, lens)
    close(found.over("all"), lens.over("all"))
    loaded = Lens.load(tmp_path / "lens")
    torch.testing.assert_close(loaded.over("all").axes.rows, lens.over("all").axes.rows)


def test_a_fit_equals_whole_effects_along_its_axes(clip, lens, effects, images):
    total = lens.over("all")
    axes = total.axes.rows
    assert total.layers == lens.layers == [0, 1, 2] and total.paths == "all"
    torch.testing.assert_close(axes @ axes.T, torch.eye(AXES, dtype=torch.float64))
    for layer in total.layers:
        mean, neurons = literal((effects[layer] @ axes.T @ axes).numpy(), TOP)
        fitted = total[layer]
        np.testing.assert_allclose(fitted.mean, mean, atol=1e-10)
        for n, neuron in enumerate(neurons):
            np.testing.assert_array_equal(fitted.top_images[n], neuron["top_images"])
            np.testing.assert_allclose(fitted.directions[n], neuron["direction"], atol=1e-7)
            for name in ("explained", "explained_all", "top_norms", "selectivity", "energy"):
                np.testing.assert_allclose(getattr(fitted, name)[n], neuron[name], rtol=1e-10)
        torch.testing.assert_close(fitted.activation_mean, lens[layer].activation_mean)


def test_the_value_path_is_fitted_as_ever(clip, images, lens):
    alone = sl.fit(clip, images, top=TOP, batch_size=5)
    same(alone, lens)
    assert alone.all_paths is None and alone.paths == "value"


def test_axes_are_principal_and_what_they_leave_out_is_measured(clip, lens, effects):
    """All of few images give the axes, each neuron in units of its energy in the first batch."""
    moment, energies = 0, []
    for layer in lens.layers:
        first = effects[layer][sorted(FIRST)]
        mean = first.mean(0)
        size = (first - mean).square().sum((0, 2)).sqrt()
        rows = ((effects[layer] - mean) / size[:, None]).flatten(0, 1)
        moment = moment + rows.T @ rows
        away = effects[layer] - effects[layer].mean(0)
        axes = lens.all_paths.axes.rows
        beyond = (away @ outside(axes, 16).T).square().sum() / 16
        energies.append(float(beyond / (beyond + (away @ axes.T).square().sum())))
        within = (away @ axes.T).square().sum() / away.square().sum()
        assert energies[-1] == pytest.approx(1 - float(within), rel=0.5)
    expected = torch.linalg.eigh(moment)[1].flip(1).T[:AXES]
    turned = (expected @ lens.all_paths.axes.rows.T).abs()
    torch.testing.assert_close(turned, torch.eye(AXES, dtype=torch.float64), rtol=0, atol=1e-7)
    np.testing.assert_allclose(lens.all_paths.axes.left_out, energies, rtol=1e-9)


FIRST = range(total_shards.PILOT_BATCH)


def test_with_all_axes_nothing_is_left_out(clip, images, effects):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        total = sl.fit(clip, images, [LAYER], top=TOP, paths="all", axes=clip.dim).over("all")
    assert not total.axes.left_out.any()
    away = effects[LAYER] - effects[LAYER].mean(0)
    torch.testing.assert_close(total[LAYER].energy, away.square().sum(2).mean(0))


def test_what_is_left_out_is_told(clip, images):
    with pytest.warns(SecondLensWarning, match=r"the 2 axes leave out \d+ % of the energy"):
        sl.fit(clip, images, [LAYER], top=TOP, paths="all", axes=2)


def test_many_images_give_axes_and_what_these_leave_out_apart(clip, monkeypatch):
    monkeypatch.setattr(total_shards, "PILOT_IMAGES", 8)
    monkeypatch.setattr(total_shards, "PROBED_IMAGES", 8)
    fitted = sl.fit(clip, tiny_images(clip, 40), [0], top=3, paths="all", axes=AXES)
    left_out = float(fitted.all_paths.axes.left_out)
    others = whole(clip, tiny_images(clip, 40, seed=7), 0)
    away = others - others.mean(0)
    axes = fitted.all_paths.axes.rows
    within = (away @ axes.T).square().sum() / away.square().sum()
    assert left_out == pytest.approx(1 - float(within), rel=0.4)


@pytest.mark.parametrize("store", ["never", "float32"])
@pytest.mark.parametrize("limit", [60, 100, 125])
def test_a_resumed_fit_equals_one_that_was_not_interrupted(clip, images, tmp_path, store, limit):
    options = {"layers": [2], "top": 5, "batch_size": 3, "shard_size": 6, "store": store}
    options |= {"paths": "all", "axes": 3}
    undisturbed = sl.fit(clip, Fragile(images), out=tmp_path / "whole", **options)
    out = tmp_path / "lens"
    try:
        sl.fit(clip, Fragile(images, limit), out=out, **options)
    except Interrupted:
        assert not out.exists()
    resumed = sl.fit(clip, Fragile(images), out=out, **options) if not out.exists() else None
    for one in (resumed, Lens.load(out), Lens.load(tmp_path / "whole")):
        if one is not None:
            same(undisturbed, one)
            same(undisturbed.over("all"), one.over("all"))
            axes = one.all_paths.axes
            assert torch.equal(axes.rows, undisturbed.all_paths.axes.rows)
            assert torch.equal(axes.left_out, undisturbed.all_paths.axes.left_out)
    assert not (tmp_path / "lens.unfinished").exists()


def test_groups_of_layers_and_samples_give_the_same(clip, images, lens):
    sampled = sl.fit(clip, images, sample=12, **OPTIONS).over("all")
    assert sampled.sample == 12
    for layer in sampled.layers:
        for name in ("mean", "energy", "top_norms", "top_images", "directions"):
            torch.testing.assert_close(
                getattr(sampled[layer], name), getattr(lens.all_paths[layer], name)
            )


def test_images_on_which_the_network_is_not_finite_are_skipped_over_all_paths_too(clip, images):
    broken = images.clone()
    broken[7] = torch.nan
    found = sl.fit(clip, broken, **OPTIONS)
    assert set(found.skipped) == {"7"} and found.all_paths.skipped == found.skipped
    rest = torch.cat([images[:7], images[8:]])
    mean = whole(clip, rest, LAYER).mean(0)
    axes = found.all_paths.axes.rows
    torch.testing.assert_close(found.all_paths[LAYER].mean, mean @ axes.T @ axes)


def test_mistakes(clip, images, lens):
    alone = sl.fit(clip, images, [LAYER], top=TOP)
    with pytest.raises(SecondLensError, match="run secondlens fit --paths all"):
        alone.over("all")
    with pytest.raises(SecondLensError, match="no paths 'both': choose value or all"):
        lens.over("both")
    with pytest.raises(SecondLensError, match="take the lens that holds it"):
        lens.over("all").over("value")
    assert lens.over("value") is lens and lens.over("all").over("all") is lens.all_paths
    for settings, message in (
        ({"paths": "some"}, "no paths 'some'"),
        ({"axes": 3}, "add paths all"),
        ({"paths": "all", "axes": 0}, "axes must lie between 1 and the width"),
        ({"paths": "all", "axes": clip.dim + 1}, "axes must lie between 1 and the width"),
        ({"paths": "all", "convention": "official"}, "over all paths are exact"),
    ):
        with pytest.raises(SecondLensError, match=message):
            sl.fit(clip, images, **settings)
    total = lens.over("all")
    for work in (
        lambda: sl.AblatedClip(clip, total, {0: [1]}),
        lambda: sl.segment(clip, total, images[0], ["ant"]),
        lambda: total.save("anywhere"),
    ):
        with pytest.raises(SecondLensError, match="needs effects of the value path"):
            work()


def test_what_is_put_in_is_saved_and_loaded(clip, own, tmp_path):
    sl.describe(clip, own, TEXTS, 3)
    own.save(tmp_path)
    sl.describe(clip, own.over("all"), TEXTS, 4)
    fresh = InMemory(tiny_images(clip, 60, seed=4), ids=[f"new-{i}" for i in range(60)])
    labels = [{TEXTS[i % 3]} for i in range(60)]
    sl.name(clip, own.over("all"), fresh, TEXTS, labels)
    sl.score(clip, own.over("all"), sl.vocabulary(TEXTS), fresh, labels)
    own.save(tmp_path)
    found = Lens.load(tmp_path)
    assert [len(found.codes), len(found.names), len(found.scores)] == [1, 0, 0]
    total = found.over("all")
    assert [len(total.codes), len(total.names), len(total.scores)] == [1, 1, 1]
    for codes, held in ((found.codes, own.codes), (total.codes, own.all_paths.codes)):
        for layer, indices in next(iter(codes.values())).indices.items():
            assert torch.equal(indices, next(iter(held.values())).indices[layer])
    manifest = json.loads((tmp_path / "lens.json").read_text())
    assert set(manifest["all_paths"]) == {"codes", "scores", "stability", "names"}
    files = {path.name for path in tmp_path.iterdir()}
    assert {"all-paths-axes.safetensors", "all-paths-names-00.safetensors"} <= files
    replace(found, all_paths=None).save(tmp_path / "without")
    assert Lens.load(tmp_path / "without").all_paths is None
    assert not [p for p in (tmp_path / "without").iterdir() if "all-paths" in p.name]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"rows": torch.zeros(4, 11), "left_out": torch.zeros(3)}, "dim"),
        ({"rows": torch.full((4, 12), torch.nan), "left_out": torch.zeros(3)}, "not finite"),
        ({"rows": torch.zeros(4, 12), "left_out": torch.zeros(2)}, "layers"),
        ({"rows": torch.zeros(4, 12)}, "left_out"),
    ],
)
def test_damaged_axes_are_refused(own, tmp_path, tensors, message):
    own.save(tmp_path)
    save_file(tensors, tmp_path / "all-paths-axes.safetensors")
    with pytest.raises(SecondLensError, match=message):
        Lens.load(tmp_path)


def test_projections_are_products_of_whole_effects(clip, images, lens, effects):
    total = lens.over("all")
    along = {n: TotalProjector(total.axes.rows, total[n].directions[:, None]) for n in lens.layers}
    found = project(clip, images, along, batch_size=7)
    assert found.positions == list(range(23))
    for layer, products in found.products.items():
        expected = (effects[layer] * total[layer].directions).sum(2)
        torch.testing.assert_close(products[:, :, 0], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.embeddings, F.normalize(clip.encode_image(images), dim=1))


def centred(effects, total, layer):
    axes = total.axes.rows
    return effects[layer] @ axes.T @ axes - total[layer].mean


def test_ablation_reads_total_effects(clip, images, lens, effects):
    total = lens.over("all")
    chosen = [3, 0, 40]
    reader = Total(clip, {LAYER: total[LAYER]}, total.axes, chosen)
    reader.aim({LAYER: reader.directions[LAYER][:, None]})
    embedding, readings = reader.read(images)
    away = centred(effects, total, LAYER)[:, chosen]
    reading = readings[LAYER]
    torch.testing.assert_close(reading.norms, away.norm(dim=2))
    along = (away * total[LAYER].directions[chosen]).sum(2)
    torch.testing.assert_close(reading.along[:, :, 0], along)
    mask = reading.norms > reading.norms.median()
    torch.testing.assert_close(reading.sum(mask), (away * mask[:, :, None]).sum(1))
    torch.testing.assert_close(reading.sum(None), away.sum(1))
    torch.testing.assert_close(embedding, F.normalize(clip.encode_image(images), dim=1))


def test_ablate_takes_total_effects_of_a_lens(clip, images, lens, effects):
    classifier = clip.encode_text(TEXTS)
    labels = [i % len(TEXTS) for i in range(23)]
    found = sl.ablate(clip, lens.over("all"), images, labels, classifier, layers=[LAYER])
    without = F.normalize(clip.encode_image(images), dim=1)
    without = without - centred(effects, lens.over("all"), LAYER).sum(1)
    scores = without @ classifier.T
    own = scores.gather(1, torch.tensor(labels)[:, None])
    assert torch.equal(found.ranks[LAYER, "all"], (scores > own).sum(1))


def test_groups_of_an_audit_are_sums(clip, images, lens, effects):
    total = lens.over("all")
    groups = [[(0, 3), (2, 1), (2, 40)], [(2, 1)], []]
    reader = Reader(source=as_source(images), clip=clip, batch_size=9)
    found = torch.cat([each for *_, each in group_effects(clip, total, groups, reader, False)])
    for i, group in enumerate(groups):
        parts = [centred(effects, total, layer)[:, n] for layer, n in group]
        expected = sum(parts, torch.zeros(23, clip.dim, dtype=torch.float64))
        torch.testing.assert_close(found[:, i], expected, rtol=1e-9, atol=1e-12)


def test_an_audit_runs_on_total_effects(clip, images, lens):
    fresh = InMemory(tiny_images(clip, 20, seed=4), ids=[f"new-{i}" for i in range(20)])
    arguments = (TEXTS[:4], fresh, TEXTS[4:])
    total = sl.audit(clip, lens.over("all"), *arguments, chance=1.0)
    value = sl.audit(clip, lens, *arguments, chance=1.0)
    assert total.effect.shape == value.effect.shape and not total.effect.equal(value.effect)


def test_discovered_words_are_those_of_total_effects(clip, images, own):
    """Each token's effects along the axes, and the parts of neurons, by differentiation."""
    total = own.over("all")
    sl.describe(clip, total, TEXTS, 3)
    rows = clip.encode_text(TEXTS)
    atoms = F.normalize(rows - rows.mean(0), dim=1)
    axes = total.axes.rows.to(atoms)
    tower = linearise(clip, images[:1])
    away = {n: tower.activations[n][0] - total[n].activation_mean for n in total.layers}
    sent = torch.zeros(clip.tokens, len(axes), dtype=torch.float64)
    for layer in total.layers:
        for n in range(clip.neurons):
            own_axes = {layer: (torch.tensor([n]), torch.eye(len(axes)).double()[None])}
            carried = by_token(tower, axes, own_axes)[0]
            sent += carried / tower.activations[layer][0, :, n, None] * away[layer][:, n, None]
    expected = vote(sent @ axes, atoms, len(TEXTS))
    words = sl.discover(clip, total, images[0], 3, layers=total.layers)
    found = {word.text: word.weight for word in words if not word.synonyms}
    assert found
    by_text = {TEXTS[i]: float(w) for i, w in zip(expected.indices, expected.weights, strict=True)}
    assert found == pytest.approx({text: by_text[text] for text in found}, abs=1e-10)
    for word in words:
        parts = sum(each.weight for each in word.neurons) + word.others
        assert parts == pytest.approx(word.weight, abs=1e-12)
        assert float(word.patches.sum()) + word.class_token == pytest.approx(word.weight, abs=1e-12)
        assert not word.heads.numel()


@pytest.mark.long
def test_commands_take_either_kind_of_effects(tmp_path, monkeypatch):
    for few in ("PILOT_IMAGES", "PROBED_IMAGES"):
        monkeypatch.setattr(total_shards, few, 2)

    def run(*arguments, code=0):
        result = CliRunner().invoke(main, [str(each) for each in arguments])
        assert result.exit_code == code, result.output
        return result.output

    (tmp_path / "photos").mkdir()
    for i in range(8):
        Scenes(World(), 1, 8).load(i).save(tmp_path / "photos" / f"{i}.png")
    lens = tmp_path / "lens"
    fitting = ("fit", tmp_path / "photos", "--layers", "5,6", "--top", 2)
    said = run(*fitting, "--out", lens, "--paths", "all", "--axes", 3)
    assert "all paths along 3 axes" in said and "leave out" in said
    run("describe", lens, "--texts", "world", "--paths", "all")
    found = json.loads(run("search", lens, "a ship", "--paths", "all", "--top", 3, "--json"))
    total = Lens.load(lens).over("all")
    expected = sl.search(sl.load("demo"), total, "a ship", 3)
    assert [(row["layer"], row["neuron"]) for row in found["neurons"]] == [
        (match.layer, match.neuron) for match in expected
    ]
    photo = tmp_path / "photos" / "0.png"
    page = tmp_path / "page.html"
    said = run("discover", lens, photo, "--paths", "all", "--page", page)
    assert "strongest head" not in said and "total effects" in page.read_text()
    value = tmp_path / "value"
    run(*fitting, "--out", value)
    said = run("search", value, "a ship", "--paths", "all", code=2)
    assert "run secondlens fit --paths all" in said and "Traceback" not in said
