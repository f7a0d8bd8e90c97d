"""A lens as a folder: `lens.json`, `images.json`, and safetensors files.

There is one file of tensors for each layer, for each vocabulary, for names, for each score and
comparison of halves, and for the coordinates of each layer if they were kept. The format has a
page of its own in the documentation. Lenses come from strangers too: what is read is checked.

A folder is the lens that its `lens.json` names, before, during and after another one is written
into it: files that a manifest names are never changed. One whose content is new gets a name with
its hash, then the manifest is replaced, and only then go the files that it no longer names.

A folder is data and nothing else: regular files inside it, tensors of the declared kinds with sizes
that agree, positions that exist, and finite numbers where nothing else makes sense.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import SecondLensError
from ..naming import distinct, shown
from ..storage.checkpoints import load_tensors, save_tensors
from ..storage.files import LARGEST_JSON, read_json, save_json
from ..storage.regular import read_bounded
from ..storage.validation import (
    check_positions,
    check_tensors,
    convert,
    reading,
)
from .codes import Codes, Scores, Stability, codes_from_tensors, codes_to_tensors, join, split
from .layer import Axes, Coordinates, LayerLens
from .manifest import OWN, Evidence, Images, Manifest, ModelEntry
from .moments import HISTOGRAM_EDGES
from .names import EVIDENCE, TENSORS, Names, plain


def check_files(folder: Path) -> None:
    """Raise `ValueError` if something in a folder is no regular file, or lies outside of it."""
    root = folder.resolve()
    for path in sorted(folder.iterdir()):
        if not path.resolve().is_relative_to(root):
            raise ValueError(f"{path.name} is a link that leads out of the folder")
        if path.suffix in (".json", ".safetensors") and not path.is_file():
            raise ValueError(f"{path.name} is no file")


FORMAT = 2

IMAGES = "images.json"
ALL_PATHS = "all-paths-"
"""What the names of files of effects over all paths begin with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """What a lens holds, in memory and in its folder."""

    model: dict[str, Any]
    """Name, weights hash, activation function and shape of the model."""
    convention: str
    top: int
    image_ids: tuple[str, ...]
    skipped: Mapping[str, str]
    """Pictures that could not be read: id -> reason."""
    by_layer: dict[int, LayerLens]
    codes: dict[str, Codes] = field(default_factory=dict)
    """Descriptions by the name of their vocabulary."""
    scores: dict[str, Scores] = field(default_factory=dict)
    """By `Scores.name`: vocabulary, referee and pictures."""
    stability: dict[str, Stability] = field(default_factory=dict)
    """By the name of the vocabulary."""
    names: dict[str, Names] = field(default_factory=dict)
    """What neurons fire on, by `Names.name`: vocabulary and referee."""
    digests: tuple[str, ...] = ()
    """Of the content of each image, see `data.decoding.digest`; a lens of an older version has
    none."""
    sample: int | None = None
    """Images that covariances and mean activations are from; None where these are all images."""
    coordinates: Coordinates | None = None
    axes: Axes | None = None
    """Along which effects over all paths are known; None where effects are those of the value
    path."""
    all_paths: "Contents | None" = None
    """The same of effects over all paths, of the same layers and images, if they were fitted."""

    @property
    def layers(self) -> list[int]:
        """The fitted layers, in order."""
        return sorted(self.by_layer)


def write(lens: Contents, folder: Path) -> None:
    """Write a lens, or write it in the place of another one, of which it takes what is equal.

    Stopped at any moment, it leaves the lens that was there, or none if there was none.

    Raises
    ------
    SecondLensError
        The folder cannot be written to.
    """
    there = folder / "lens.json"
    try:
        before = {**read_json(there).get("files", {})} if there.is_file() else None
    except (ValueError, TypeError):
        before = None  # no manifest that names anything
    names: dict[str, str] = {}
    for own, tensors in _tensors(lens):
        names[own] = _keep(folder, own, before, partial(save_tensors, tensors=tensors))
    images = {"ids": list(lens.image_ids), "skipped": dict(lens.skipped)}
    if lens.digests:
        images["digests"] = list(lens.digests)
    names[IMAGES] = _keep(folder, IMAGES, before, partial(save_json, content=images))
    moved = {own: name for own, name in names.items() if own != name}
    save_json(there, manifest(lens) | ({"files": moved} if moved else {}))
    for path in folder.iterdir():
        if OWN.fullmatch(path.name) and path.name not in {there.name, *names.values()}:
            path.unlink()


