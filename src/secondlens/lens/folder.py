"""A lens as a folder: `lens.json`, `images.json`, and safetensors files.

There is one file of tensors for each layer, for each vocabulary, for each score and comparison of
halves, and for the coordinates of each layer if they were kept. The format has a page of its own in
the documentation. Lenses come from strangers too: what is read is checked.
"""

import json
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ..errors import SecondLensError
from ..storage.files import load_tensors, save_json, save_tensors
from .checks import check_files, check_keys, check_positions, check_tensors, check_text
from .codes import codes_from_tensors, codes_to_tensors
from .evidence import Scores, Stability, join, split
from .layer import Coordinates, LayerLens

if TYPE_CHECKING:
    from .lens import Lens

FORMAT = 2

_MANIFEST = {"model": dict, "convention": str, "top": int, "layers": list, "codes": list}
_MODEL = dict.fromkeys(("name", "weights", "activation"), str) | dict.fromkeys(
    ("layers", "heads", "neurons", "dim"), int
)
_CODES = {"name": str, "normalise": str, "labels": list}
_SCORES = {"vocabulary": str, "referee": str, "images": int, "top": int}
_STABILITY = {"vocabulary": str, "images": int}
"""What keys of the manifest hold."""

_DAMAGED = (
    *(KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError),
    *(OSError, SafetensorError),
)
"""What reading a folder that no fit wrote may raise."""


def write(lens: "Lens", folder: Path) -> None:
    """Write a lens; files are complete or absent, and `lens.json` comes last.

    Raises
    ------
    SecondLensError
        The folder cannot be written to.
    """
    for layer, fitted in lens.by_layer.items():
        tensors = {f.name: getattr(fitted, f.name) for f in fields(fitted)}
        save_tensors(folder / f"layer-{layer:02}.safetensors", tensors)
    for number, codes in enumerate(lens.codes.values()):
        save_tensors(folder / f"codes-{number:02}.safetensors", codes_to_tensors(codes))
    for kind in ("scores", "stability"):
        for number, found in enumerate(getattr(lens, kind).values()):
            save_tensors(folder / f"{kind}-{number:02}.safetensors", split(found)[1])
    if lens.coordinates is not None:
        for layer in lens.layers:
            tensors = {"z": lens.coordinates.z[layer], "basis": lens.coordinates.basis[layer]}
            save_tensors(folder / f"coordinates-{layer:02}.safetensors", tensors)
    images = {"ids": list(lens.image_ids), "skipped": dict(lens.skipped)}
    save_json(folder / "images.json", images)
    save_json(folder / "lens.json", manifest(lens))


def manifest(lens: "Lens") -> dict[str, Any]:
    """What `lens.json` holds."""
    codes = [
        {"name": name, "normalise": c.normalise, "labels": list(c.labels)}
        for name, c in lens.codes.items()
    ]
    return {
        "format": FORMAT,
        "model": lens.model,
        "convention": lens.convention,
        "top": lens.top,
        "layers": lens.layers,
        "codes": codes,
        "scores": [split(scores)[0] for scores in lens.scores.values()],
        "stability": [split(stability)[0] for stability in lens.stability.values()],
        "coordinates": lens.coordinates is not None,
        "versions": {name: version(name) for name in ("secondlens", "torch", "open_clip_torch")},
    }


def read(folder: Path) -> dict[str, Any]:
    """The checked fields of the `Lens` in a folder.

    Raises
    ------
    SecondLensError
        No lens there, one of another format version, or a damaged one.
    """
    if not (folder / "lens.json").is_file():
        raise SecondLensError(f"{folder} holds no lens: there is no lens.json in it")
    try:
        check_files(folder)
        written = json.loads((folder / "lens.json").read_text(encoding="utf-8"))
        if written["format"] != FORMAT:
            raise SecondLensError(
                f"the lens in {folder} has format {written['format']}, and this version reads "
                f"format {FORMAT}: fit it again"
            )
        found = _fields(folder, written)
        _check(found)
    except _DAMAGED as error:
        raise SecondLensError(f"the lens in {folder} is damaged: {_reason(error)}") from error
    return found


