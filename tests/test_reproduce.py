"""Reproductions, ablations and budgets from the command line, on a few scenes."""

import csv
import hashlib
import io
import json
import re
from dataclasses import replace
from importlib import import_module

import click
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

import secondlens as sl
from secondlens.applications.ablation.budget import SPLIT
from secondlens.commands.group import main
from secondlens.commands.reproduce import reproduce
from secondlens.data.embedding import normalise
from secondlens.data.labelled import TEMPLATE, imagenet_names
from secondlens.data.vocabularies import vocabulary
from secondlens.demo.scenes import FIT_SEED, Scenes, World
from secondlens.effects.all_paths import CLASSES as PATHS
from secondlens.errors import SecondLensError
from secondlens.paper import everything, neurons, pools, study, table2, table4
from secondlens.paper.curves import LABELS
from secondlens.paper.distributions import distributions
from secondlens.paper.effect_budget import effect_budget
from secondlens.paper.fig4 import fig4
from secondlens.paper.fig5 import fig5
from secondlens.paper.fig8 import fig8
from secondlens.paper.fig9 import fig9
from secondlens.paper.fig10 import fig10
from secondlens.paper.fig12 import fig12
from secondlens.paper.registry import APART, results
from secondlens.paper.results import Result, Setting, as_document, cell, show
from secondlens.paper.study import LAYER_SEED, TEST_SEED, scenes
from secondlens.paper.table1 import PAPER, SHOWN, table1
from secondlens.registry import Registry
from secondlens.sparse.pursuit import omp

LAYER = 5
FEW = {"DEMO_TEST_IMAGES": 12, "DEMO_LAYER_IMAGES": 4, "BUDGET_IMAGES": 3}


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def clip():
    return sl.load("demo")


