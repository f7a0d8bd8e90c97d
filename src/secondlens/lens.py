"""The fitted object: what a set of images shows about every neuron of some layers.

A `Lens` saves to a folder: `lens.json`, `images.json`, and one safetensors file for each layer, for
each vocabulary it was described with, and for the coordinates of each layer if they were kept.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from . import remote
from .accumulate import LayerLens, both_passes, layer_lens
from .checks import check_files, check_positions, check_tensors, check_text
from .errors import SecondLensError
from .evidence import Scores, Stability, join, split
from .storage import load_tensors, save_json, save_tensors
from .view import Clip

FORMAT = 2


WORDS_THAT_COUNT = 8
"""Texts of a description that a person reads, and that it is judged by."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Codes:
    """Sparse signed texts for the direction of each neuron, by layer, in the order of the pursuit.

    A row that ended early has index -1 and coefficient 0 at its end.
    """

    labels: tuple[str, ...]
    normalise: str
    indices: dict[int, Int[Tensor, "neurons k"]]
    coefficients: dict[int, Float[Tensor, "neurons k"]]
    brief: dict[int, Float[Tensor, "neurons words"]]
    """Coefficients of the code of the first texts alone, at most `WORDS_THAT_COUNT`. A long code
    rebuilds a direction better but says less of it: many of its texts make up for others."""
    cosine: dict[int, Float[Tensor, " neurons"]]
    """Between a direction and its code."""
    curve: dict[int, Float[Tensor, " k"]] = field(default_factory=dict)
    """Median over neurons of the cosine of the codes of 1, 2, ... k texts."""
    control: Float[Tensor, " k"] | None = None
    """The same for random unit directions, which stand for nothing."""
    mean_text: Float[Tensor, " dim"] | None = None
    """Mean embedding of the texts: what every text shares, which `search` subtracts."""

    def words(self, layer: int, neuron: int, count: int | None = None) -> list[tuple[str, float]]:
        """(text, coefficient) of a neuron's brief code, strongest first."""
        return self._texts(layer, neuron, self.brief)[:count]

    def code(self, layer: int, neuron: int) -> list[tuple[str, float]]:
        """(text, coefficient) of a neuron's whole code, strongest first."""
        return self._texts(layer, neuron, self.coefficients)

    def _texts(
        self, layer: int, neuron: int, weights: dict[int, Tensor]
    ) -> list[tuple[str, float]]:
        own = weights[layer][neuron].tolist()
        texts = self.indices[layer][neuron, : len(own)].tolist()
        found = [(self.labels[i], weight) for i, weight in zip(texts, own, strict=True) if i >= 0]
        return sorted(found, key=lambda pair: -abs(pair[1]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Coordinates:
    """Isometric coordinates of every image, kept so that lenses can be merged."""

    z: dict[int, Float[Tensor, "images neurons rank"]]
    basis: dict[int, Float[Tensor, "neurons dim rank"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Lens:
    """A fitted lens; `lens[layer]` is its `LayerLens`."""

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

    def __getitem__(self, layer: int) -> LayerLens:
        if layer not in self.by_layer:
            fitted = ", ".join(map(str, self.layers))
            raise SecondLensError(f"layer {layer} is not in this lens: it has {fitted}")
        return self.by_layer[layer]

    def check_model(self, clip: Clip) -> None:
        """Raise `SecondLensError` if this lens was fitted on another model."""
        if clip.weights_hash != self.model["weights"]:
            raise SecondLensError(
                f"this lens was fitted on {self.model['name']} with other weights than "
                f"{clip.name} has: load that model, or fit again"
            )

    def merge(self, other: "Lens") -> "Lens":
        """The lens of both sets of images, as one fit over all of them would give it.

        Descriptions are dropped: directions change.

        Raises
        ------
        SecondLensError
            Either lens has no coordinates (fit with `keep_coordinates=True`), or they differ in
            model, layers or convention, or share an image.
        """
        if self.coordinates is None or other.coordinates is None:
            raise SecondLensError(
                "merging needs the coordinates of both lenses: fit with keep_coordinates=True"
            )
        for what in ("model", "convention", "layers"):
            if getattr(self, what) != getattr(other, what):
                raise SecondLensError(f"lenses that differ in their {what} cannot be merged")
        if twice := set(self.image_ids) & set(other.image_ids):
            raise SecondLensError(f"both lenses have seen image {min(twice)}: merge disjoint ones")
        z = {
            layer: torch.cat([self.coordinates.z[layer], other.coordinates.z[layer]])
            for layer in self.layers
        }
        count = len(self.image_ids) + len(other.image_ids)
        mine = len(self.image_ids) / count
        top = min(count, self.top + other.top)
        by_layer = {
            layer: layer_lens(
                *both_passes(z[layer], top),
                self.coordinates.basis[layer],
                self[layer].activation_mean.lerp(other[layer].activation_mean, 1 - mine),
            )
            for layer in self.layers
        }
        return replace(
            self,
            top=top,
            image_ids=(*self.image_ids, *other.image_ids),
            skipped={**self.skipped, **other.skipped},
            by_layer=by_layer,
            codes={},
            scores={},
            stability={},
            coordinates=Coordinates(z=z, basis=self.coordinates.basis),
        )

    def save(self, path: str | Path) -> None:
        """Write the lens into a folder, here or in a store such as "s3://bucket/lens".

        Files are complete or absent, and `lens.json` comes last.
        """
        if remote.is_remote(path):
            with tempfile.TemporaryDirectory(prefix="secondlens-") as copy:
                self.save(copy)
                remote.upload(Path(copy), str(path), last="lens.json")
            return
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        for layer, fitted in self.by_layer.items():
            tensors = {f.name: getattr(fitted, f.name) for f in fields(fitted)}
            save_tensors(folder / f"layer-{layer:02}.safetensors", tensors)
        for number, codes in enumerate(self.codes.values()):
            save_tensors(folder / f"codes-{number:02}.safetensors", _codes_to_tensors(codes))
        for kind in ("scores", "stability"):
            for number, found in enumerate(getattr(self, kind).values()):
                save_tensors(folder / f"{kind}-{number:02}.safetensors", split(found)[1])
        if self.coordinates is not None:
            for layer in self.layers:
                tensors = {"z": self.coordinates.z[layer], "basis": self.coordinates.basis[layer]}
                save_tensors(folder / f"coordinates-{layer:02}.safetensors", tensors)
        images = {"ids": list(self.image_ids), "skipped": dict(self.skipped)}
        save_json(folder / "images.json", images)
        save_json(folder / "lens.json", self.manifest())

    def manifest(self) -> dict[str, Any]:
        """What `lens.json` holds."""
        codes = [
            {"name": name, "normalise": c.normalise, "labels": list(c.labels)}
            for name, c in self.codes.items()
        ]
        return {
            "format": FORMAT,
            "model": self.model,
            "convention": self.convention,
            "top": self.top,
            "layers": self.layers,
            "codes": codes,
            "scores": [split(scores)[0] for scores in self.scores.values()],
            "stability": [split(stability)[0] for stability in self.stability.values()],
            "coordinates": self.coordinates is not None,
            "versions": {
                name: version(name) for name in ("secondlens", "torch", "open_clip_torch")
            },
        }

    @classmethod
    def load(cls, path: str | Path) -> "Lens":
        """The lens saved in a folder, here or in a store.

        Raises
        ------
        SecondLensError
            No lens there, one of another format version, or a damaged one.
        """
        if remote.is_remote(path):
            if "lens.json" not in remote.names(str(path)):
                raise SecondLensError(f"{path} holds no lens: there is no lens.json in it")
            with remote.fetched(str(path)) as copy:
                return cls.load(copy)
        folder = Path(path)
        if not (folder / "lens.json").is_file():
            raise SecondLensError(f"{folder} holds no lens: there is no lens.json in it")
        try:
            check_files(folder)
            manifest = json.loads((folder / "lens.json").read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT:
                raise SecondLensError(
                    f"the lens in {folder} has format {manifest['format']}, and this version reads "
                    f"format {FORMAT}: fit it again"
                )
            lens = cls._from_folder(folder, manifest)
            _check(lens)
        except _DAMAGED as error:
            raise SecondLensError(f"the lens in {folder} is damaged: {error!r}") from error
        return lens

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Send the lens to the Hugging Face hub, with its card, in one commit.

        What the repository held of an older lens is removed. The hub's own login is used: `hf auth
        login`, or the variable HF_TOKEN.

        Parameters
        ----------
        repo_id
            Such as "user/name"; made if it does not exist.
        private
            Whether a new repository is for its owner only.

        Returns
        -------
        The address of the commit.

        Raises
        ------
        SecondLensError
            The hub cannot be reached or refuses, or no repository can have that name.
        """
        from .card import lens_card
        from .hub import push

        with tempfile.TemporaryDirectory(prefix="secondlens-") as folder:
            self.save(folder)
            (Path(folder) / "README.md").write_text(lens_card(self, repo_id), encoding="utf-8")
            return push(Path(folder), repo_id, private=private)

    @classmethod
    def from_hub(cls, repo_id: str, *, revision: str | None = None) -> "Lens":
        """The lens in a repository of the Hugging Face hub, checked like any folder.

        Parameters
        ----------
        repo_id
            Such as "user/name".
        revision
            A branch, tag or commit; by default the newest.

        Raises
        ------
        SecondLensError
            The hub cannot be reached or refuses, there is no such repository or revision, or no
            lens that `load` would take.
        """
        from .hub import pull

        with tempfile.TemporaryDirectory(prefix="secondlens-") as temporary:
            folder = Path(temporary) / repo_id.replace("/", "--")
            pull(repo_id, folder, revision=revision)
            return cls.load(folder)

    @classmethod
    def _from_folder(cls, folder: Path, manifest: dict[str, Any]) -> "Lens":
        layers = [int(layer) for layer in manifest["layers"]]
        images = json.loads((folder / "images.json").read_text(encoding="utf-8"))
        check_text(images["ids"], "the ids of images")
        for entry in manifest["codes"]:
            check_text(entry["labels"], "the texts of a description")
        coordinates = None
        if manifest["coordinates"]:
            kept = {n: load_tensors(folder / f"coordinates-{n:02}.safetensors") for n in layers}
            coordinates = Coordinates(
                z={n: tensors["z"] for n, tensors in kept.items()},
                basis={n: tensors["basis"] for n, tensors in kept.items()},
            )
        scores, stability = (
            [
                join(entry, load_tensors(folder / f"{kind}-{number:02}.safetensors"))
                for number, entry in enumerate(manifest.get(kind, []))
            ]
            for kind in ("scores", "stability")
        )
        return cls(
            model=manifest["model"],
            convention=manifest["convention"],
            top=manifest["top"],
            image_ids=tuple(images["ids"]),
            skipped=images["skipped"],
            by_layer={
                n: LayerLens(**load_tensors(folder / f"layer-{n:02}.safetensors")) for n in layers
            },
            codes={
                entry["name"]: _codes_from_tensors(
                    entry, load_tensors(folder / f"codes-{number:02}.safetensors")
                )
                for number, entry in enumerate(manifest["codes"])
            },
            scores={each.name: each for each in (Scores(**each) for each in scores)},
            stability={each.name: each for each in (Stability(**each) for each in stability)},
            coordinates=coordinates,
        )


_DAMAGED = (
    *(KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError),
    *(OSError, SafetensorError),
)
"""What reading a folder that no fit wrote may raise."""


def _check(lens: Lens) -> None:
    """Raise `ValueError` or `TypeError` for parts that do not fit together."""
    if not lens.by_layer:
        raise ValueError("it has no layer")
    if not isinstance(lens.model.get("name"), str) or not isinstance(lens.top, int):
        raise TypeError("the manifest names no model or no number of top images")
    neurons, dim = lens[lens.layers[0]].mean.shape
    for layer in lens.by_layer.values():
        check_tensors(layer, neurons=neurons, dim=dim)
        check_positions(layer.top_images, len(lens.image_ids), "top images")
    for codes in lens.codes.values():
        check_tensors(codes, neurons=neurons, dim=dim)
        for indices in codes.indices.values():
            check_positions(indices, len(codes.labels), "texts of a description", least=-1)
    for evidence in (*lens.scores.values(), *lens.stability.values()):
        check_tensors(evidence, neurons=neurons)
    if lens.coordinates is not None:
        check_tensors(lens.coordinates, images=len(lens.image_ids), neurons=neurons, dim=dim)


_OF_LAYERS = ("indices", "coefficients", "brief", "cosine", "curve")
_OF_CODES = ("control", "mean_text")


def _codes_to_tensors(codes: Codes) -> dict[str, Tensor]:
    tensors = {
        f"{name}-{layer:02}": tensor
        for name in _OF_LAYERS
        for layer, tensor in getattr(codes, name).items()
    }
    whole = {name: getattr(codes, name) for name in _OF_CODES}
    return tensors | {name: tensor for name, tensor in whole.items() if tensor is not None}


def _codes_from_tensors(entry: dict[str, Any], tensors: dict[str, Tensor]) -> Codes:
    kept: dict[str, Any] = {name: tensors.pop(name) for name in _OF_CODES if name in tensors}
    kept |= {name: {} for name in _OF_LAYERS}
    for key, tensor in tensors.items():
        name, layer = key.rsplit("-", 1)
        kept[name][int(layer)] = tensor
    return Codes(labels=tuple(entry["labels"]), normalise=entry["normalise"], **kept)
