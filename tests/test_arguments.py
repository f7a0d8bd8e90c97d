"""Values of a wrong kind in every argument of every public function: one sentence names it."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny_images, tiny_model, tiny_tokenizer
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

import secondlens as sl
from secondlens.arguments import checked
from secondlens.data.labelled import Labelled
from secondlens.errors import SecondLensError

PREPROCESS = Compose([Resize((16, 16)), ToTensor(), Normalize([0.5] * 3, [0.25] * 3)])


def public():
    """Name -> function, of all that are public, and of what users call of a model."""
    found = {name: getattr(sl, name) for name in sl.__all__}
    found |= {f"sparse.{name}": getattr(sl.sparse, name) for name in sl.sparse.__all__}
    found = {name: each for name, each in found.items() if inspect.isfunction(each)}
    for kind in (sl.Clip, sl.AblatedClip, sl.Lens):
        for name in ("prepare", "encode_image", "encode_text", "load", "save"):
            if hasattr(kind, name):
                found[f"{kind.__name__}.{name}"] = getattr(kind, name)
    return found


FUNCTIONS = public()
ARGUMENTS = [
    (name, parameter.name)
    for name, function in FUNCTIONS.items()
    for parameter in inspect.signature(function).parameters.values()
    if parameter.kind is not parameter.VAR_KEYWORD and parameter.name != "self"
]


@pytest.fixture(scope="module")
def right():
    """A value that is right, by the name of the argument, for all that must be given."""
    model = tiny_model()
    clip = sl.from_open_clip(model, PREPROCESS, tiny_tokenizer)
    images = tiny_images(clip, 6)
    lens = sl.fit(clip, images, [0, 1], top=2)
    words = sl.vocabulary(["a", "b", "c", "d"])
    sl.describe(clip, lens, words, 2)
    rows = torch.randn(4, clip.dim, generator=torch.Generator().manual_seed(0))
    latents = sl.singular_vectors(clip, 0, 2)
    return {
        "atoms": rows,
        "after": clip,
        "alpha": 0.1,
        "attacks": object.__new__(sl.Attacked),
        "audit": object.__new__(sl.Audit),
        "before": clip,
        "changes": sl.Edit(neurons=((0, 0),)),
        "classes": words,
        "classifier": rows,
        "clip": clip,
        "columns": ["class"],
        "cues": words,
        "donors": images,
        "draw": "a",
        "head": 0,
        "height": 16,
        "image": images[0],
        "images": images,
        "k": 1,
        "labels": [0] * 6,
        "layer": 0,
        "folder": "nowhere/at/all",
        "lens": lens,
        "mean": lens[0].activation_mean,
        "mistake_for": "b",
        "model": model,
        "name": "demo",
        "neuron": 0,
        "pair": lambda text, seed: (images[0], images[1]),
        "neurons": [0, 1],
        "others": images,
        "out": "nowhere/at/all",
        "path": "nowhere/at/all",
        "pictures": object.__new__(Labelled),
        "reference": images,
        "referee": clip,
        "self": clip,
        "target": "a",
        "targets": rows,
        "text": "a",
        "texts": words,
        "unusual": object.__new__(Labelled),
        "usual": object.__new__(Labelled),
        # of one function alone
        "AblatedClip.encode_image self": sl.AblatedClip(clip, lens, {0: [0]}),
        "finite_paths texts": ["a"],
        "patch neurons": [0],
        "paths texts": ["a"],
        "steer neurons": [0],
        "steer texts": ["a"],
        "times": [0.0],
        "segment texts": "a",
        "tune_presence pictures": [],
        "tune_presence words": words,
        "circuit against": images,
        "count": 2,
        "error": True,
        "latents": {0: latents},
        "layout": "saelens",
        "units name": "units",
        "directions rows": latents.decoder,
        "directions name": "probe",
        "save_units model": "demo",
    }


def call(name, right, wrong, value):
    function = FUNCTIONS[name]
    given = {}
    for each in inspect.signature(function).parameters.values():
        if (own := f"{name} {each.name}") in right:
            given[each.name] = right[own]
        elif each.default is each.empty and each.kind is not each.VAR_KEYWORD:
            given[each.name] = right.get(each.name)
    return function(**given | {wrong: value})


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_value_of_another_kind_is_named(right, name, argument):
    with pytest.raises(SecondLensError) as told:
        call(name, right, argument, object())
    assert "\n" not in str(told.value)
    assert "object" in str(told.value), str(told.value)


def test_what_is_said():
    with pytest.raises(SecondLensError) as told:
        sl.fit("ViT-B-32", torch.zeros(1, 3, 16, 16))
    assert str(told.value) == ("clip of fit must be a Clip, as load returns it, and this is a str")
    with pytest.raises(SecondLensError, match="fit: missing a required argument: 'images'"):
        sl.fit("ViT-B-32")
    with pytest.raises(SecondLensError, match="got an unexpected keyword argument 'layer'"):
        sl.fit("ViT-B-32", [], layer=3)


@checked
def example(
    whole: int = 0,
    number: float = 0.0,
    flag: bool = False,
    text: str = "",
    path: "str | Path | None" = None,
    many: "list[int]" = (),
    pairs: "dict[str, list[tuple[int, int]]]" = (),
):
    return True


@pytest.mark.parametrize(
    "given",
    [
        {"whole": np.int64(1)},
        {"whole": torch.tensor(1)},
        {"number": 1},
        {"number": np.float32(1)},
        {"flag": np.True_},
        {"path": Path()},
        {"path": None},
        {"many": (1, 2)},
        {"many": range(3)},
        {"many": np.arange(3)},
        {"many": torch.arange(3)},
        {"many": []},
        {"pairs": {"a": [(1, 2)]}},
    ],
    ids=str,
)
def test_values_that_are_alike_are_taken(given):
    assert example(**given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"whole": 1.5}, "whole of example must be a whole number, and this is a float"),
        ({"whole": "1"}, "this is a str"),
        ({"number": "1"}, "must be a number"),
        ({"number": None}, "this is a NoneType"),
        ({"flag": "yes"}, "must be True or False"),
        ({"text": Path()}, "must be a text"),
        ({"path": 1}, "must be a text or a path or None, and this is an int"),
        ({"many": "12"}, r"must be a list \(each a whole number\), and this is a str"),
        ({"many": [1, "2"]}, r"must be a list \(each a whole number\)"),
        ({"many": {1: 2}}, "must be a list"),
        ({"pairs": {"a": [(1, 2, 3)]}}, "must be a mapping"),
        ({"pairs": {1: []}}, "must be a mapping"),
    ],
    ids=str,
)
def test_values_that_are_not_are_not(given, words):
    with pytest.raises(SecondLensError, match=words):
        example(**given)