@pytest.fixture(scope="module")
def lens(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("lens") / "lens"
    sl.fit(clip, Scenes(World(), FIT_SEED, 50), [LAYER, 6], out=path)
    return path


@pytest.fixture(scope="module")
def few():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FEW.items():
            patch.setattr(study, name, value)
        yield


@pytest.fixture(scope="module")
def tiny(clip, lens, few, tmp_path_factory):
    return study.Study(
        model="demo",
        published=None,
        load=lambda: clip,
        demo=True,
        images=None,
        shifted=None,
        lens_path=lens,
        out=tmp_path_factory.mktemp("out"),
        subset=None,
        fit_images=50,
        chosen_layer=LAYER,
        shown=(),
        sample=3,
        effect_images=10,
        pools=("world",),
        follow="paper",
        convention="exact",
    )


def test_fig3_prints_and_writes(lens, few, tmp_path, clip):
    out = tmp_path / "paper"
    result = run("reproduce", "fig3", "--demo", "--lens", lens, "--out", out)
    assert result.exit_code == 0
    assert "Differs from the paper:" in result.output and "model: demo" in result.output
    rows = rows_of(out / "fig3.csv")
    assert len(rows) == 1 + 2 * 6
    pictures = scenes(TEST_SEED, 12, planted=True)
    found = sl.ablate(
        *(clip, sl.Lens.load(lens), pictures.source, pictures.labels),
        pictures.classes.embed(clip),
    )
    by_kind = {(row["layer"], row["ablated"]): row for row in rows}
    assert float(by_kind["", "nothing"]["top-1 %"]) == pytest.approx(100 * found.baseline())
    for kind, name in (("all", "w/o all neurons"), ("first component", "rec. from PC #1")):
        row = by_kind[str(LAYER), name]
        assert float(row["top-1 %"]) == pytest.approx(100 * found.accuracy(LAYER, kind))
        assert float(row["top-5 %"]) == pytest.approx(100 * found.accuracy(LAYER, kind, top=5))
    content = json.loads((out / "fig3.json").read_text())
    model = {"name": "model", "ours": "demo", "paper": "ViT-B-32 (openai)", "harmless": False}
    assert model in content["settings"] and content["comparable"] is False
    with Image.open(out / "fig3.png") as picture:
        assert picture.width > 300
    assert not list(out.glob("*.partial"))


def test_table1_has_the_papers_numbers_and_a_row_for_each_neuron(tiny):
    found = table1(tiny)
    rows = {row["effect"]: row for row in found.rows}
    assert rows["second-order"]["paper, top-1"] == PAPER["second-order"][0] == 29.6
    assert rows["indirect"]["paper, PC #1"] == 11.0
    assert rows["direct"]["PC #1, all images, %"] == pytest.approx(100)
    assert rows["second-order"]["top-1 % without it"] == pytest.approx(
        100 * tiny.ablation.accuracy(LAYER, "all")
    )
    assert len(found.details) == 3 * 3
    assert "model" in [setting.name for setting in found.differing]


def test_budget_adds_up(tiny):
    found = effect_budget(tiny)
    for row in found.rows:
        parts = (row["direct, %"], row["second-order, %"], row["remainder, %"])
        assert sum(parts) == pytest.approx(100, abs=1e-3)
    assert {"layer", "remainder, %"} <= set(found.shown[0])
    assert [row["layer"] for row in found.rows] == [LAYER, 6]


def test_distributions_are_quantiles_of_the_lens(tiny):
    rows = {(row["layer"], row["claim"]): row for row in distributions(tiny).rows}
    values = tiny.lens[LAYER].selectivity.double()
    row = rows[LAYER, "energy in top images"]
    assert row["50%"] == pytest.approx(float(values.quantile(0.5)))
    above = values > tiny.lens[LAYER].selectivity_null
    assert row["above null, %"] == pytest.approx(100 * float(above.double().mean()))


def test_words_are_the_strongest_of_the_paper_s_code(tiny):
    found, world = table2.table2(tiny), tiny.texts[0]
    fitted = tiny.lens[LAYER]
    neuron = int(found.rows[0]["neuron"][1:])
    ratio = fitted.selectivity / fitted.selectivity_null
    assert neuron == int(ratio.argmax())
    atoms = normalise(world.embed(tiny.clip), "unit")
    indices, weights = omp(fitted.directions[[neuron]], atoms, 32)
    best = weights[0].abs().argmax()
    sign = "+" if weights[0, best] > 0 else "−"
    text = found.rows[0]["strongest, − pushes away"]
    assert text.startswith(f"{sign}{world.labels[indices[0, best]]} ")
    assert found.rows[0]["paper, 30,000 words"] == f"#4 {table2.PAPER[4]}"


def test_pictures_and_concepts(tiny):
    top = fig5(tiny)
    assert (
        top.rows[0]["picture"]
        == tiny.lens.image_ids[tiny.lens[LAYER].top_images[top.rows[0]["neuron"], 0]]
    )
    assert top.picture is not None
    concepts = fig8(tiny)
    assert {row["picture"] for row in concepts.rows} == {
        tiny.test.source.ids[i] for i in (0, 3, 6, 9)
    }
    assert all(row["weight"] > 0 for row in concepts.rows)


def test_neurons_are_shown_by_name(lens, tmp_path):
    out, named = tmp_path / "out", f"{LAYER}:7,{LAYER}:700"
    options = ("reproduce", "table2", "--demo", "--lens", lens, "--out", out, "--neurons", named)
    assert run(*options).exit_code == 0
    assert [row["neuron"] for row in rows_of(out / "table2.csv")] == ["#7", "#700"]
    for named, said in {
        "5:4,6:4": "name neurons of one layer, not of 5, 6",
        f"{LAYER}:768": f"layer {LAYER} has no neuron 768: the last is 767",
        "5:": "'5:' is neither a number of neurons nor some of them",
        "0": "'0' is neither",
    }.items():
        refused = run(*options[:-1], named)
        assert refused.exit_code == 2 and said in refused.stderr, refused.output


def test_the_papers_neurons_are_those_of_its_weights(tiny, monkeypatch):
    """By what they were published as, and not by what they are called."""
    monkeypatch.setattr(neurons, "PAPER_LAYER", LAYER)
    papers = [4, 391]
    of_paper = replace(tiny, published=study.PAPER_MODEL)
    assert neurons.shown_neurons(of_paper, papers, 0)[0] == papers
    called = replace(tiny, model=study.PAPER_MODEL)
    assert neurons.shown_neurons(called, papers, 0)[0] != papers
    (model,) = (each for each in called.settings() if each.name == "model")
    assert model.ours == study.PAPER_MODEL


def test_one_layer_is_fitted_where_one_is_shown(tiny, tmp_path):
    """Of photographs; the deciding layer of the embedded world is found with a lens of all."""
    pictures = {"fit_source": tiny.scenes(TEST_SEED, 50).source}
    made, again = (replace(tiny, demo=False, lens_path=None, out=tmp_path) for _ in range(2))
    vars(made).update(pictures), vars(again).update(pictures)
    rows = table2.table2(made).rows
    (folder,) = (tmp_path / "lens").iterdir()
    assert folder.name == f"demo-layer-{LAYER}" and made.layer_lens.layers == [LAYER]
    written = (folder / "lens.json").stat().st_mtime_ns
    assert table2.table2(again).rows == rows
    assert (folder / "lens.json").stat().st_mtime_ns == written
    assert "lens" not in vars(made) and "lens" not in vars(again)


@pytest.mark.long
def test_fig4_has_a_line_for_each_vocabulary_and_control(tiny):
    few = vocabulary(["ship", "sea", "snow", "red", "owl"], name="few")
    both = replace(tiny)
    vars(both).update(lens=tiny.lens, texts=[*tiny.texts, few])
    found = fig4(both)
    ways = {row["texts"] for row in found.rows}
    assert ways == {
        *("nothing replaced", "first component", "all ablated"),
        *("world", "few", "random texts", "random directions"),
    }
    ends = {row["texts"]: row["top-1 %"] for row in found.rows if row["m"] is None}
    assert ends["nothing replaced"] == pytest.approx(100 * tiny.ablation.baseline())
    first = 100 * tiny.ablation.accuracy(LAYER, "first component")
    assert ends["first component"] == pytest.approx(first)
    sizes = [row["m"] for row in found.shown]
    assert sizes == sorted(sizes) and set(found.shown[0]) >= {"m", "world", "few"}
    assert found.picture is not None
    assert {s.name: s.ours for s in found.settings}["vocabularies"] == "world, few"


@pytest.mark.long
def test_the_second_model_is_the_twin_with_a_lens_of_its_own(tiny, tmp_path):
    one = replace(tiny, out=tmp_path, effect_images=10)
    result = fig9(one)
    assert {s.name: s.ours for s in result.settings}["model"] == "demo-twin"
    assert (tmp_path / "lens" / "demo-twin" / "lens.json").is_file()
    assert one.second.lens.model["weights"] == one.second.clip.weights_hash
    again = replace(one.second)
    assert again.lens.image_ids == one.second.lens.image_ids
    attention = fig12(one)
    assert {row["ablated"] for row in attention.rows} == {
        *("nothing", "w/o attention up to here", "w/o this attention layer")
    }
    fewer = replace(one.second, fit_images=40)
    with pytest.raises(SecondLensError, match="was fitted with pictures 50 and not 40"):
        _ = fewer.lens


def test_shifted_pictures_and_the_layer_by_accuracy(tiny):
    found = fig10(tiny)
    assert "unseen scenes in a held-out style" in found.title
    free = replace(tiny, chosen_layer=None)
    scored = free.ablate(free.scenes(LAYER_SEED, FEW["DEMO_LAYER_IMAGES"]))
    accuracies = {layer: scored.accuracy(layer, "all") for layer in scored.layers}
    assert accuracies[free.layer] == min(accuracies.values())
    nothing = replace(tiny, demo=False)
    for name, message in (
        ("test", "name pictures with --images"),
        ("shifted_test", "ImageNet-R with --shifted"),
        ("fit_source", "name ImageNet with --images"),
    ):
        with pytest.raises(SecondLensError, match=message):
            getattr(nothing, name)


@pytest.mark.long
def test_table4_is_a_result_like_the_others(tiny, monkeypatch):
    monkeypatch.setattr(table4, "DEV_IMAGES", 1)
    monkeypatch.setattr(table4, "TEST_IMAGES", 1)
    found = table4.table4(tiny)
    assert "1 picture)" in found.title
    ways = {(row["method"], row["protocol"], row["group"]) for row in found.rows}
    assert len(ways) == len(found.rows) == len(found.shown) > 8
    assert all(0 <= row["miou"] <= 100 for row in found.rows)
    assert any(row["paper, mIoU"] for row in found.rows)


def test_pictures_that_cannot_be_read_are_named(tiny):
    class Broken:
        ids = tiny.test.source.ids

        def load(self, index):
            raise OSError("gone")

    broken = replace(tiny)
    known = {"lens": tiny.lens, "texts": tiny.texts}
    vars(broken).update(known, test=replace(tiny.test, source=Broken()))
    with pytest.raises(SecondLensError, match=rf"{Broken.ids[0]}' cannot be read: .*gone"):
        fig8(broken)


def test_table4_of_photographs_needs_masks(tiny):
    with pytest.raises(SecondLensError, match="name masks: secondlens reproduce table4 --images"):
        table4.table4(replace(tiny, demo=False))


@pytest.fixture
def only(monkeypatch):
    """A function that leaves the page with everything these results alone, and adds a failure."""

    def missing(_):
        raise SecondLensError("no attack was run")

    def some(*names):
        registry = Registry("result", "results")
        for name in names:
            registry.register(name, results[name], help=results[name].help)
        registry.register("missing", missing, help="What is not there.")
        monkeypatch.setattr(everything, "results", registry)

    return some


def test_all_with_nothing_says_why(tiny, only):
    only("table3")
    with pytest.raises(SecondLensError, match="no attack was run"):
        everything.reproduce_all(tiny, Console(quiet=True))


def test_all_makes_a_page_and_says_what_is_left_out(lens, few, tmp_path, only):
    only("fig3", "table3", "fig11")
    out = tmp_path / "paper"
    result = run("reproduce", "all", "--demo", "--lens", lens, "--out", out, "--effect-images", 10)
    assert result.exit_code == 0
    page = (out / "index.html").read_text()
    assert 'id="fig3"' in page and 'id="fig11"' in page and "no attack was run" in page
    assert "attacks take a run of their own" in page
    assert page.count("data:image/png;base64") == 2
    assert (out / "fig11.csv").is_file()


@pytest.mark.long
def test_the_second_model_of_photographs_is_a_study_of_its_own(tiny, only, tmp_path):
    """The embedded world has a second model, photographs have one only where it is named."""
    only("fig9", "fig12")
    with pytest.raises(SecondLensError, match="no attack was run"):
        everything.reproduce_all(replace(tiny, demo=False), Console(quiet=True))
    made, left_out, _ = everything.reproduce_all(replace(tiny, out=tmp_path), Console(quiet=True))
    assert [each.name for each in made] == ["fig9", "fig12"] and set(left_out) == {"missing"}


def test_all_takes_masks_and_a_second_model(tiny, only, tmp_path, monkeypatch):
    for name in "123":
        for folder in ("images", "masks"):
            (tmp_path / folder / "dog").mkdir(parents=True, exist_ok=True)
            Image.new("RGB" if folder == "images" else "L", (64, 64)).save(
                tmp_path / folder / "dog" / f"{name}.png"
            )
    seen = {}

    def compared(clip, lens, work, *, model, second, predicted, cropped):
        seen.update(dev=len(work.dev), test=len(work.test), given=(model, predicted, cropped))
        return result("table4")

    def result(name):
        settings = [Setting(name="model", ours="x", paper="x")]
        return Result(name=name, title=name, rows=[{"a": 1}], settings=settings)

    monkeypatch.setattr(table4, "compare", compared)
    only("table4", "fig9")
    everything.results.register("second", lambda given: result(given.second.model), help="It.")
    twin = study.SecondModel(model="twin", published=None, load=lambda: sl.load("demo-twin"))
    photographs = replace(
        tiny, demo=False, masks=tmp_path, second_model=twin, follow="code", out=tmp_path / "out"
    )
    other = photographs.second
    assert (other.model, other.lens_path, other.chosen_layer) == ("twin", None, None)
    assert other.clip.name == "demo-twin" and other.layer == other.clip.layers - 3
    monkeypatch.setattr(everything, "APART", {"second": APART["fig9"], "fig9": APART["table3"]})
    said = Console(file=io.StringIO())
    made, left_out, _ = everything.reproduce_all(photographs, said)
    assert [each.name for each in made] == ["table4", "twin"]
    assert set(left_out) == {"fig9", "missing"}
    assert seen == {"dev": 1, "test": 2, "given": ("demo", True, True)}
    lines = said.file.getvalue().splitlines()
    assert "table4 is done (1 of 4)" in lines and "second is done (4 of 4)" in lines
    assert "missing is left out: no attack was run" in lines


def test_a_result_of_ones_own_is_one_function(few, tmp_path, monkeypatch):
    @results.register("sizes", help="How wide and high pictures are.")
    def sizes(study):
        source = study.test.source
        rows = [{"picture": source.ids[i], "width": source.load(i).width} for i in range(3)]
        return Result(name="sizes", title="sizes", rows=rows, settings=[], facts={"pictures": 3})

    assert re.search(r"sizes +How wide and high pictures are\.", run("reproduce", "--help").output)
    said = run("reproduce", "sizes", "--demo", "--out", tmp_path / "out", "--json").stdout
    found = json.loads(said)
    assert [row["width"] for row in found["rows"]] == [64, 64, 64]
    assert set(found) == {"title", "rows", "notes", "settings", "comparable", "facts"}
    assert found == json.loads((tmp_path / "out" / "sizes.json").read_text())
    with pytest.raises(SecondLensError, match="there is a result 'sizes' already"):
        results.register("sizes", sizes, help="The same again.")


def test_every_result_has_a_command_with_its_line_of_help():
    context = click.Context(reproduce)
    names = set(reproduce.list_commands(context))
    assert set(results.names) == names - {"all"}
    for member in results:
        assert reproduce.get_command(context, member.name).help.startswith(f"{member.help}\n\n")
    assert set(APART) <= names


def test_results_know_what_differs():
    result = Result(
        name="x",
        title="x",
        rows=[{"a": 1}],
        settings=[
            Setting(name="m", ours="8", paper="128"),
            Setting(name="k", ours="1", paper="1"),
        ],
    )
    assert [str(each) for each in result.differing] == ["m: 8 (paper: 128)"]
    assert [cell(value) for value in (None, 29.64, 7, "x", 0.0123, 1.0)] == [
        *("", "29.6", "7", "x", "0.012", "1.0")
    ]


def test_numbers_of_the_paper_are_grey_where_settings_are_others(tmp_path):
    same = Setting(name="m", ours="128", paper="128")
    open_to = Setting(name="prompts", ours="80", paper="an example", harmless=True)
    other = Setting(name="pictures", ours="scenes", paper="ImageNet")
    shown = {}
    for name, settings in {"alike": [same, open_to], "apart": [same, other]}.items():
        row = {"effect": "all", "top-1": 30.0, "paper, top-1": 29.6}
        result = Result(name=name, title=name, rows=[row], settings=settings)
        console = Console(force_terminal=True, color_system="standard", file=io.StringIO())
        show(result, console)
        everything.write_report([result], {}, tmp_path / f"{name}.html")
        page = (tmp_path / f"{name}.html").read_text()
        shown[name] = (
            result.comparable,
            re.search(r"\x1b\[2m *29\.6", console.file.getvalue()) is None,
            '<td class="paper">29.6</td>' in page,
            '<td class="elsewhere">29.6</td>' not in page,
        )
        assert as_document(result)["comparable"] is result.comparable
        for each in result.differing:
            assert f"{each.name}: {each.ours}" in console.file.getvalue()
            assert f"<b>{each.name}</b>: {each.ours}" in page
    assert shown == {"alike": (True,) * 4, "apart": (False,) * 4}


def test_pools_of_the_paper_are_known_and_others_say_what_they_lack(tiny, tmp_path, monkeypatch):
    words = pools.printed()
    assert len(words) == 72 and {"snowy", "gravel", "lisbon"} <= set(words)
    common = vocabulary("english-30k")
    missing = [word for word in words if word not in common.labels]
    assert len(missing) == 13 and "cabriolet" in missing
    (note,) = pools.lacking_notes([common])
    assert "lacks 13 of the 72 words" in note and ", ".join(missing) in note
    longer = pools.extended(common)
    assert longer.labels == (*common.labels, *missing)
    assert longer.prompts == tuple((label,) for label in longer.labels)
    assert not pools.lacking_notes([longer]) and not pools.lacking_notes(tiny.texts)
    both = replace(tiny, pools=("english-30k", "world"), paper_words=True)
    assert [len(texts) for texts in both.texts] == [len(common) + 13, len(tiny.texts[0])]
    # a file is known by what is in it
    file = tmp_path / "anything.txt"
    file.write_text("ship\nowl\n\nship\n")
    digest = hashlib.sha256(b"ship\nowl").hexdigest()
    monkeypatch.setitem(pools.PUBLISHED, digest, pools.WORDS_30K)
    found = fig8(replace(tiny, pools=(str(file),)))
    (setting,) = (each for each in found.settings if each.name == "words")
    assert setting.ours == setting.paper == "30,000 common words"
    table = table2.table2(replace(tiny, pools=(str(file), "world")))
    (setting,) = (each for each in table.settings if each.name == "texts")
    assert setting.ours == "30,000 common words, world" and setting.harmless


def test_prompts_follow_the_paper_or_its_code(tiny, tmp_path):
    for wnid in list(imagenet_names())[:2]:
        (tmp_path / wnid).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / wnid / "a.png")
    own = replace(tiny, demo=False, images=tmp_path, shifted=tmp_path)
    assert own.test.classes.prompts[0] == (TEMPLATE.format("tench"),)
    assert len(own.shifted_test.classes) == 2
    code = replace(own, follow="code")
    assert len(code.test.classes.prompts[0]) == 80
    assert len(code.shifted_test.classes) == 1000
    assert (own.atoms, code.atoms) == ("unit", "official")


