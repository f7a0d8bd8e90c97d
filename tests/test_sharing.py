"""What is shared, exported or written tells neither folders nor keys of this machine."""

import base64
import gzip
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from models import TEXT
from PIL import Image, PngImagePlugin
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer
from unchanged.materials import OLD_ATTACK, OLD_AUDIT, OLD_DEFENCE

import secondlens as sl
from secondlens.applications.adversarial.attacks import attack
from secondlens.applications.adversarial.judging import RefereeJudge
from secondlens.commands.group import main
from secondlens.data.vocabularies import object_names
from secondlens.demo.scenes import Scenes, World
from secondlens.explorer.runs import load_runs
from secondlens.lens.fitting import fit
from secondlens.lens.lens import Lens
from secondlens.naming import distinct, shown, shown_model
from secondlens.words.describing import describe

TELLTALE = "telltale"
KEY = "sk-telltale-0123456789"
WORDS = [a + b for a in "abcdefgh" for b in "abcdefgh"]


def run(*arguments):
    done = CliRunner().invoke(main, [str(each) for each in arguments])
    assert done.exit_code == 0, done.output + done.stderr
    return done.output


def told(content):
    """Whether the telltale is in some bytes, or in what is packed inside them."""
    if content[:2] == b"\x1f\x8b":
        return told(gzip.decompress(content))
    if TELLTALE.encode() in content.lower():
        return True
    if content.startswith((b"\x89PNG", b"RIFF", b"\xff\xd8")):
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            return TELLTALE in repr(picture.info).lower() + repr(dict(picture.getexif())).lower()
    packed = re.findall(rb"base64,([A-Za-z0-9+/=]+)", content)
    return any(told(base64.b64decode(each)) for each in packed)


def telling(folder):
    """The files below a folder that tell of it, by content or name."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert found, folder
    names = {path: str(path.relative_to(folder)).lower() for path in found}
    return [name for path, name in names.items() if TELLTALE in name or told(path.read_bytes())]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The home of somebody who keeps a model, photographs and words there, and has keys set."""
    home = tmp_path_factory.mktemp("home") / "home-of-telltale-user"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "USERPROFILE"):
            patch.setenv(name, str(home))
        for name in ("USER", "LOGNAME"):
            patch.setenv(name, "telltale-user")
        for name in ("OPENAI_API_KEY", "HF_TOKEN"):
            patch.setenv(name, KEY)
        patch.setenv("SECONDLENS_CACHE", str(home / "cache"))
        _save_model(home / "models" / "clip-of-mine")
        _save_photographs(home / "photographs", 0)
        _save_photographs(home / "unseen", 64)
        (home / "words.txt").write_text("\n".join(WORDS))
        yield home


def _save_model(path, seed=0):
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 3}
    vision = sizes | {"num_hidden_layers": 3, "image_size": 16, "patch_size": 8}
    ends = {"bos_token_id": 0, "eos_token_id": 63, "pad_token_id": 63}
    text = sizes | ends | {"num_hidden_layers": 1, "vocab_size": TEXT["vocab_size"]}
    text |= {"max_position_embeddings": 77}
    torch.manual_seed(seed)
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=12)
    model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(path)
    size = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size).save_pretrained(path)
    words = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    vocabulary = {word: i for i, word in enumerate(["<|startoftext|>", *words])}
    CLIPTokenizer(vocabulary | {"<|endoftext|>": 63}, merges=[]).save_pretrained(path)


def _save_photographs(folder, first):
    for number in range(first, first + 64):
        noise = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        picture, path = Image.fromarray(noise), folder / "ab"[number % 2] / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 3:
            exif = Image.Exif()
            exif[0x013B] = "telltale the artist"
            picture.save(path.with_suffix(".jpg"), exif=exif, comment=b"by telltale")
        else:
            text = PngImagePlugin.PngInfo()
            text.add_itxt("Author", "telltale", zip=True)
            picture.save(path.with_suffix(".png"), pnginfo=text)
    (folder / "a" / "damaged.jpg").write_bytes(b"no picture")


