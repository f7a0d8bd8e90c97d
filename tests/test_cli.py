import json
import logging
import subprocess
import sys
import warnings
from importlib.metadata import version

import pytest
from click.testing import CliRunner
from models import tiny_transformers_model
from PIL import Image

from secondlens.commands.group import main
from secondlens.commands.process import quiet_libraries
from secondlens.demo.scenes import World
from secondlens.errors import SecondLensWarning
from secondlens.lens.lens import Lens


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(12):
        World().scene(3, i).image.save(folder / f"{i:02}.png")
    Image.new("RGB", (90, 40), "red").save(folder / "wide.jpg")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture(scope="module")
def lens(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "lens"
    result = run("fit", pictures, "--out", out, "--layers", "5,6", "--top", 3)
    assert result.exit_code == 0
    assert "over 13 images" in result.output
    assert "broken.png" in result.output
    return out


def test_fit_writes_a_lens(lens):
    loaded = Lens.load(lens)
    assert loaded.layers == [5, 6]
    assert len(loaded.image_ids) == 13
    assert loaded.model["name"] == "demo"


def test_every_so_many_th_picture(pictures, tmp_path):
    out = tmp_path / "lens"
    result = run("fit", pictures, "--out", out, "--layers", 6, "--top", 2, "--subset", 5)
    assert result.exit_code == 0, result.output
    assert Lens.load(out).image_ids == ("00.png", "05.png", "10.png")


def test_describe_saves_into_the_lens(lens, tmp_path):
    words = tmp_path / "animals.txt"
    words.write_text("dog\ncat\nwhale\nship\nsnow\nowl\n")
    result = run("describe", lens, "--texts", words, "-k", 4)
    assert result.exit_code == 0
    assert Lens.load(lens).codes["animals"].labels[2] == "whale"
    assert Lens.load(lens).codes["animals"].indices[6].shape[1] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "PICTURES", "--out", "OUT", "--layers", "7"], "no later attention layer"),
        (["fit", "PICTURES", "--out", "OUT", "--layers", "12"], "has no layer 12"),
        (["fit", "PICTURES", "--out", "OUT", "--layers", "five"], "layers must be numbers"),
        (["fit", "PICTURES", "--out", "OUT", "--model", "ViT-B-33"], "did you mean ViT-B-32"),
        (["fit", "PICTURES", "--out", "OUT", "--model", "RN50"], "RN50"),
        (["fit", "PICTURES", "--out", "PICTURES"], "exists already"),
        (["fit", "NOWHERE", "--out", "OUT"], "no folder"),
        (["describe", "NOWHERE", "--texts", "x.txt"], "holds no lens"),
        (["describe", "LENS", "--texts", "x.txt"], "no file x.txt"),
        (["demo", "--out", "PICTURES"], "exists already"),
        (["demo", "--images", "0"], "--images"),
    ],
)
@pytest.mark.filterwarnings("ignore:RN50 gets random weights")
def test_mistakes_are_one_sentence_and_exit_2(arguments, message, pictures, lens, tmp_path):
    places = {"PICTURES": pictures, "OUT": tmp_path / "out", "LENS": lens}
    places["NOWHERE"] = tmp_path / "nowhere"
    before = sorted(pictures.iterdir())
    result = run(*(places.get(a, a) for a in arguments))
    assert result.exit_code == 2
    said = result.stderr.strip()
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    assert sorted(pictures.iterdir()) == before


def test_k_larger_than_the_vocabulary(lens, tmp_path):
    words = tmp_path / "few.txt"
    words.write_text("dog\ncat\n")
    before = (lens / "lens.json").read_text()
    result = run("describe", lens, "--texts", words, "-k", 5)
    assert result.exit_code == 2
    assert "k must lie between 1 and 2" in result.stderr
    assert (lens / "lens.json").read_text() == before


def test_demo_runs_and_runs_again(tmp_path):
    out = tmp_path / "demo"
    arguments = ["demo", "--out", out, "--images", 60, "--test-images", 20]
    first = run(*arguments)
    assert first.exit_code == 0
    assert "Clearest of" in first.output
    report = (out / "report.html").read_text()
    assert report.count('<article class="card"') >= 24
    written = (out / "lens" / "lens.json").stat().st_mtime_ns
    again = run(*arguments, "--json")
    assert again.exit_code == 0
    assert [each["layer"] for each in json.loads(again.stdout)["layers"]] == list(range(7))
    assert (out / "lens" / "lens.json").stat().st_mtime_ns == written
    other = run("demo", "--out", out, "--images", 50, "--test-images", 20)
    assert other.exit_code == 2
    assert "another model, other images" in other.stderr


def test_help_names_the_commands():
    result = run("--help")
    for command in ("demo", "describe", "fit"):
        assert command in result.output
    assert version("secondlens") in run("--version").output


def test_quiet_is_quiet_and_no_warning_of_a_library_is_printed(pictures, tmp_path):
    """In a process of its own: libraries read what they may print when they are imported."""
    folder = tmp_path / "model"
    tiny_transformers_model().save_pretrained(folder)
    sizes = {"crop_size": 16, "size": 16, "image_processor_type": "CLIPImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes))
    command = [sys.executable, "-m", "secondlens", "fit", str(pictures), "--layers", "0"]
    said = {}
    for option in ("--quiet", "--batch-size=32"):
        out = tmp_path / f"lens{option}"
        options = [option, "--model", f"hf:{folder}", "--out", str(out)]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
        said[option] = done.stderr
    assert said["--quiet"] == ""
    assert "arning" not in said["--batch-size=32"]


def test_what_secondlens_warns_of_is_a_note_said_once(capsys):
    notes = []
    with quiet_libraries(notes.append, bars=False):
        for _ in range(2):
            warnings.warn("a library is old", FutureWarning, stacklevel=1)
            warnings.warn("left out", SecondLensWarning, stacklevel=1)
        logging.warning("a library logs")
    assert notes == ["left out"]
    assert capsys.readouterr().err == ""


LATER = [
    (
        ["attack", "lens", "--draw", "a", "--mistake-for", "b", "--out", "out"],
        "needs --classes, --sentences, --image-generator, --referee: only the embedded",
    ),
    (
        ["score", "lens", "--dissect", "--images", "photos"],
        "needs --referee, --fit-images: only the embedded",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), LATER, ids=lambda each: each[0])
def test_options_that_need_each_other_are_named_at_once(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lens").mkdir()
    (tmp_path / "lens/lens.json").touch()
    found = CliRunner().invoke(main, [*arguments, "--model", "hf:nobody/nothing"])
    assert found.exit_code == 2
    assert message in found.stderr