def test_pictures_follow_the_paper_or_its_code(tiny, monkeypatch):
    training = Scenes(World(), FIT_SEED, 12_700)
    monkeypatch.setattr(study, "training_pictures", lambda _: training)
    own = replace(tiny, demo=False, images=tiny.out, fit_images=None)
    code = replace(own, follow="code")
    assert own.fit_source.ids == study.evenly(training, 5000).ids
    assert code.fit_source.ids == training.ids[: 50 * 250 : 250]
    assert replace(code, fit_images=60).fit_source.ids == study.evenly(training, 60).ids
    assert [own.step(1), own.step(10), code.step(1), replace(code, subset=3).step(1)] == [
        *(1, 10, 10, 3)
    ]
    few = Scenes(World(), FIT_SEED, 1200)
    monkeypatch.setattr(study, "training_pictures", lambda _: few)
    assert replace(code).fit_source.ids == few.ids


@pytest.mark.long
def test_official_effects_reach_a_result_or_are_refused_before_the_fit(tiny, clip, tmp_path):
    def loaded():
        raise AssertionError("the model was loaded")

    official = replace(
        tiny, lens_path=None, convention="official", load=loaded, out=tmp_path / "new"
    )
    for result in (fig8, effect_budget):
        with pytest.raises(SecondLensError, match="take --convention exact for this result"):
            result(official)
    path = tmp_path / "lens"
    pictures = Scenes(World(), FIT_SEED, 50)
    sl.fit(clip, pictures, [LAYER], out=path, convention="official")
    named = replace(tiny, lens_path=path)
    with pytest.raises(SecondLensError, match="fit a lens in the convention exact"):
        fig8(named)
    neurons = [row["neuron"] for row in table1(named).details if row["effect"] == "second-order"]
    effects = sl.second_order(clip, [pictures.load(i) for i in range(0, 50, 5)], LAYER, "official")
    shares = []
    for neuron in neurons:
        own = effects[:, neuron].double()
        values = torch.linalg.svdvals(own - own.mean(0)).square()
        shares.append(100 * float(values[0] / values.sum()))
    (row,) = (row for row in table1(named).rows if row["effect"] == "second-order")
    assert row["PC #1, all images, %"] == pytest.approx(sum(shares) / len(shares), abs=1e-2)


