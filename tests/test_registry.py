"""Whatever has a name can be added to in a few lines, and is then found where it should be."""

import importlib
import json

import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner
from fastapi.testclient import TestClient
from models import tiny_images, tiny_model
from PIL import Image

import secondlens as sl
from secondlens.applications.adversarial import captioners, image_generators
from secondlens.applications.adversarial.generation import GeneratedImage
from secondlens.applications.segmentation.baselines import baselines
from secondlens.applications.segmentation.protocol import table4_methods
from secondlens.commands import main
from secondlens.commands.attack import AttackSteps
from secondlens.commands.list import REGISTRIES, registry
from secondlens.data import labelled_sets, masked_sets, named_vocabularies
from secondlens.data.labelled import KeyedPictures, LabelledSet, labelled
from secondlens.data.masked import Example
from secondlens.data.sources import InMemory
from secondlens.errors import SecondLensError
from secondlens.explorer import page_kinds
from secondlens.explorer.app import make_app
from secondlens.explorer.atlas import Atlas
from secondlens.explorer.pages import Pages
from secondlens.models import named_models
from secondlens.models.open_clip.views import from_open_clip
from secondlens.paper.table4 import data_work
from secondlens.registry import Registry


@pytest.fixture
def explored():
    clip = from_open_clip(tiny_model())
    return Atlas(sl.fit(clip, tiny_images(clip, 8), top=2))


@pytest.fixture(autouse=True)
def few_architectures(monkeypatch):
    """All of open_clip's take long to build, and are no members of a registry."""
    monkeypatch.setattr(open_clip, "list_models", lambda: ["ViT-B-32"])


