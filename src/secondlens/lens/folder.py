"""A lens as a folder: `lens.json`, `images.json`, and safetensors files.

There is one file of tensors for each layer, for each vocabulary, for each score and comparison of
halves, and for the coordinates of each layer if they were kept. The format has a page of its own in
the documentation. Lenses come from strangers too: what is read is checked.

A folder is data and nothing else: regular files inside it, tensors of the declared kinds with sizes
that agree, positions that exist, and finite numbers where nothing else makes sense.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec
from jaxtyping import jaxtyped
from safetensors import SafetensorError
from torch import Tensor

from ..errors import SecondLensError
from ..naming import shown, unlike
from ..storage.checkpoints import load_tensors, save_tensors
from ..storage.files import read_json, save_json
from .codes import Codes, Scores, Stability, codes_from_tensors, codes_to_tensors, join, split
from .layer import Coordinates, LayerLens

FINITE = ("mean", "directions", "energy", "top_norms", "activation_mean", "coefficients", "brief")
"""Tensors without which nothing can be said, if a number in them is none."""


def check_files(folder: Path) -> None:
    """Raise `ValueError` if something in a folder is no regular file, or lies outside of it."""
    root = folder.resolve()
    for path in sorted(folder.iterdir()):
        if not path.resolve().is_relative_to(root):
            raise ValueError(f"{path.name} is a link that leads out of the folder")
        if path.suffix in (".json", ".safetensors") and not path.is_file():
            raise ValueError(f"{path.name} is no file")


def check_tensors(kept: Any, **sizes: int) -> None:
    """Compare the tensors of a dataclass with its annotations.

    Parameters
    ----------
    kept
        Fields that are a tensor, none, or a tensor for each layer are looked at.
    sizes
        What named axes must be.

    Raises
    ------
    ValueError
        A tensor of another kind or size, or with a number that is not finite.
    """
    by_layer: dict[int, dict[str, tuple[Any, Tensor]]] = {}
    single: dict[str, tuple[Any, Tensor]] = {}
    for each in fields(kept):
        value = getattr(kept, each.name)
        if isinstance(value, Mapping) and get_origin(each.type) is dict:
            for layer, tensor in value.items():
                by_layer.setdefault(layer, {})[each.name] = get_args(each.type)[1], tensor
        elif isinstance(value, Tensor):
            kinds = get_args(each.type) if get_origin(each.type) is UnionType else (each.type,)
            single[each.name] = kinds[0], value
    for layer, tensors in ({-1: single} | by_layer).items():
        seen = dict(sizes)
        where = "" if layer < 0 else f" of layer {layer}"
        with jaxtyped("context"):
            for name, (kind, tensor) in tensors.items():
                if not isinstance(tensor, kind):
                    raise ValueError(
                        f"{name}{where}, {tensor.dtype} {list(tensor.shape)}, is no "
                        f"{kind.__name__} that agrees with the rest"
                    )
                for axis, size in zip(kind.dim_str.split(), tensor.shape, strict=True):
                    if seen.get(axis, size) != size:
                        raise ValueError(f"{name}{where} has {size} {axis} and not {seen[axis]}")
                if name in FINITE and not math.isfinite(float(tensor.abs().sum())):
                    raise ValueError(f"{name}{where} has a number that is not finite")


def check_positions(positions: Tensor, below: int, what: str, least: int = 0) -> None:
    """Raise `ValueError` unless all positions lie between `least` and `below`, without it."""
    if positions.numel() and not (least <= int(positions.min()) and int(positions.max()) < below):
        raise ValueError(f"{what} lie outside of {least} to {below - 1}")


FORMAT = 2

Kind = TypeVar("Kind")

Size = Annotated[int, msgspec.Meta(ge=1, le=2**24)]
"""Of an axis. What a stranger writes is bounded before it is used."""
Texts = Annotated[tuple[str, ...], msgspec.Meta(max_length=2**27)]


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """The model of a lens, as its manifest names it."""

    name: str
    weights: str
    activation: str
    layers: Size
    heads: Size
    neurons: Size
    dim: Size
    grid: tuple[Size, Size]


@dataclass(frozen=True, kw_only=True)
class CodesEntry:
    """A description, whose tensors are in a file of their own."""

    name: str
    normalise: str
    labels: Texts

    def __post_init__(self) -> None:
        _check_unlike(self.labels, "the texts of a description")


@dataclass(frozen=True, kw_only=True)
class ScoresEntry:
    """Scores of a description, whose tensors are in a file of their own."""

    vocabulary: str
    referee: str
    images: Size
    top: Size


@dataclass(frozen=True, kw_only=True)
class StabilityEntry:
    """Two halves compared, whose tensors are in a file of their own."""

    vocabulary: str
    images: Size


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `lens.json` holds; other keys say nothing to this version.

    Raises
    ------
    ValueError
        Layers that are not the model's, or a name or text twice.
    """

    format: int
    model: ModelEntry
    convention: str
    top: Size
    layers: Annotated[tuple[int, ...], msgspec.Meta(min_length=1, max_length=2**16)]
    codes: tuple[CodesEntry, ...]
    scores: tuple[ScoresEntry, ...] = ()
    stability: tuple[StabilityEntry, ...] = ()
    coordinates: bool = False

    def __post_init__(self) -> None:
        if not 0 <= min(self.layers) <= max(self.layers) < self.model.layers:
            raise ValueError("it has layers that its model has not")
        _check_unlike(self.layers, "its layers")
        _check_unlike([each.name for each in self.codes], "its descriptions")