def test_ablate_command(lens, tmp_path, monkeypatch):
    module = import_module("secondlens.commands.ablate")
    monkeypatch.setattr(module, "TEST_SCENES", 8)
    monkeypatch.setattr(module, "REFERENCE_SCENES", 6)
    out = tmp_path / "out"
    common = ("--layers", LAYER)
    result = run("ablate", lens, *common, "--texts", "world", "--sizes", "2,4", "--out", out)
    assert result.exit_code == 0
    kinds = {row["ablated"] for row in rows_of(out / "ablation.csv")}
    assert {"nothing", "w/o all neurons", "world 2", "random texts 4"} <= kinds
    for effect in ("direct", "together"):
        assert run("ablate", lens, *common, "--effect", effect).exit_code == 0
    assert run("ablate", lens, "--effect", "attention").exit_code == 0
    out = tmp_path / "paths"
    assert run("ablate", lens, *common, "--paths", "--out", out).exit_code == 0
    kinds = {row["ablated"] for row in rows_of(out / "ablation.csv")}
    assert kinds == {"nothing", *PATHS, "together", "missed"}
    result = run("ablate", lens, *common, "--paths", "--texts", "world")
    assert result.exit_code == 2 and "--paths takes the place" in result.output
    result = run("ablate", lens, *common, "--effect", "indirect", "--neurons", 2)
    assert result.exit_code == 0 and "s of runs of the network" in result.output


