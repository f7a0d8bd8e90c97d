"""Names that steer terminals, forge lines or break pages, through every command that prints."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner
from small_world import CASES, MODEL, noise, small, tiny

import secondlens as sl
from secondlens.commands.group import main
from secondlens.data.labelled import labelled
from secondlens.data.sources import Subset, as_source
from secondlens.paper.study import kept_lens

STEERING = "\x1b[31m\x9b2J\r\u202e\ufeff"
FORGED = "\nError: forged"
SCRIPT = "<script>alert(1)</script>"
WORDS = (
    *("sea\x1b[31m", "\x1b]0;title\x07road", "\u202edaor\u2066", f"grass{FORGED}", "snow\r"),
    *("x" * 10_000, "a \ufeffdog", "wheel\x9b2J", "[bold]sail", SCRIPT),
)
CLASSES = (f"ship\x1b[31m{FORGED}", "cow\u202e")
GIVEN = f"{STEERING}{FORGED}"

ACTS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff"
    "\ud800-\udfff]|^Error: forged",
    re.MULTILINE,
)
"""What no output may hold."""

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="its files cannot have such names"),
    pytest.mark.filterwarnings("ignore:.* longer than the context of tiny:UserWarning"),
]

WHOLE = {"fit", "describe", "name", "score", "audit", "segment", "discover", "ablate", "budget"}
WHOLE |= {"export", "share", "pull", "search"}
"""Lines that end well, whatever the names."""

LINES = {
    name: case.command.replace("words.txt", "words.json")
    for name, case in CASES.items()
    if "lens" in case.given or "classes" in case.given
} | {
    "search": "search lens sea ON",
    "search, JSON": "search lens sea --json ON",
    "search, no description": "search lens sea --description GIVEN ON",
    "describe, JSON": "describe lens --texts words.json --json ON",
    "discover, no page": "discover lens photo.png ON",
    "segment, JSON": "segment lens photo.png --text GIVEN --out masks-2 --json ON",
    "segment, a text": "segment lens photo.png --text GIVEN --out masks-3 ON",
    "audit, labelled": "audit lens --labelled --images classes --cues words.json --out audited-2 ON"
    " --chance 1",
    "fit, nothing there": "fit GIVEN --out none ON",
    "verify": "verify GIVEN",
    "attack": "attack lens --draw GIVEN --mistake-for b --out attacked",
    "stranger, share": "share stranger --to shared-2",
    "stranger, dry": "share stranger --to shared-3 --dry-run",
    "stranger, pull": "pull stranger pulled-2",
    "stranger, search": "search stranger --neuron 1:0",
    "stranger, segment": "segment stranger photo.png --text sea --out masks-4 ON",
    "stranger, export": "export stranger site-2 --no-model",
    "halves, search": "search halves --neuron 1:0",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What commands read, with such names wherever one may stand."""
    folder = tmp_path_factory.mktemp("hostile")
    for number in range(12):
        path = folder / "classes" / CLASSES[number % 2] / f"{number:02}\x1b[2J.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(number).save(path)
    (path.parent / f"broken\x1b]0;t\x07{FORGED}.png").write_bytes(b"no picture")
    (path.parent / os.fsdecode(b"half-\xff.png")).write_bytes((path).read_bytes())
    (folder / "unseen").mkdir()
    for number in range(60):
        noise(200 + number).save(folder / "unseen" / f"{number:02}\x1b[2J{FORGED}.png")
    noise(99).save(folder / "photo.png")
    (folder / "classes.txt").write_text("ship\x1b[31m\ncow\u202e", encoding="utf-8")
    (folder / "words.json").write_text(json.dumps(WORDS), encoding="utf-8")
    clip = tiny()
    lens = sl.fit(clip, folder / "classes", [0, 1], top=2)
    sl.describe(clip, lens, folder / "words.json", 3)
    lens.save(folder / "lens")
    classes = labelled(folder / "classes").classes
    found = sl.audit(clip, lens, classes, folder / "classes", folder / "words.json", chance=1.0)
    replace(found, effect=found.effect.abs()).save(folder / "audit")
    _as_a_stranger_sends_it(folder, "stranger", GIVEN)
    _as_a_stranger_sends_it(folder, "halves", "\ud800")
    with small(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def _as_a_stranger_sends_it(folder, name, text):
    """A lens whose model and texts are called something."""
    shutil.copytree(folder / "lens", folder / name)
    path = folder / name / "lens.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["model"]["name"] = f"tiny{text}"
    for codes in document["codes"]:
        codes["labels"] = [f"{label}{text}" for label in codes["labels"]]
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.mark.parametrize("name", LINES)
def test_nothing_that_acts_is_printed_or_written(name, place):
    words = LINES[name].replace(" ON", " " + " ".join(MODEL)).split()
    before = set(place.rglob("*"))
    result = CliRunner().invoke(main, [GIVEN if each == "GIVEN" else each for each in words])
    if not isinstance(result.exception, SystemExit | None):
        raise result.exception
    assert result.exit_code in ((0,) if name in WHOLE else (0, 2)), result.stderr
    said = result.stdout + result.stderr
    assert said
    found = ACTS.search(said)
    assert found is None, said[max(0, found.start() - 80) : found.end() + 20]
    for page in set(place.rglob("*.html")) - before:
        assert SCRIPT not in page.read_text(encoding="utf-8")
    for document in set(place.rglob("*.json")) - before:
        json.loads(document.read_text(encoding="utf-8"))


def test_what_lies_beside_the_pictures_of_a_fit_stops_nothing(tmp_path):
    """The first name is skipped beside the pictures, the second among them."""
    clip, folder = tiny(), tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        noise(number).save(folder / f"{number}.png")
    shutil.copy(folder / "0.png", folder / os.fsdecode(b"half-\xff.png"))
    (folder / "broken.png").write_bytes(b"no picture")
    source = as_source(folder)
    lens = sl.fit(clip, source, [0, 1], top=2, out=tmp_path / "lens")
    assert len(lens.skipped) == 2
    sl.describe(clip, lens, ["sea", "road", "sky"], 2)
    assert kept_lens(tmp_path / "lens", clip, source, "exact").image_ids == lens.image_ids
    with pytest.raises(sl.SecondLensError, match="pictures 8 and not 7"):
        kept_lens(tmp_path / "lens", clip, Subset(source, range(7)), "exact")
