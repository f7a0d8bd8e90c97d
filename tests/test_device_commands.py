"""Every command and every route of the explorer on the fake accelerator."""

import io
import shutil
from dataclasses import replace
from functools import cache

import click
import fake
import open_clip
import pytest
import torch
from click.testing import CliRunner
from fastapi.testclient import TestClient
from on_devices import (
    DESCRIPTIONS,
    DEVICE,
    LAYER,
    LAYERS,
    PRECISIONS,
    UNSEEN,
    WORDS,
    Noise,
    picture,
    tiny_clip,
)

import secondlens as sl
from secondlens.applications.adversarial import image_generators
from secondlens.commands import explore as exploring
from secondlens.commands.group import main
from secondlens.demo.scenes import FIT_SEED, Scenes, World
from secondlens.explorer.app import make_app
from secondlens.explorer.live import small_attack
from secondlens.explorer.opening import open_lens
from secondlens.explorer.pages import Pages
from secondlens.models import named_models
from secondlens.paper import study
from secondlens.paper.registry import results

pytestmark = pytest.mark.filterwarnings("ignore:.*longer than the context")

WITHOUT_MODEL = {"groundtruth", "list", "pool", "pull", "share"}
"""Commands that load no model."""
SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 24, "head_width": 8, "layers": 4},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}
TINY = ("--model", "tiny:noise", "--device", DEVICE)