def test_budget_command(lens, tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("secondlens.commands.budget"), "SCENES", 3)
    result = run("budget", lens, "--layers", 6, "--neuron", 7, "--out", tmp_path / "out")
    assert result.exit_code == 0 and "3 runs from each layer on" in result.output
    (row,) = rows_of(tmp_path / "out" / "budget-details.csv")
    assert row["neuron"] == "7"
    shares = [float(row[f"share {part}"]) for part in ("direct", "second-order", "remainder")]
    assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_budget_command_splits_the_remainder(lens, tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("secondlens.commands.budget"), "SCENES", 3)
    chosen = ("--layers", 6, "--neuron", 7, "--neuron", 9, "--paths")
    result = run("budget", lens, *chosen, "--out", tmp_path / "out")
    assert result.exit_code == 0 and "Layer 6: r " in result.output
    (row,) = rows_of(tmp_path / "out" / "budget.csv")
    split = [float(row[f"{part}, %"]) for part in SPLIT]
    assert sum(split) == pytest.approx(float(row["remainder, %"]), abs=1e-3)
    for part, share in zip(SPLIT, split, strict=True):
        low, high = map(float, row[f"{part}, 95 %"].split(" to "))
        assert low - 0.06 <= share <= high + 0.06
    assert float(row["r, all paths"]) > max(0.99, float(row["r, second-order"]))
    for row in rows_of(tmp_path / "out" / "budget-details.csv"):
        shares = [float(row[f"share {part}"]) for part in SPLIT]
        assert sum(shares) == pytest.approx(float(row["share remainder"]), abs=1e-4)
    again = run("budget", lens, *chosen, "--texts", "world", "--json")
    (row,) = json.loads(again.stdout)["rows"]
    assert row["higher, %"] == pytest.approx(split[0], abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "fig3"], "name pictures with --images, or take --demo"),
        (["reproduce", "fig3", "--demo", "--images", "X"], "drop --model and --images"),
        (["reproduce", "fig3", "--demo", "--model", "ViT-B-32"], "drop --model"),
        (["reproduce", "fig9", "--demo", "--second-model", "demo"], "drop --second-model"),
        (["reproduce", "fig9", "--demo", "--second-pretrained", "openai"], "is of a model: name"),
        (
            ["reproduce", "all", "--images", "LENS", "--second-model", "ViT-L-14"],
            "random weights without --second-pretrained",
        ),
        (["reproduce", "all", "--images", "LENS", "--masks", "NOWHERE"], "no folder or file"),
        (["reproduce", "fig3", "--images", "NOWHERE", "--lens", "LENS"], "no folder or file"),
        (["reproduce", "fig11", "--images", "NOWHERE"], "no folder or file"),
        (["reproduce", "fig4", "--demo", "--lens", "LENS", "--layer", "3"], "layer 3 is not in"),
        (["reproduce", "table1", "--demo", "--lens", "NOWHERE"], "holds no lens"),
        (["reproduce", "fig4", "--demo", "--lens", "LENS", "--texts", "no"], "no vocabulary"),
        (["ablate", "NOWHERE"], "holds no lens"),
        (["ablate", "LENS", "NOWHERE"], "no folder or file"),
        (["ablate", "LENS", "--sizes", "4"], "name texts with --texts"),
        (["ablate", "LENS", "--texts", "world", "--sizes", "all"], "numbers of texts"),
        (["ablate", "LENS", "--texts", "world", "--sizes", "4,x"], "numbers of texts"),
        (["ablate", "LENS", "--texts", "world", "--sizes", "999"], "a code cannot have 999"),
        (["ablate", "LENS", "--neurons", "769"], "768 neurons"),
        (["ablate", "LENS", "--layers", "2"], "layer 2 is not in this lens"),
        (["ablate", "LENS", "--model", "ViT-B-32"], "name labelled IMAGES"),
        (["ablate", "LENS", "--out", "LENS"], "exists already"),
        (["budget", "LENS", "--neurons", "769"], "768 neurons"),
        (["budget", "LENS", "--neuron", "768"], "has no neuron 768"),
        (["budget", "LENS", "--texts", "world"], "add --paths"),
        (["budget", "LENS", "--layers", "2"], "layer 2 is not in this lens"),
        (["budget", "LENS", "--model", "ViT-B-32"], "name IMAGES"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, lens, few, tmp_path):
    places = {"LENS": lens, "NOWHERE": tmp_path / "nowhere"}
    arguments = [places.get(argument, argument) for argument in arguments]
    if arguments[0] == "reproduce":
        arguments += ["--out", tmp_path / "out"]
    result = run(*arguments)
    assert result.exit_code == 2
    said = result.stderr.strip()
    assert message in said.replace("\n", " ")
    assert "Traceback" not in said
    assert not list((tmp_path / "out").glob("*.*"))


def test_headings_are_whole_in_a_narrow_terminal():
    kinds = [LABELS[kind] for kind in ("all", "large", "small", "random", "first component")]
    for keys in (
        SHOWN.values(),
        ["layer", *kinds, LABELS["unsigned"], "paper, w/o all", "neurons"],
    ):
        row = dict.fromkeys(keys, 87.0) | ({"effect": "second-order"} if "effect" in keys else {})
        console = Console(width=80, record=True, file=io.StringIO())
        show(Result(name="x", title="x", rows=[row], settings=[]), console)
        shown = console.export_text()
        assert "…" not in shown
        assert all(word in shown for key in keys for word in key.split())
