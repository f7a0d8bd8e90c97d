"""Options that need or exclude each other: one message names all, before a model is loaded."""

import pytest
from click.testing import CliRunner

from secondlens.commands.group import main
from secondlens.models import loading

OWN = ("--model", "ViT-B-32", "--pretrained", "openai")
ATTACK = ("attack", "lens", "--out", "out")
TWO = ("--draw", "cow", "--mistake-for", "owl")
MULTICLASS = ("reproduce", "multiclass", "--out", "out")
TABLE4 = ("reproduce", "table4", "--out", "out")
TABLE3 = ("reproduce", "table3", "--out", "out")
FIG3 = ("reproduce", "fig3", "--out", "out")

WRONG = {
    "attack, classes": (
        (*ATTACK, "--draw", "cow", "--among", "cow,owl", "--steps", "4", "--size", "64"),
        ("--draw and --mistake-for", "--among is of --pairs", "--steps and --size are of a pipe"),
    ),
    "attack, itself": (
        (*ATTACK, "--draw", "cow", "--mistake-for", "cow", "--captioner", "http://127.0.0.1:9"),
        ("mistaken for itself", "--captioner-model"),
    ),
    "attack, pairs": (
        (*ATTACK, "--pairs", "some", "--captioner-model", "m", "--referee-pretrained", "openai"),
        ("--pairs takes all", "--captioner-model is of an endpoint", "name it with --referee"),
    ),
    "attack, another model": (
        (*ATTACK, *TWO, *OWN, "--image-generator", "diffusers:any", "--among", "cow"),
        ("needs --classes, --sentences, --referee", "--among is of --pairs"),
    ),
    "attack, a pipeline": (
        (*ATTACK, *TWO, "--image-generator", "diffusers:any", "--referee-pretrained", "openai"),
        ("does not say what its pictures show", "--referee-pretrained is of a referee"),
    ),
    "describe": (
        ("describe", "lens", "--texts", "world", "--address", "auto"),
        ("--address and --worker-gpus are Ray's: add --engine ray",),
    ),
    "ablate, nothing named": (
        ("ablate", "lens", *OWN, "--sizes", "4", "--published", "--reference", "unseen"),
        ("--sizes and --published are of codes", "labelled IMAGES", "--reference is of no use"),
    ),
    "ablate, scenes": (
        (
            *("ablate", "lens", "--classes", "names.txt", "--all-classes"),
            *("--effect", "attention", "--layers", "3", "--neurons", "2"),
        ),
        ("--classes and --all-classes are of labelled", "--layers and --neurons are of neurons"),
    ),
    "ablate, together": (
        ("ablate", "lens", "--effect", "together", "--neurons", "2", "--sizes", "4"),
        ("--sizes is of codes", "--neurons is of single neurons"),
    ),
    "search, both": (("search", "lens", "sea", "--neuron", "1:2"), ("not both or none",)),
    "search, neither": (("search", "lens"), ("not both or none",)),
    "name": (
        ("name", "lens", *OWN, "--referee-pretrained", "openai", "--column", "jpg"),
        (
            *("names of ViT-B-32 needs --images, --referee", "--referee-pretrained is of"),
            "--column is of pictures",
        ),
    ),
    "score": (
        (
            *("score", "lens", "--referee-pretrained", "openai", "--fit-images", "photos"),
            *("--images", "unseen"),
        ),
        ("need a referee", "--referee-pretrained is of a referee", "--fit-images is of --dissect"),
    ),
    "audit": (
        ("audit", "lens", *OWN, "--out", "out", "--labelled", "--ids", "name"),
        ("needs --classes, --cues, --images", "--labelled says what", "--ids is of pictures"),
    ),
    "table4": (
        (*TABLE4, "--layout", "voc", "--ignore", "255", "--names", "names.txt"),
        ("--images and a lens with --lens", "--layout, --names and --ignore are of images with"),
    ),
    "table4, demo": (
        (*TABLE4, "--demo", *OWN, "--classes", "names.txt"),
        ("drop --model and --images", "--classes is of images with masks"),
    ),
    "multiclass": (
        (*MULTICLASS, "--images", "data", "--set", "world", "--single", "--second-pretrained", "x"),
        (
            *("name data with --images and a lens", "name what the folder holds with"),
            *("--single is of --demo", "--second-pretrained is of a second model"),
        ),
    ),
    "multiclass, demo": (
        (*MULTICLASS, "--demo", "--set", "voc20", "--classes", "names.txt", "--scale", "2"),
        ("voc20 is a set in a folder", "--classes and --scale are of a folder"),
    ),
    "table3": (
        (*TABLE3, *OWN, "--images", "photos", "--effect-images", "0", "--guidance", "2"),
        (
            *("a described lens with --lens", "--images is of --effect-images"),
            *("needs --classes, --sentences, --image-generator, --referee", "--guidance is of"),
        ),
    ),
    "fig3": (
        (*FIG3, "--layer", "3", "--neurons", "2:4,2:5"),
        ("name pictures with --images", "neurons of one layer, not of 2, 3"),
    ),
    "fig3, demo": (
        (*FIG3, "--demo", "--images", "photos", "--shifted", "photos", "--paper-weights"),
        ("drop --model and --images", "--shifted and --paper-weights are of pictures and weights"),
    ),
    "explore": (
        ("explore", "lens", "--no-model", *OWN, "--column", "jpg"),
        ("--model and --pretrained are of the model that --no-model leaves out", "--column is of"),
    ),
    "export": (
        ("export", "lens", "site", "--pretrained", "openai", "--ids", "name"),
        ("--pretrained is of a model: name it with --model", "--ids is of pictures"),
    ),
    "share": (
        ("share", "lens", "--repo", "a/b", "--to", "folder"),
        ("share goes to one place: name --repo or --to",),
    ),
    "share, a folder": (
        ("share", "lens", "--to", "folder", "--private"),
        ("a folder is as private as you keep it",),
    ),
    "pull": (("pull", "lens", "copy", "--revision", "main"), ("drop --revision",)),
}
"""Command lines, and what their message names."""

RIGHT = {
    "attack": (*ATTACK, "--pairs", "all", "--among", "cow,owl", "--referee", "demo-twin"),
    "attack, a pipeline": (
        *(*ATTACK, *TWO, "--image-generator", "diffusers:any", "--size", "64"),
        *("--referee", "demo-twin", "--captioner", "http://127.0.0.1:9", "--captioner-model", "m"),
    ),
    "ablate": ("ablate", "lens", "--sizes", "4", "--published", "--texts", "world"),
    "ablate, reference": ("ablate", "lens", "--reference", "lens", "--effect", "direct"),
    "search": ("search", "lens", "--neuron", "1:2"),
    "name": ("name", "lens", "--images", "lens", "--column", "jpg", "--referee", "demo-twin"),
    "score": ("score", "lens", "--fit-images", "lens", "--dissect", "--ids", "name"),
}
"""Command lines in which every option has what it needs."""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder that looks like a lens, and no model."""

    def no_model(*_, **__):
        raise AssertionError("a model is loaded")

    (tmp_path / "lens").mkdir()
    (tmp_path / "lens" / "lens.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load", no_model)


def said(arguments):
    result = CliRunner().invoke(main, arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize("name", WRONG)
def test_all_that_is_wrong_is_one_message(name):
    arguments, named = WRONG[name]
    found = said(arguments)
    assert all(each in found for each in named), found


@pytest.mark.parametrize("name", RIGHT)
def test_options_with_what_they_need_are_taken(name):
    """The next thing that is wrong is the lens, which is none."""
    assert "the lens in lens is damaged" in said(RIGHT[name])