def _tensors(lens: Contents) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The files of a lens by their own names, and what is in each."""
    for layer, fitted in lens.by_layer.items():
        found = {f.name: getattr(fitted, f.name) for f in fields(fitted)}
        yield f"layer-{layer:02}.safetensors", found
    for number, codes in enumerate(lens.codes.values()):
        yield f"codes-{number:02}.safetensors", codes_to_tensors(codes)
    for kind in ("scores", "stability"):
        for number, evidence in enumerate(getattr(lens, kind).values()):
            yield f"{kind}-{number:02}.safetensors", split(evidence)[1]
    for number, names in enumerate(lens.names.values()):
        tensors = {
            f"{key}-{layer:02}": tensor
            for key in TENSORS
            for layer, tensor in getattr(names, key).items()
        }
        yield f"names-{number:02}.safetensors", tensors
    if lens.coordinates is not None:
        for layer in lens.layers:
            kept = {"z": lens.coordinates.z[layer], "basis": lens.coordinates.basis[layer]}
            yield f"coordinates-{layer:02}.safetensors", kept
    if lens.axes is not None:
        yield "axes.safetensors", vars(lens.axes)
    if lens.all_paths is not None:
        for own, tensors in _tensors(lens.all_paths):
            yield f"{ALL_PATHS}{own}", tensors


def _keep(
    folder: Path, own: str, before: Mapping[str, str] | None, save: Callable[[Path], None]
) -> str:
    """Write a file and give its name: its own if that is free, else one with its hash."""
    if before is None:
        save(folder / own)
        return own
    new = folder / f"{own}.new"
    save(new)
    digest = _digest(new)
    current = folder / before.get(own, own)
    if current.is_file() and _digest(current) == digest:
        new.unlink()
        return current.name
    stem, suffix = own.rsplit(".", 1)
    name = f"{stem}-{digest[:16]}.{suffix}" if (folder / own).exists() else own
    new.replace(folder / name)
    return name


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(lens: Contents) -> dict[str, Any]:
    """What `lens.json` holds of a lens; `write` adds the names of files that are not their own."""
    return {
        "format": FORMAT,
        "model": lens.model,
        "convention": lens.convention,
        "top": lens.top,
        "layers": lens.layers,
        **_evidence(lens),
        "coordinates": lens.coordinates is not None,
        **({} if lens.all_paths is None else {"all_paths": _evidence(lens.all_paths)}),
        "versions": {name: version(name) for name in ("secondlens", "torch", "open_clip_torch")},
    }


def _evidence(lens: Contents) -> dict[str, Any]:
    codes = [
        {"name": name, "normalise": c.normalise, "labels": list(c.labels)}
        for name, c in lens.codes.items()
    ]
    named = {"names": [plain(names) for names in lens.names.values()]} if lens.names else {}
    return {
        "codes": codes,
        "scores": [split(scores)[0] for scores in lens.scores.values()],
        "stability": [split(stability)[0] for stability in lens.stability.values()],
        **named,
        **({} if lens.sample is None else {"sample": lens.sample}),
    }


def read(folder: Path) -> Contents:
    """The checked contents of the lens in a folder; one that is written meanwhile is read anew.

    Raises
    ------
    SecondLensError
        No lens there, one of another format version, or a damaged one.
    """
    path = folder / "lens.json"
    if not path.is_file():
        raise SecondLensError(f"{folder} holds no lens: there is no lens.json in it")
    before = state(folder)
    try:
        return _read(folder)
    except SecondLensError:
        if not path.is_file() or state(folder) == before:
            raise
        return _read(folder)


def state(folder: Path) -> str | None:
    """Tells whether the manifest in a folder is another one than before; None if there is none.

    Raises
    ------
    SecondLensError
        It is not a file, or larger than any.
    """
    path = folder / "lens.json"
    if not path.is_file():
        return None
    with reading(f"the lens in {folder}"):
        return hashlib.sha256(read_bounded(path, LARGEST_JSON)).hexdigest()


def _read(folder: Path) -> Contents:
    with reading(f"the lens in {folder}"):
        check_files(folder)
        written = read_json(folder / "lens.json")
        if written["format"] != FORMAT:
            raise SecondLensError(
                f"the lens in {folder} has format {written['format']}, and this version reads "
                f"format {FORMAT}: fit it again"
            )
        found = _contents(folder, written)
        _check(found)
    return found


def _contents(folder: Path, written: dict[str, Any]) -> Contents:
    found = convert(written, Manifest, "lens.json")

    def place(own: str) -> Path:
        return folder / found.files.get(own, own)

    def tensors(own: str) -> dict[str, Tensor]:
        return load_tensors(place(own))

    images = convert(read_json(place(IMAGES)), Images, IMAGES)
    common: dict[str, Any] = {
        "model": {
            each.name: written["model"][each.name]
            for each in fields(ModelEntry)
            if each.name in written["model"]
        }
        | {"name": shown(found.model.name)},
        "convention": found.convention,
        "top": found.top,
        "image_ids": images.ids,
        "skipped": images.skipped,
        "digests": images.digests,
    }
    coordinates = None
    if found.coordinates:
        kept = {n: tensors(f"coordinates-{n:02}.safetensors") for n in found.layers}
        coordinates = Coordinates(
            z={n: each["z"] for n, each in kept.items()},
            basis={n: each["basis"] for n, each in kept.items()},
        )
    all_paths = None
    if found.all_paths is not None:
        axes = Axes(**tensors(f"{ALL_PATHS}axes.safetensors"))
        own = _of_paths(found.all_paths, found.layers, lambda name: tensors(ALL_PATHS + name))
        all_paths = Contents(**common, **own, axes=axes)
    own = _of_paths(found, found.layers, tensors)
    return Contents(**common, **own, coordinates=coordinates, all_paths=all_paths)


def _of_paths(
    found: Evidence, layers: Sequence[int], tensors: Callable[[str], dict[str, Tensor]]
) -> dict[str, Any]:
    """What a lens holds of the effects over some paths; `tensors` reads a file."""
    scores, stability, names = (
        [
            join(vars(entry), tensors(f"{kind}-{number:02}.safetensors"))
            for number, entry in enumerate(getattr(found, kind))
        ]
        for kind in ("scores", "stability", "names")
    )
    for evidence in (scores, names):
        for each, name in zip(evidence, _referees(evidence), strict=True):
            each["referee"] = name
    return {
        "sample": found.sample,
        "by_layer": {n: LayerLens(**tensors(f"layer-{n:02}.safetensors")) for n in layers},
        "codes": {
            entry.name: codes_from_tensors(vars(entry), tensors(f"codes-{number:02}.safetensors"))
            for number, entry in enumerate(found.codes)
        },
        "scores": {each.name: each for each in (Scores(**each) for each in scores)},
        "stability": {each.name: each for each in (Stability(**each) for each in stability)},
        "names": {each.name: each for each in (Names(**each) for each in names)},
    }


def _referees(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who judged, without the folders that older lenses name; none twice that was not before."""
    names = dict.fromkeys(str(each["referee"]) for each in scores)
    today = dict(zip(names, distinct(map(shown, names)), strict=True))
    return [today[str(each["referee"])] for each in scores]