@pytest.fixture(scope="module")
def lens(home):
    """A lens whose model was named by a path, described and judged by such a model."""
    model = f"hf:{home / 'models' / 'clip-of-mine'}"
    folder, words, photographs = home / "lens", home / "words.txt", home / "photographs"
    run("fit", photographs, "--model", model, "--top", 6, "--out", folder)
    run("describe", folder, "--texts", words, "--model", model, "-k", 8)
    run(
        *("score", folder, "--texts", words, "--model", model),
        *("--images", home / "unseen", "--referee", model),
    )
    return folder


@pytest.fixture(scope="module")
def old(home, lens):
    """The same as version 0.1 wrote it, with paths wherever one may stand."""
    folder = home / "old lens"
    shutil.copytree(lens, folder)
    document = json.loads((folder / "lens.json").read_text())
    path = f"{home}/models of mine/clip-of-mine"
    document["model"]["name"] = f"local-dir:{path}"
    for scores in document["scores"]:
        scores["referee"] = f"true labels, related words by local-dir:{path}"
    (folder / "lens.json").write_text(json.dumps(document))
    images = json.loads((folder / "images.json").read_text())
    images["ids"] = [f"{home}/photographs/{each}" for each in images["ids"]]
    images["skipped"] = {
        f"{home}/photographs/a/gone.jpg": f"OSError: cannot open '{home}/photographs/a/gone.jpg'"
    }
    (folder / "images.json").write_text(json.dumps(images))
    return folder


def test_the_search_finds_what_it_looks_for(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("Author", "telltale", zip=True)
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "png", pnginfo=text)
    packed = base64.b64encode(picture.getvalue())
    for content in (b"Telltale", gzip.compress(b"telltale"), picture.getvalue()):
        assert told(content)
    assert told(b"<img src='data:image/png;base64," + packed + b"'>")
    assert not told(b"nothing")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ViT-B-32", "ViT-B-32"),
        ("ViT-B/32", "ViT-B/32"),
        ("hf:openai/clip-vit-base-patch32", "hf:openai/clip-vit-base-patch32"),
        ("hf-hub:org/model", "hf-hub:org/model"),
        ("hf:/home/x/model", "hf:model"),
        ("hf:/home/x/model/", "hf:model"),
        ("hf:x/y/model", "hf:model"),
        ("local-dir:x/model", "local-dir:model"),
        ("local-dir:/home/x y/model", "local-dir:model"),
        ("local-dir:C:\\Users\\x\\model", "local-dir:model"),
        ("local-dir:\\\\server\\x\\model", "local-dir:model"),
        ("hf:~/model", "hf:model"),
        ("hf:../x/model", "hf:model"),
        ("diffusion:/home/x/pipe,size=8", "diffusion:pipe,size=8"),
        ("hf:/home/x/m itself, without", "hf:m itself, without"),
        ("/model", "model"),
        ("1 / 2 and/or 3", "1 / 2 and/or 3"),
        ("no '/home/x/a.jpg' and no '/home/x/b.jpg'", "no 'b.jpg'"),
    ],
)
def test_of_a_path_the_last_part_is_shown(name, expected):
    assert shown(name) == expected
    assert shown(expected) == expected


def test_a_folder_with_the_look_of_a_name_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "somebody" / "model").mkdir(parents=True)
    assert shown_model("hf:somebody/model") == "hf:somebody/model"
    monkeypatch.chdir(tmp_path)
    assert shown_model("hf:somebody/model") == "hf:model"


def test_names_stay_unlike():
    assert distinct(["a", "b", "a", "a", "a (2)"]) == ["a", "b", "a (2)", "a (3)", "a (2) (2)"]


def test_a_lens_of_a_local_model_tells_no_folder(lens):
    assert telling(lens) == []
    assert Lens.load(lens).model["name"] == "hf:clip-of-mine"


def test_texts_are_kept_apart_for_models_of_one_name(home):
    """Two folders may hold the same weights with other tokenizers."""
    clip = sl.load(f"hf:{home / 'models' / 'clip-of-mine'}")
    assert clip.name == "hf:clip-of-mine"
    assert clip.origin.endswith(str(home / "models" / "clip-of-mine"))


