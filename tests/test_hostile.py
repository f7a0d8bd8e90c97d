"""Folders and files from strangers: nothing in them crashes, hangs, leads out or is run."""

import ast
import contextlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import tiny_images, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from scale import TIMES

import secondlens as sl
from secondlens.applications.adversarial.runs import attacked
from secondlens.applications.auditing.audits import Audit
from secondlens.data.vocabularies import vocabulary
from secondlens.lens.manifest import Manifest
from secondlens.models.open_clip.views import from_open_clip

WORDS = ["ant", "bee", "cat", "dog", "eel", "fox"]
SOURCE = Path(sl.__file__).parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    clip = from_open_clip(tiny_model(layers=3), tokenizer=tiny_tokenizer, name="tiny")
    lens = sl.fit(clip, tiny_images(clip, 12, seed=1), top=3, keep_coordinates=True)
    sl.describe(clip, lens, vocabulary(WORDS), k=3)
    folder = tmp_path_factory.mktemp("hostile") / "lens"
    lens.save(folder)
    return folder


@pytest.fixture
def lens(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "lens")
    return tmp_path / "lens"


def refused(folder, message="is damaged"):
    with pytest.raises(sl.SecondLensError, match=message) as caught:
        sl.Lens.load(folder)
    return str(caught.value)


def changed(path, **tensors):
    """Rewrite some tensors of a file."""
    save_file({**load_file(path), **tensors}, path)