COMMANDS = {
    "ablate": ("lens", "classes", "--layers", LAYER, "--json", *TINY),
    "attack": (
        *("lens", "--draw", "cow", "--mistake-for", "lion", "--texts", "world", "--out", "attack"),
        *("--images", 2, "--captions", 2, "--image-generator", "noise"),
        *("--model", "demo-tiny:demo", "--device", DEVICE),
    ),
    "audit": (
        *("lens", "--classes", "classes.txt", "--cues", "cues.txt", "--images", "photos"),
        *("--chance", 1, "--out", "audit", *TINY),
    ),
    "bench": ("--model", "small", "--device", DEVICE, "--rounds", 1, "--batch-size", 2, "--json"),
    "budget": ("lens", "photos", "--layers", LAYER, "--neurons", 2, "--json", *TINY),
    "defend": (
        *("made-audit", "lens", "--usual", "classes", "--unusual", "classes"),
        *("--template", "{}", "--out", "defence", *TINY),
    ),
    "edit": (
        *("lens", "--cut", "cut.json", "--usual", "classes", "--template", "{}"),
        *("--out", "edited", "--json", *TINY),
    ),
    "describe": ("lens", "--texts", "cues.txt", "-k", 3, "--json", *TINY),
    "diff": (
        *("tiny:noise", "other:noise", "--images", "photos", "--classes", "classes.txt"),
        *("--out", "compared", "--json", "--device", DEVICE),
    ),
    "circuit": (
        *("lens", "photo.png", "--text", "a ship", "--against", "photos", "--nodes", 8, "--json"),
        *("--model", "tiny:noise", "--device", "fake:0"),
    ),
    "discover": ("lens", "photo.png", "--top", 3, "--json", *TINY),
    "explore": ("lens", "--images", "photos", "--port", 0, *TINY),
    "export": ("lens", "site", "--images", "photos", *TINY),
    "fit": ("photos", "--out", "new", "--layers", LAYER, "--json", *TINY),
    "plan": ("photos", "--layers", LAYER, "--json", *TINY),
    "name": (
        *("lens", "--texts", "cues.txt", "--everywhere", "cues.txt", "--images", "unseen"),
        *("--referee", "other:noise", "--json", *TINY),
    ),
    "score": ("lens", "--images", "unseen", "--referee", "tiny:noise", "--json", *TINY),
    "search": ("lens", "a ship", "--json", *TINY),
    "segment": ("lens", "photo.png", "--text", "a dog", "--out", "masks", *TINY),
    "steer": ("photos", "--neuron", f"{LAYER}:3", "--text", "a ship", "--json", *TINY),
    "verify": ("tiny:noise", "--device", DEVICE, "--json"),
    # gradients are computed by the fake on its first device alone
    "why-attention": (
        *("photo.png", "--layer", 1, "--head", 0, "--json"),
        *("--model", "tiny:noise", "--device", "fake:0"),
    ),
}
"""What each command is given; those of the long tests are below."""
LONG = {"demo", "reproduce"}
FULL = {"harden"}
"""Commands that refuse half precision: what they run is in `test_harden`."""
SLOW = {"explore", "export", "verify"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of pictures, alone and by class, lists of words, and lenses of each precision."""
    folder = tmp_path_factory.mktemp("devices")
    (folder / "photos").mkdir()
    for number in range(16):
        picture(number).save(folder / "photos" / f"{number:02}.png")
        place = folder / "classes" / WORDS[number % 4]
        place.mkdir(parents=True, exist_ok=True)
        picture(number).save(place / f"{number:02}.png")
    picture(99).save(folder / "photo.png")
    (folder / "unseen").mkdir()
    for number, each in enumerate(UNSEEN.pictures):
        each.save(folder / "unseen" / f"new-{number:02}.png")
    (folder / "classes.txt").write_text("\n".join(WORDS[:4]))
    (folder / "cut.json").write_text(f'{{"neurons": [[{LAYER}, 3]]}}')
    (folder / "cues.txt").write_text("\n".join(WORDS[4:]))
    return folder


@cache
def lens_of(folder, precision):
    """A lens fitted and described on the CPU, and an audit of it, in folders of their own."""
    clip = tiny_clip(precision=precision)
    lens = sl.fit(clip, folder / "photos", LAYERS)
    sl.describe(clip, lens, *DESCRIPTIONS[0])
    lens.save(folder / f"lens-{precision}")
    found = sl.audit(clip, lens, WORDS[:4], folder / "photos", WORDS[4:], chance=1.0)
    # random weights push nothing for sure
    found = type(found)(**vars(found) | {"spread": found.spread * 0})
    found.save(folder / f"audit-{precision}")
    return folder / f"lens-{precision}", folder / f"audit-{precision}"


class Listening:
    """In place of a socket."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def getsockname(self):
        return "127.0.0.1", 1


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A folder of its own with all that is needed, and what its commands name."""
    for each in made.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "demo-tiny"):  # what is called demo has a world of its own
        named_models.register(
            name,
            lambda name, *, device, precision, **_: replace(
                tiny_clip(device, precision), name=name.partition(":")[2]
            ),
            help="small and random",
        )
    named_models.register(
        "other",
        lambda name, *, device, precision, **_: tiny_clip(device, precision, seed=1),
        help="with other weights",
    )
    image_generators.register("noise", lambda *_, **__: Noise(), help="of no use")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small", SMALL)
    monkeypatch.setattr(exploring, "_bound", lambda *_: Listening())
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)


def test_every_command_has_a_case():
    assert COMMANDS.keys() | LONG | FULL | WITHOUT_MODEL == main.commands.keys()


def leaves(command):
    """A command, or all below it."""
    if not isinstance(command, click.Group):
        return [command]
    names = command.list_commands(click.Context(command))
    return [leaf for name in names for leaf in leaves(command.commands[name])]


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() | LONG | FULL))
def test_every_command_that_runs_a_model_takes_a_device(name):
    for command in leaves(main.commands[name]):
        assert "--device" in [flag for each in command.params for flag in each.opts], command.name


def check(name, made, place, precision):
    for source, target in zip(lens_of(made, precision), ("lens", "made-audit"), strict=True):
        shutil.copytree(source, place / target)
    takes = [flag for each in main.commands[name].params for flag in each.opts]
    more = ["--precision", precision] if "--precision" in takes else []
    result = run(name, *COMMANDS[name], *more)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - SLOW))
def test_every_command(name, made, place):
    check(name, made, place, "fp32")


@pytest.mark.long
@pytest.mark.parametrize("float64", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_in_every_way(name, precision, float64, made, place):
    if name == "verify" and precision != "fp32":
        return  # it has no precision, because it converts the model by itself
    with fake.machine(float64=float64):
        check(name, made, place, precision)


@pytest.fixture
def few(monkeypatch):
    for name in ("DEMO_TEST_IMAGES", "DEMO_LAYER_IMAGES", "BUDGET_IMAGES"):
        monkeypatch.setattr(study, name, 4)


@pytest.mark.long
@pytest.mark.parametrize("float64", [True, False])
def test_the_demo(float64, tmp_path):
    with fake.machine(float64=float64):
        arguments = ("--out", tmp_path / "demo", "--images", 50, "--test-images", 4)
        assert run("demo", *arguments, "--device", "fake:0").exit_code == 0


SMALLEST = {
    "table3": ("--seeds", 1, "--images-a-run", 2, "--fit-images", 50, "--effect-images", 2),
    "table4": ("--fit-images", 50, "--test-images", 4, "--dev", 4),
    "multiclass": ("--fit-images", 50, "--test-images", 2, "--dev", 2),
}
STUDY = ("--neurons", 2, "--fit-images", 50, "--effect-images", 10)


@pytest.mark.long
@pytest.mark.parametrize("name", results.names)
def test_every_reproduction(name, few, tmp_path):
    # on the first device, which computes gradients too
    options = SMALLEST.get(name, STUDY)
    out = ("--out", tmp_path / "out", "--device", "fake:0")
    result = run("reproduce", name, "--demo", *options, *out)
    assert result.exit_code == 0, result.output


def numbers(content):
    """All numbers of a document, in order."""
    if isinstance(content, dict):
        return [n for value in content.values() for n in numbers(value)]
    if isinstance(content, list):
        return [n for value in content for n in numbers(value)]
    return [float(content)] if isinstance(content, int | float) else []


def png():
    buffer = io.BytesIO()
    picture(98).save(buffer, "png")
    return buffer.getvalue()


ROUTES = {
    "/live/search": ("get", "/live/search?text=a%20ship", None),
    "/live/wall/{layer}/{neuron}": ("get", f"/live/wall/{LAYER}/3?text=a%20ship", None),
    "/live/budget/{layer}/{neuron}": ("get", f"/live/budget/{LAYER}/3", None),
    "/live/image": ("post", "/live/image", png()),
    "/live/attention": ("post", f"/live/attention?layer={LAYER}&head=0&patch=3&at=2", None),
    "/live/segment": ("post", "/live/segment?text=a%20ship&at=2", None),
}
"""Requests that the model answers, by route; attacks have a test of their own below."""

GRADIENTS = {"/live/attention"}
"""Routes that need gradients, which the fake computes on its first device alone."""


def client_of(made, place, precision, device, name):
    """A client of the explorer of a lens that is surveyed by a model on a device."""
    shutil.copytree(lens_of(made, precision)[0], place / name)
    clip = tiny_clip(device, precision)
    atlas, live = open_lens(place / name, clip, place / "photos")
    app = make_app(Pages(atlas, live=True), live)
    return TestClient(app, base_url="http://127.0.0.1"), app, atlas


def check_routes(made, place, precision):
    client, app, atlas = client_of(made, place, precision, DEVICE, "there")
    on_cpu, _, expected = client_of(made, place, precision, "cpu", "here")
    paths = [each.path for each in app.routes]
    assert {each for each in paths if each.startswith("/live/")} == ROUTES.keys()
    first, *_ = client_of(made, place, precision, "fake:0", "first")
    for route, (method, path, body) in ROUTES.items():
        content = {} if body is None else {"content": body}
        on_device = first if route in GRADIENTS else client
        answers = [getattr(each, method)(path, **content) for each in (on_device, on_cpu)]
        assert [each.status_code for each in answers] == [200, 200], path
        found, wanted = (torch.tensor(numbers(each.json())) for each in answers)
        if precision == "fp32":  # pages round, and heat is in whole steps
            assert found.shape == wanted.shape
            assert (found - wanted).abs().max() <= 2e-3 * wanted.abs().max()
    one, other = atlas.survey.layers[LAYER], expected.survey.layers[LAYER]
    cosine = torch.cosine_similarity(*map(torch.from_numpy, (one.scale, other.scale)), dim=0)
    assert cosine > 0.999


def test_every_route_of_the_explorer(made, place):
    check_routes(made, place, "fp32")


@pytest.mark.long
@pytest.mark.parametrize("float64", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_route_in_every_way(precision, float64, made, place):
    with fake.machine(float64=float64):
        check_routes(made, place, precision)


@pytest.mark.long
def test_the_attack_lab(tmp_path):
    clip = sl.load("demo", device=DEVICE)
    lens = sl.fit(clip, Scenes(World(), FIT_SEED, 50), [5])
    sl.describe(clip, lens, *DESCRIPTIONS[0])
    assert small_attack(clip, lens, "cow", "lion")["samples"]


def test_a_device_that_is_not_there_is_told_in_one_sentence(place):
    for device in ("fake:7", "cuda:99", "nonsense", "meta"):
        result = run("verify", "demo", "--device", device)
        assert result.exit_code == 2
        assert "choose one of cpu, " in result.output and "fake:0, fake:1" in result.output
        assert result.output.count("Error: ") == 1 and "Traceback" not in result.output