FEW_COLUMNS = 16
"""Names and pictures of a neuron that any lens may have room for."""


def _check(found: Contents) -> None:
    """Raise `ValueError` for tensors that do not fit together or to the model."""
    model, images = found.model, len(found.image_ids)
    neurons, dim = model["neurons"], model["dim"]
    rows, columns = model["grid"]
    tokens = model.get("prefix", 1) + rows * columns
    most = {"top": max(found.top, images), "bins": len(HISTOGRAM_EDGES) - 1, "rank": dim}
    for layer in found.by_layer.values():
        check_tensors(layer, most, neurons=neurons, dim=dim, tokens=tokens)
        check_positions(layer.top_images, images, "top images")
    for codes in found.codes.values():
        longest = max(1, len(codes.labels))
        check_tensors(codes, {"k": longest, "words": longest}, neurons=neurons, dim=dim)
        _check_layers(codes, ("indices", "coefficients", "brief", "cosine"), found.by_layer)
        for own, indices in codes.indices.items():
            widths = codes.brief[own].shape[1], codes.coefficients[own].shape[1]
            if max(widths) > indices.shape[1]:
                raise ValueError(f"codes of layer {own} have more coefficients than texts")
        if codes.control is not None and not len(codes.control):
            raise ValueError("a description has no codes of random directions")
        for indices in codes.indices.values():
            check_positions(indices, len(codes.labels), "texts of a description", least=-1)
    for scores in found.scores.values():
        check_tensors(scores, neurons=neurons)
        _check_layers(scores, ("auc", "low", "high", "controls"), found.by_layer)
    for stability in found.stability.values():
        check_tensors(stability, neurons=neurons)
        _check_layers(
            *(stability, ("cosine", "cosine_null", "overlap", "overlap_null"), found.by_layer)
        )
    for names in found.names.values():
        # columns stay empty where there are fewer texts or pictures than a neuron may have
        columns = {"names": len(names.labels), "pictures": names.shown}
        room = {axis: max(count, FEW_COLUMNS) for axis, count in columns.items()}
        check_tensors(names, room, neurons=neurons)
        _check_layers(names, EVIDENCE, found.by_layer)
        if names.rose or names.confirmed:
            _check_layers(names, TENSORS, found.by_layer)
        for rose in names.rose.values():
            check_positions(rose, names.pairs + 1, "pairs of names")
        for texts in names.texts.values():
            check_positions(texts, len(names.labels), "texts of names", least=-1)
        for held in names.held.values():
            check_positions(held, names.shown + 1, "images of names")
        for pictures in names.pictures.values():
            check_positions(pictures, len(names.image_ids), "pictures of names", least=-1)
    if found.axes is not None:
        check_tensors(
            found.axes,
            {"axes": dim},
            ("rows", "left_out"),
            dim=dim,
            layers=len(found.layers),
        )
    if found.all_paths is not None:
        _check(found.all_paths)
    if found.coordinates is not None:
        check_tensors(found.coordinates, most, images=images, neurons=neurons, dim=dim)


def _check_layers(kept: Any, names: Sequence[str], layers: Collection[int]) -> None:
    """Raise `ValueError` unless all of these have the same layers, which were fitted."""
    found = [set(getattr(kept, name)) for name in names]
    if any(each != found[0] for each in found) or not found[0] or not found[0] <= set(layers):
        raise ValueError(f"{', '.join(names)} are not of the same fitted layers")