def listed(kinds):
    result = CliRunner().invoke(main, ["list", kinds, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)[kinds]


# The shape


def test_members_keep_their_order_and_make_what_they_are_asked_for():
    numbers = Registry("number", "numbers")
    numbers.register("two", lambda times=1: 2 * times, help="the first prime")

    @numbers.register("one", help="the unit")
    def one():
        return 1

    numbers.register("decimal", "decimal:Decimal", help="imported when it is made")
    assert numbers.names == ("two", "one", "decimal") and len(numbers) == 3
    assert [member.help for member in numbers][:2] == ["the first prime", "the unit"]
    assert numbers["two"](times=3) == 6 and numbers["one"]() == one() == 1
    assert str(numbers["decimal"]("1.5")) == "1.5"
    assert "one" in numbers and "three" not in numbers


def test_a_second_registration_is_refused_and_changes_nothing():
    numbers = Registry("number", "numbers")
    numbers.register("one", lambda: 1, help="the unit")
    with pytest.raises(SecondLensError, match="there is a number 'one' already"):
        numbers.register("one", lambda: 2, help="another")
    assert numbers["one"]() == 1


def test_an_unknown_name_is_told_with_those_that_there_are():
    numbers = Registry("number", "numbers")
    with pytest.raises(SecondLensError, match=r"^no number 'one': there are none$"):
        numbers["one"]
    for name in ("one", "two"):
        numbers.register(name, int, help="")
    with pytest.raises(
        SecondLensError, match=r"^no number 'tow' \(did you mean two\?\): there are"
    ):
        numbers["tow"]


@pytest.mark.parametrize("kinds", REGISTRIES)
def test_every_registry_is_listed_with_a_line_for_each_member(kinds):
    found = registry(kinds)
    assert listed(kinds) == {member.name: member.help for member in found}
    assert all(member.help and "\n" not in member.help for member in found)
    shown = CliRunner().invoke(main, ["list", kinds]).stdout
    assert all(name in shown for name in found.names)


@pytest.mark.parametrize("kinds", REGISTRIES)
def test_every_member_that_is_named_by_its_place_is_there(kinds):
    for member in registry(kinds):
        if isinstance(member.factory, str):
            module, _, name = member.factory.partition(":")
            assert callable(getattr(importlib.import_module(module), name))


# One of each kind


def test_a_model():
    @named_models.register("mine", help="a model of my own")
    def mine(name, *, check, **_):
        return from_open_clip(tiny_model(), name=name, check=check)

    clip = sl.load("mine:small")
    assert clip.name == "mine:small" and clip.encode_image(tiny_images(clip, 2)).shape == (
        2,
        clip.dim,
    )
    assert listed("models")["mine"] == "a model of my own"


def test_a_vocabulary():
    @named_vocabularies.register("metals", help="what spoons are made of")
    def metals():
        return sl.vocabulary(["iron", "tin"], name="metals")

    assert sl.vocabulary("metals").labels == ("iron", "tin")
    with pytest.raises(SecondLensError, match=r"did you mean metals\?.*, world, metals$"):
        sl.vocabulary("metal")


def test_a_baseline():
    @baselines.register("Middle", help="the middle of every image")
    def middle(clip, images, texts):
        maps = torch.zeros(len(images), *clip.grid)
        maps[:, clip.grid[0] // 2, clip.grid[1] // 2] = 1
        return maps

    clip = from_open_clip(tiny_model())
    lens = sl.fit(clip, tiny_images(clip, 8), top=2)
    (found,) = (each for each in table4_methods(clip, lens) if each.name == "Middle")
    assert found.heat_maps(clip, tiny_images(clip, 3), None).sum() == 3


def test_a_captioner_and_an_image_generator(tmp_path):
    class Haiku:
        name = "haiku"

        def write(self, pair, words, count, seed):
            return [f"a {pair.draw} and a {word}" for word in words[:count]]

    class Grey:
        name, knows = "grey", None

        def draw(self, caption, subject, seed):
            return GeneratedImage(image=Image.new("RGB", (8, 8), "gray"), shows=(subject,))

    captioners.register("haiku", lambda chosen, **_: Haiku(), help="three lines")
    image_generators.register("grey", lambda chosen, **_: Grey(), help="nothing to see")
    chosen = AttackSteps(captioner="haiku:short", image_generator="grey", referee="demo-twin")
    made = chosen.make("cpu")
    assert (made["captioner"].name, made["image_generator"].name) == ("haiku", "grey")
    for options, message in (
        (
            {"captioner": "sonnet"},
            "no captioner 'sonnet': there are template, chat, http, https, h",
        ),
        ({"image_generator": "sprite"}, "no image generator 'sprite' .*: there are sprites, diff"),
    ):
        with pytest.raises(SecondLensError, match=message):
            AttackSteps(**options).make("cpu")


def test_a_labelled_set(tmp_path):
    @labelled_sets.register("by-name", help="pictures whose names begin with their class")
    def by_name(root):
        files = sorted(root.glob("*_*.png"))
        names = [file.name.partition("_")[0] for file in files]
        if not files:
            return None
        source = InMemory([Image.open(file).convert("RGB") for file in files])
        pictures = KeyedPictures(name="by name", source=source, keys=names)
        return LabelledSet(test=lambda: pictures)

    for name in ("dog_1", "cat_1", "dog_2"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    found = labelled(tmp_path)
    assert (found.name, found.labels, found.classes.labels) == (
        "by name",
        (0, 1, 1),
        ("cat", "dog"),
    )


def test_a_masked_set(tmp_path):
    class Corners:
        classes = ("corner",)

        def __len__(self):
            return 3

        def __getitem__(self, index):
            mask = np.zeros((1, 8, 8), np.int8)
            mask[0, 0, index] = 1
            picture = Image.new("RGB", (8, 8))
            return Example(id=str(index), image=picture, labels=("corner",), masks=mask)

    masked_sets.register("corners", lambda path, **_: Corners(), help="a corner of each image")
    asked = {"classes": None, "names": None, "ignore": None, "images": 2, "dev": 1}
    work = data_work(tmp_path, "corners", **asked)
    assert (len(work.dev), len(work.test), work.classes.labels) == (1, 2, ("corner",))


def test_a_page(explored):
    @page_kinds.register("hello", help="Hello")
    def hello(pages, name):
        return f"<p>{name}, {pages.atlas.total} neurons</p>"

    pages = Pages(explored)
    client = TestClient(make_app(pages))
    assert client.get("/hello/").text == f"<p>hello, {explored.total} neurons</p>"
    assert ">Hello</a>" in client.get("/").text