def test_what_was_saved_is_sound(lens):
    assert sl.Lens.load(lens).layers == [0, 1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150 * TIMES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_manifest_is_read_or_refused(saved, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("manifest") / "lens"
    shutil.copytree(saved, folder)
    name = data.draw(st.sampled_from(["lens.json", "images.json"]))
    content = json.loads((folder / name).read_text())
    content[data.draw(st.sampled_from(sorted(content)))] = data.draw(JSON)
    (folder / name).write_text(json.dumps(content))
    with contextlib.suppress(sl.SecondLensError):
        sl.Lens.load(folder)


@settings(max_examples=150 * TIMES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_is_read_or_refused(saved, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damage") / "lens"
    shutil.copytree(saved, folder)
    path = folder / data.draw(st.sampled_from(sorted(each.name for each in saved.iterdir())))
    content = bytearray(path.read_bytes())
    # mostly in the header, where it matters
    at = data.draw(st.integers(0, min(len(content) - 1, 400)))
    how = data.draw(st.sampled_from(["cut", "change", "insert"]))
    some = data.draw(st.binary(min_size=1, max_size=8))
    end = {"cut": len(content), "change": at + len(some), "insert": at}[how]
    content[at:end] = b"" if how == "cut" else some
    path.write_bytes(content)
    with contextlib.suppress(sl.SecondLensError):
        sl.Lens.load(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("convention", [], "Expected `str`, got `array` - at `$.convention`"),
        ("top", True, "Expected `int`, got `bool` - at `$.top`"),
        ("layers", [0, 9], "layers that its model has not"),
        ("layers", "01", "Expected `array`, got `str` - at `$.layers`"),
        ("model", {}, "missing required field `name` - at `$.model`"),
        ("layers", [0, 0], "its layers have the same twice"),
        ("layers", [], "Expected `array` of length >= 1 - at `$.layers`"),
        ("scores", [{"vocabulary": 1}], "got `int` - at `$.scores[0].vocabulary`"),
    ],
)
def test_manifests_of_other_kinds(saved, tmp_path, key, value, message):
    """Refused by what is checked here, not by annotations, which are checked in tests only."""
    folder = tmp_path / "lens"
    shutil.copytree(saved, folder)
    manifest = json.loads((folder / "lens.json").read_text())
    (folder / "lens.json").write_text(json.dumps(manifest | {key: value}))
    with pytest.raises(sl.SecondLensError, match="is damaged: .*" + re.escape(message)):
        sl.Lens.load(folder)


TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
SIZE = st.integers(1, 2**24)
TEXTS = st.lists(TEXT, max_size=3, unique=True)
NORMALISE = st.sampled_from(["unit", "centred", "official"])


@st.composite
def manifests(draw):
    """Manifests that a fit could have written."""
    layers = draw(st.integers(1, 40))
    model = {name: draw(TEXT) for name in ("name", "weights", "activation")}
    model |= {name: draw(SIZE) for name in ("heads", "neurons", "dim")}
    model |= {"layers": layers, "grid": [draw(SIZE), draw(SIZE)]}
    return {
        "format": 2,
        "model": model,
        "convention": draw(st.sampled_from(["exact", "official"])),
        "top": draw(SIZE),
        "layers": draw(st.lists(st.integers(0, layers - 1), min_size=1, max_size=3, unique=True)),
        "codes": [
            {"name": name, "normalise": draw(NORMALISE), "labels": draw(TEXTS)}
            for name in draw(TEXTS)
        ],
        "scores": [
            {"vocabulary": name, "referee": draw(TEXT), "images": draw(SIZE), "top": draw(SIZE)}
            for name in draw(TEXTS)
        ],
        "stability": [{"vocabulary": name, "images": draw(SIZE)} for name in draw(TEXTS)],
        "coordinates": draw(st.booleans()),
    }


def leaves(value, path=()):
    """Paths of all values at any depth, and the values."""
    yield path, value
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))


def put(document, path, value):
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value


@settings(max_examples=100 * TIMES, deadline=None, derandomize=True, database=None)
@given(manifests())
def test_valid_manifests_keep_what_they_say(document):
    found = msgspec.json.encode(msgspec.convert(document, Manifest))
    assert json.loads(found) == document | {"files": {}}


@settings(max_examples=200 * TIMES, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_manifests_with_one_wrong_value_are_refused(data):
    """Of another kind, out of bounds, or missing, at any depth."""
    document = data.draw(manifests())
    path, value = data.draw(st.sampled_from([each for each in leaves(document) if each[0]]))
    if data.draw(st.booleans()):
        wrong = {
            bool: st.sampled_from([None, "yes", 2, []]),
            int: st.sampled_from([None, True, "1", 1.5, 2**62, -1, []]),
            str: st.sampled_from([None, 1, False, [], {}]),
            list: st.sampled_from([None, 1, "texts", {}]),
            dict: st.sampled_from([None, 1, "texts", []]),
        }[type(value)]
        if path == ("format",):  # read before anything else
            return
        put(document, path, data.draw(wrong))
    elif isinstance(path[-1], str) and path[-1] not in ("scores", "stability", "coordinates"):
        del_from = document
        for key in path[:-1]:
            del_from = del_from[key]
        del del_from[path[-1]]
    else:
        return
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(document, Manifest)


def test_a_giant_is_refused_before_anything_is_made_of_it(saved, tmp_path):
    folder = tmp_path / "lens"
    shutil.copytree(saved, folder)
    manifest = json.loads((folder / "lens.json").read_text())
    manifest["model"]["layers"] = 100_000_000
    (folder / "lens.json").write_text(json.dumps(manifest))
    with pytest.raises(sl.SecondLensError, match=r"<= 16777216 - at `\$\.model\.layers`"):
        sl.Lens.load(folder)


WRONG = [
    ("directions", lambda t: t * float("nan"), "not finite"),
    ("mean", lambda t: t.where(t != t[0, 0], float("inf")), "not finite"),
    ("directions", lambda t: t.to(torch.int32), "is no Float"),
    ("top_images", lambda t: t + 1000, "top images lie outside"),
    ("top_images", lambda t: t - 1000, "top images lie outside"),
    ("top_images", lambda t: t[:, :1], "agrees with the rest"),
    ("energy", lambda t: t[:3], "agrees with the rest"),
    ("mean", lambda t: t[:, :3], "mean has 3 dim"),
    ("explained", lambda t: t[:, None], "agrees with the rest"),
    ("extra", lambda _: torch.zeros(3), "unexpected keyword"),
]

LOADING = """
import sys, secondlens as sl
for folder in sys.argv[1:]:
    try:
        sl.Lens.load(folder)
        print("loaded")
    except sl.SecondLensError as error:
        print(error)
"""


def test_tensors_that_no_fit_wrote(saved, tmp_path):
    """In a process of its own: here, annotations are checked when anything is made."""
    folders = [tmp_path / str(i) for i in range(len(WRONG))]
    for folder, (name, change, _) in zip(folders, WRONG, strict=True):
        shutil.copytree(saved, folder)
        path = folder / "layer-01.safetensors"
        changed(path, **{name: change(load_file(path).get(name)).contiguous()})
    done = subprocess.run(
        [sys.executable, "-c", LOADING, *folders], capture_output=True, text=True, check=True
    )
    for line, (name, _, message) in zip(done.stdout.splitlines(), WRONG, strict=True):
        assert "is damaged" in line
        assert message in line, name


MISTAKES = """
import numpy as np, secondlens as sl, torch
from PIL import Image
from torch import nn

clip = sl.load("demo")
picture = Image.new("RGB", (64, 64))
for mistake in (
    lambda: sl.second_order(clip, 3, 5),
    lambda: sl.second_order(clip, "photos", 5),
    lambda: sl.second_order(clip, [picture], "5"),
    lambda: sl.fit(clip, [picture] * 3, layers=5),
    lambda: sl.fit(clip, [picture] * 3, layers="5,6"),
    lambda: sl.sparse.omp(np.ones((2, 4)), np.ones((3, 4)), 1),
    lambda: sl.from_open_clip(nn.Linear(2, 2)),
):
    try:
        print("no error", mistake())
    except sl.SecondLensError as error:
        print(error)
"""

SAID = (
    "images must be a path, PIL images, a preprocessed tensor",
    "no folder or file photos: name one that holds pictures",
    "layer of second_order must be a whole number, and this is a str",
    "layers of fit must be a list (each a whole number) or 'all', and this is an int",
    "layers of fit must be a list (each a whole number) or 'all', and this is a str",
    "targets of omp must be a Tensor, and this is a ndarray",
    "open_clip model cannot be explained",
)


def test_values_of_other_kinds():
    """In a process of its own: here, annotations are checked at each call."""
    done = subprocess.run(
        [sys.executable, "-c", MISTAKES], capture_output=True, text=True, check=True
    )
    for line, message in zip(done.stdout.splitlines(), SAID, strict=True):
        assert message in line


def test_layers_of_two_models(lens):
    path = lens / "layer-01.safetensors"
    half = {
        name: tensor[:, : len(tensor[0]) // 2] if name == "activation_mean" else tensor[::2]
        for name, tensor in load_file(path).items()
    }
    save_file({name: tensor.contiguous() for name, tensor in half.items()}, path)
    assert "neurons and not" in refused(lens)


def test_texts_that_do_not_exist(lens):
    path = lens / "codes-00.safetensors"
    changed(path, **{"indices-01": load_file(path)["indices-01"] + 4})
    assert "texts of a description lie outside" in refused(lens)


def test_a_header_that_declares_more_than_there_is(lens):
    path = lens / "layer-00.safetensors"
    huge = {"mean": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}
    header = json.dumps(huge).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    refused(lens)
    path.write_bytes(struct.pack("<Q", 2**63 - 1))
    refused(lens)


def test_a_deep_manifest(lens):
    (lens / "lens.json").write_text("[" * 200_000)
    refused(lens)


def test_ids_and_texts_are_lists_of_texts(lens):
    images = json.loads((lens / "images.json").read_text())
    for ids in ([*images["ids"][:-1], 3], "abc", [images["ids"][0]] * len(images["ids"])):
        (lens / "images.json").write_text(json.dumps(images | {"ids": ids}))
        assert "images.json: " in refused(lens)


def test_links_that_lead_out(lens, tmp_path):
    outside = tmp_path / "outside.safetensors"
    (lens / "layer-00.safetensors").rename(outside)
    (lens / "layer-00.safetensors").symlink_to(outside)
    assert "leads out of the folder" in refused(lens)


def test_a_pipe_does_not_hang(lens):
    (lens / "layer-00.safetensors").unlink()
    os.mkfifo(lens / "layer-00.safetensors")
    assert "is no file" in refused(lens)


def test_names_are_not_paths(lens, tmp_path):
    """Ids, words and names may say what they like: no file is opened by them."""
    manifest = json.loads((lens / "lens.json").read_text())
    manifest["codes"][0]["name"] = "../../escape"
    manifest["codes"][0]["labels"][0] = "../../../etc/passwd"
    (lens / "lens.json").write_text(json.dumps(manifest))
    loaded = sl.Lens.load(lens)
    before = sorted(tmp_path.rglob("*"))
    loaded.save(lens)
    assert sorted(tmp_path.rglob("*")) == before


@settings(max_examples=60 * TIMES, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=JSON)
def test_any_audit_is_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("audit")
    (folder / "audit.json").write_text(json.dumps(content))
    with pytest.raises(sl.SecondLensError):
        Audit.load(folder)


@settings(max_examples=60 * TIMES, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=JSON)
def test_any_attack_is_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("attack")
    (folder / "report.json").write_text(json.dumps(content))
    with pytest.raises(sl.SecondLensError):
        attacked(folder, vocabulary(WORDS))


@settings(max_examples=100 * TIMES, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=200), suffix=st.sampled_from(["txt", "csv", "parquet"]))
def test_any_list_of_texts_is_read_or_refused(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("texts") / f"words.{suffix}"
    path.write_bytes(content)
    try:
        found = vocabulary(path)
    except sl.SecondLensError:
        return
    assert all(isinstance(label, str) and label for label in found.labels)


RUNS_WHAT_IT_READS = {
    "data/cifar.py": "CIFAR-10 is pickles; its reader refuses all but arrays, see test_layouts",
    "data/decoders.py": "hands this process's own work to decoders that it started",
    "engine/pool.py": "hands this process's own work to workers that it started",
    "models/archives.py": "makes tensors alone: whatever else a pickle names is inert",
}
"""Modules that may, and why."""


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.stem)
def test_nothing_that_is_read_is_run(path):
    """No pickle, no eval: weights through safetensors, everything else as JSON."""
    if str(path.relative_to(SOURCE).as_posix()) in RUNS_WHAT_IT_READS:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            names = {each.name for each in node.names}
            # to recognise the error is fine
            assert not {module, *names} & {"pickle", "cloudpickle", "dill", "joblib", "shelve"} or (
                names == {"UnpicklingError"}
            )
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            assert called not in {"eval", "exec", "__import__"}
            assert "Loader" not in options
            if called == "torch.load":
                assert options.get("weights_only") == "True"
            if called.endswith("np.load"):
                assert options.get("allow_pickle") != "True"