def _reason(error: Exception) -> str:
    """In words, where the error has only a name."""
    if isinstance(error, OSError) and error.filename:
        return f"{Path(error.filename).name}: {error.strerror}"
    return f"it lacks {error}" if isinstance(error, KeyError) else f"{error or repr(error)}"


def _fields(folder: Path, written: dict[str, Any]) -> dict[str, Any]:
    _check_manifest(written)
    images = json.loads((folder / "images.json").read_text(encoding="utf-8"))
    check_keys(images, {"ids": list, "skipped": dict}, "images.json")
    check_text(images["ids"], "the ids of images")
    check_keys(images["skipped"], dict.fromkeys(images["skipped"], str), "the skipped images")
    layers = written["layers"]
    coordinates = None
    if written["coordinates"]:
        kept = {n: load_tensors(folder / f"coordinates-{n:02}.safetensors") for n in layers}
        coordinates = Coordinates(
            z={n: tensors["z"] for n, tensors in kept.items()},
            basis={n: tensors["basis"] for n, tensors in kept.items()},
        )
    scores, stability = (
        [
            join(entry, load_tensors(folder / f"{kind}-{number:02}.safetensors"))
            for number, entry in enumerate(written.get(kind, []))
        ]
        for kind in ("scores", "stability")
    )
    return {
        "model": written["model"],
        "convention": written["convention"],
        "top": written["top"],
        "image_ids": tuple(images["ids"]),
        "skipped": images["skipped"],
        "by_layer": {
            n: LayerLens(**load_tensors(folder / f"layer-{n:02}.safetensors")) for n in layers
        },
        "codes": {
            entry["name"]: codes_from_tensors(
                entry, load_tensors(folder / f"codes-{number:02}.safetensors")
            )
            for number, entry in enumerate(written["codes"])
        },
        "scores": {each.name: each for each in (Scores(**each) for each in scores)},
        "stability": {each.name: each for each in (Stability(**each) for each in stability)},
        "coordinates": coordinates,
    }


def _check_manifest(written: dict[str, Any]) -> None:
    """Raise `ValueError` or `TypeError` for a manifest that no fit wrote."""
    check_keys(written, _MANIFEST, "the manifest")
    model = written["model"]
    check_keys(model, _MODEL, "the model")
    if not (isinstance(model["grid"], list) and list(map(type, model["grid"])) == [int, int]):
        raise TypeError("the grid of the model is not two numbers")
    layers = written["layers"]
    if not layers:
        raise ValueError("it has no layer")
    if set(map(type, layers)) != {int} or not set(layers) <= set(range(model["layers"])):
        raise ValueError("it has layers that its model has not")
    for entry in written["codes"]:
        check_keys(entry, _CODES, "a description")
        check_text(entry["labels"], "the texts of a description")
    for kind, keys in (("scores", _SCORES), ("stability", _STABILITY)):
        for entry in written.get(kind, []):
            check_keys(entry, keys, kind)


def _check(found: dict[str, Any]) -> None:
    """Raise `ValueError` for tensors that do not fit together or to the model."""
    model, images = found["model"], len(found["image_ids"])
    neurons, dim = model["neurons"], model["dim"]
    rows, columns = model["grid"]
    for layer in found["by_layer"].values():
        check_tensors(layer, neurons=neurons, dim=dim, tokens=1 + rows * columns)
        check_positions(layer.top_images, images, "top images")
    for codes in found["codes"].values():
        check_tensors(codes, neurons=neurons, dim=dim)
        for indices in codes.indices.values():
            check_positions(indices, len(codes.labels), "texts of a description", least=-1)
    for evidence in (*found["scores"].values(), *found["stability"].values()):
        check_tensors(evidence, neurons=neurons)
    if found["coordinates"] is not None:
        check_tensors(found["coordinates"], images=images, neurons=neurons, dim=dim)