@dataclass(frozen=True, kw_only=True)
class Images:
    """What `images.json` holds."""

    ids: Texts
    skipped: dict[str, str]

    def __post_init__(self) -> None:
        _check_unlike(self.ids, "the ids of images")


def _check_unlike(values: Sequence[object], what: str) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"{what} have the same twice")


_DAMAGED = (
    *(KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError),
    *(OSError, SafetensorError),
)
"""What reading a folder that no fit wrote may raise."""


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
    """By `Scores.name`: vocabulary and referee."""
    stability: dict[str, Stability] = field(default_factory=dict)
    """By the name of the vocabulary."""
    coordinates: Coordinates | None = None

    @property
    def layers(self) -> list[int]:
        """The fitted layers, in order."""
        return sorted(self.by_layer)


def write(lens: Contents, folder: Path) -> None:
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


def manifest(lens: Contents) -> dict[str, Any]:
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


def read(folder: Path) -> Contents:
    """The checked contents of the lens in a folder.

    Raises
    ------
    SecondLensError
        No lens there, one of another format version, or a damaged one.
    """
    if not (folder / "lens.json").is_file():
        raise SecondLensError(f"{folder} holds no lens: there is no lens.json in it")
    try:
        check_files(folder)
        written = read_json(folder / "lens.json")
        if written["format"] != FORMAT:
            raise SecondLensError(
                f"the lens in {folder} has format {written['format']}, and this version reads "
                f"format {FORMAT}: fit it again"
            )
        found = _contents(folder, written)
        _check(found)
    except _DAMAGED as error:
        raise SecondLensError(f"the lens in {folder} is damaged: {_reason(error)}") from error
    return found


def _reason(error: Exception) -> str:
    """In words, where the error has only a name."""
    if isinstance(error, OSError) and error.filename:
        return f"{Path(error.filename).name}: {error.strerror}"
    return f"it lacks {error}" if isinstance(error, KeyError) else f"{error or repr(error)}"


def _checked(content: dict[str, Any], kind: type[Kind], file: str) -> Kind:
    """What a file holds, as its dataclass says it must.

    Raises
    ------
    ValueError
        A key is missing, or holds something else.
    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{file}: {error}") from error


def _contents(folder: Path, written: dict[str, Any]) -> Contents:
    found = _checked(written, Manifest, "lens.json")
    images = _checked(read_json(folder / "images.json"), Images, "images.json")
    layers = found.layers
    coordinates = None
    if found.coordinates:
        kept = {n: load_tensors(folder / f"coordinates-{n:02}.safetensors") for n in layers}
        coordinates = Coordinates(
            z={n: tensors["z"] for n, tensors in kept.items()},
            basis={n: tensors["basis"] for n, tensors in kept.items()},
        )
    scores, stability = (
        [
            join(vars(entry), load_tensors(folder / f"{kind}-{number:02}.safetensors"))
            for number, entry in enumerate(getattr(found, kind))
        ]
        for kind in ("scores", "stability")
    )
    for each, name in zip(scores, _referees(scores), strict=True):
        each["referee"] = name
    return Contents(
        model=written["model"] | {"name": shown(found.model.name)},
        convention=found.convention,
        top=found.top,
        image_ids=images.ids,
        skipped=images.skipped,
        by_layer={
            n: LayerLens(**load_tensors(folder / f"layer-{n:02}.safetensors")) for n in layers
        },
        codes={
            entry.name: codes_from_tensors(
                vars(entry), load_tensors(folder / f"codes-{number:02}.safetensors")
            )
            for number, entry in enumerate(found.codes)
        },
        scores={each.name: each for each in (Scores(**each) for each in scores)},
        stability={each.name: each for each in (Stability(**each) for each in stability)},
        coordinates=coordinates,
    )


def _referees(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who judged, without the folders that older lenses name; none twice that was not before."""
    names = dict.fromkeys(str(each["referee"]) for each in scores)
    today = dict(zip(names, unlike(map(shown, names)), strict=True))
    return [today[str(each["referee"])] for each in scores]


def _check(found: Contents) -> None:
    """Raise `ValueError` for tensors that do not fit together or to the model."""
    model, images = found.model, len(found.image_ids)
    neurons, dim = model["neurons"], model["dim"]
    rows, columns = model["grid"]
    for layer in found.by_layer.values():
        check_tensors(layer, neurons=neurons, dim=dim, tokens=1 + rows * columns)
        check_positions(layer.top_images, images, "top images")
    for codes in found.codes.values():
        check_tensors(codes, neurons=neurons, dim=dim)
        for indices in codes.indices.values():
            check_positions(indices, len(codes.labels), "texts of a description", least=-1)
    for evidence in (*found.scores.values(), *found.stability.values()):
        check_tensors(evidence, neurons=neurons)
    if found.coordinates is not None:
        check_tensors(found.coordinates, images=images, neurons=neurons, dim=dim)