@pytest.mark.parametrize("of", ["lens", "old"])
def test_a_shared_folder_tells_nothing(of, request, home, tmp_path):
    folder = request.getfixturevalue(of)
    said = run("share", folder, "--to", tmp_path / "shared")
    assert telling(tmp_path / "shared") == []
    assert "clip-of-mine" in said
    assert "lens.json" in said
    kept = {path.name for path in folder.glob("*") if path.is_file()}
    assert {path.name for path in (tmp_path / "shared").iterdir()} == kept | {"README.md"}
    run("pull", tmp_path / "shared", tmp_path / "pulled")
    found, mine = Lens.load(tmp_path / "pulled"), Lens.load(folder)
    assert found.model == mine.model
    assert len(set(found.image_ids)) == len(mine.image_ids)
    assert [each.rpartition("/")[2] for each in mine.image_ids] == [
        each.rpartition("/")[2] for each in found.image_ids
    ]
    assert torch.equal(found[1].directions, mine[1].directions)
    assert len(found.scores) == len(mine.scores) == 1


@pytest.mark.parametrize("of", ["lens", "old"])
def test_an_exported_explorer_tells_nothing(of, request, home, tmp_path):
    folder = request.getfixturevalue(of)
    if of == "lens":
        model, photographs = f"hf:{home / 'models' / 'clip-of-mine'}", home / "photographs"
        more = ["--model", model, "--images", photographs]
    else:
        more = ["--no-model"]
    run("export", folder, tmp_path / "site", "--address", "https://example.org", *more)
    assert telling(tmp_path / "site") == []
    assert list((tmp_path / "site").rglob("*.webp")) or of == "old"


@pytest.mark.long
def test_runs_tell_nothing(home, lens, tmp_path):
    model = f"hf:{home / 'models' / 'clip-of-mine'}"
    photographs, out = home / "photographs", home / "runs"
    classes = home / "classes.txt"
    classes.write_text("a\nb\n")
    common = ["--model", model, "--images", photographs]
    run("audit", lens, *common, "--classes", classes, "--cues", home / "words.txt",
        "--out", out / "audit")  # fmt: skip
    picture = photographs / "b" / "1.jpg"
    run("segment", lens, picture, "--model", model, "--text", "ab", "--out", out / "segment")
    run("discover", lens, picture, "--model", model, "--page", out / "page.html")
    run("ablate", lens, photographs, "--model", model, "--out", out / "ablate")
    clip = sl.load("demo")
    own = fit(clip, Scenes(World(), 0, 60), [2, 3], top=6)
    describe(clip, own, "world", 8)
    names = object_names()
    judging = sl.load(model)
    judge = RefereeJudge(judging, names.labels, names.embed(judging))
    attack(clip, own, "dog", "deer", out / "attack", images=2, captions=2, words=2, judge=judge)
    assert telling(out) == []
    _tell(out / "attack" / "report.json", home)
    run("export", lens, tmp_path / "site", "--no-model", "--runs", out)
    assert telling(tmp_path / "site") == []


def test_pages_of_old_runs_tell_nothing(home, lens, tmp_path):
    """Audits and attacks of version 0.1 may name images, models and pipelines by their paths."""
    runs = tmp_path / "runs"
    for name, old in (("audit", OLD_AUDIT), ("attack", OLD_ATTACK), ("defence", OLD_DEFENCE)):
        shutil.copytree(old, runs / name)
    audit = json.loads((runs / "audit" / "audit.json").read_text())
    audit["images"] = [[f"{home}/photographs/{each}" for each in ids] for ids in audit["images"]]
    audit["model"]["name"] = f"hf:{home}/models/clip-of-mine"
    audit["telltale"] = f"{home}"
    (runs / "audit" / "audit.json").write_text(json.dumps(audit))
    report = json.loads((runs / "attack" / "report.json").read_text())
    report["settings"] |= {
        "writer": f"chat:{home}/models/chat-of-mine",
        "too_close": f"sentences:{home}/models/sentences-of-mine",
        "drawer": f"diffusion:{home}/models/pipeline-of-mine,height=16",
        "check": f"referee:hf:{home}/models/clip-of-mine",
        "model": f"local-dir:{home}/models/clip-of-mine",
    }
    report["telltale"] = f"{home}"
    (runs / "attack" / "report.json").write_text(json.dumps(report))
    run("export", lens, tmp_path / "site", "--no-model", "--runs", runs)
    assert telling(tmp_path / "site") == []
    settings = next(r for r in load_runs([runs]).reports if r["kind"] == "attack")["settings"]
    assert settings["image_generator"] == "diffusion:pipeline-of-mine,height=16"
    assert settings["captioner"].endswith("chat-of-mine")
    assert settings["too_close"].endswith("sentences-of-mine")


def _tell(report, home):
    """As version 0.1 named who did the steps of an attack."""
    document = json.loads(report.read_text())
    document["settings"]["judge"] = f"referee:hf:{home}/models/clip-of-mine"
    report.write_text(json.dumps(document))
    assert load_runs([report.parent]).reports[0]["settings"]["judge"] == "referee:hf:clip-of-mine"


def test_reproductions_tell_nothing(home, lens):
    model, out = f"hf:{home / 'models' / 'clip-of-mine'}", home / "paper"
    run(
        *("reproduce", "fig3", "--model", model, "--images", home / "photographs"),
        *("--lens", lens, "--effect-images", 10, "--texts", home / "words.txt"),
        *("--layer", 1, "--out", out),
    )
    assert telling(out) == []


def test_all_reproductions_tell_nothing(home, lens):
    model, out = f"hf:{home / 'models' / 'clip-of-mine'}", home / "all of the paper"
    said = run(
        *("reproduce", "all", "--model", model, "--images", home / "photographs"),
        *("--shifted", home / "unseen", "--lens", lens, "--effect-images", 10),
        *("--texts", home / "words.txt", "--layer", 1, "--neurons", 2, "--out", out),
    )
    assert telling(out) == []
    made = {path.stem for path in out.glob("*.json")}
    assert {"fig3", "fig4", "fig10", "table2", "budget"} <= made, said
    # what is left out names the pictures, and on the page no folder
    assert "photographs has no training pictures" in (out / "index.html").read_text()


def test_names_tell_nothing(home, lens, tmp_path):
    """A lens with names, shared and exported, by judges and pictures that were named by paths."""
    named, model = home / "named lens", f"hf:{home / 'models' / 'clip-of-mine'}"
    shutil.copytree(lens, named)
    other = home / "models" / "referee-of-mine"
    _save_model(other, seed=1)
    few = home / "few.txt"
    few.write_text("\n".join(WORDS[:3]))
    run(
        *("name", named, "--model", model, "--texts", few, "--images", home / "unseen"),
        *("--referee", f"hf:{other}", "--everywhere", few),
    )
    (names,) = Lens.load(named).names.values()
    assert names.referee == "hf:referee-of-mine"
    assert telling(named) == []
    run("share", named, "--to", tmp_path / "shared")
    run("export", named, tmp_path / "site", "--model", model, "--images", home / "photographs")
    assert telling(tmp_path / "shared") == telling(tmp_path / "site") == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "Missing option '--repo'"),
        (["--repo", "a/b", "--to", "new"], "share goes to one place"),
        (["--to", "new", "--private"], "drop --private"),
    ],
)
def test_a_place_that_is_none(arguments, reason, lens):
    done = CliRunner().invoke(main, ["share", str(lens), *arguments])
    assert done.exit_code == 2
    assert reason in " ".join(done.stderr.split())


def test_a_folder_that_holds_something_is_left_alone(lens, tmp_path):
    (tmp_path / "precious").write_text("")
    done = CliRunner().invoke(main, ["share", str(lens), "--to", str(tmp_path)])
    assert done.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_dry_run_writes_nothing(lens, tmp_path):
    said = run("share", lens, "--to", tmp_path / "new", "--dry-run")
    assert "images.json" in said
    assert not (tmp_path / "new").exists()


def test_a_folder_has_no_revisions(lens, tmp_path):
    done = CliRunner().invoke(main, ["pull", str(lens), str(tmp_path / "x"), "--revision", "v1"])
    assert done.exit_code == 2
    assert "drop --revision" in done.stderr
