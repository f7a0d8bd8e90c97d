"""What the explorer keeps beside a lens, in its folder `explorer`: facts that need the model.

A survey is derived from the lens and its pictures, and is made again whenever either changed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from ..lens.lens import Lens
from ..storage.checkpoints import load_tensors, save_tensors
from ..storage.files import read_json, save_json
from ..storage.validation import (
    DAMAGED,
    Position,
    Texts,
    check_positions,
    check_tensors,
    convert,
)

FORMAT = 2

STRONGEST, FIRING, BANDS, IN_BAND, RANDOM, NAMES, PER_NAME = 12, 8, 5, 3, 6, 4, 4
"""Images that a neuron shows: those with the strongest effects and those on which it fires most;
some from each of five equal bands of its effects; random ones; and some that hold each of its
names."""

_COUNTS = {
    "strongest": STRONGEST,
    "firing": FIRING,
    "bands": BANDS * IN_BAND,
    "random": RANDOM,
    "named": NAMES * PER_NAME,
}
GROUPS: Mapping[str, slice] = {
    name: slice(end - count, end)
    for (name, count), end in zip(_COUNTS.items(), accumulate(_COUNTS.values()), strict=True)
}
"""Where they are among the slots of a neuron."""
SLOTS = sum(_COUNTS.values())
BINS = 40
LIGHT = 15
"""Steps of a heat map, from dark to full light."""
NEIGHBOURS, CLASSES, RESPONDING = 8, 8, 12
SIZES = 16
"""Texts, at most, of the codes that pages show."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerSurvey:
    """What was seen of the neurons of one layer. Effects are projections on the neuron's
    direction, less that of the mean effect."""

    images: Int[np.ndarray, "neurons slots"]
    """Positions in `Lens.picture_ids` by `GROUPS`; -1 where a slot is empty."""
    effect: Float[np.ndarray, "neurons slots"]
    peak: Float[np.ndarray, "neurons slots"]
    """The largest activation at a patch."""
    path: Int[np.ndarray, "neurons slots"]
    """The value path that carries most of the effect."""
    heat: UInt8[np.ndarray, "neurons slots patches"]
    """Activation at each patch, 0 to `LIGHT`; full light is the neuron's `scale`."""
    scale: Float[np.ndarray, " neurons"]
    extent: Float[np.ndarray, "neurons 2"]
    """The lowest and the highest effect seen: the ends of the bands and of the histogram."""
    shares: Float[np.ndarray, "neurons bands"]
    """Of the images, by band."""
    counts: Int[np.ndarray, "neurons bins"]
    """Images by effect."""
    paths: Float[np.ndarray, "neurons paths"]
    """Share of each value path in the effects of the strongest images; they add up to 1."""
    classes: Int[np.ndarray, "neurons classes"]
    """Texts whose score changes most when the neuron is ablated."""
    change: Float[np.ndarray, "neurons classes"]
    """Of their cosine with the embeddings of the strongest images, in the mean."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Survey:
    """Everything the pages need that only the model and the pictures can tell."""

    lens: str
    """Fingerprint of the lens it was made from."""
    surveyed: int
    """Images that bands, histograms and random images come from."""
    named: bool
    """Whether the pictures that the neurons were named on were there."""
    layers: Mapping[int, LayerSurvey]
    codes: Mapping[str, Mapping[int, Float[np.ndarray, "neurons numbers"]]]
    """`language.triangles`, by vocabulary."""
    responding: Int[np.ndarray, "images responding"]
    """Neurons with the largest effects on an image, numbered through the layers; -1 for none."""
    response: Float[np.ndarray, "images responding"]
    """Their effects, in root mean squares of the neuron's."""
    texts: Float[np.ndarray, "texts dim"]
    """Unit directions of the texts of the first description, the mean text subtracted."""
    pictures: UInt8[np.ndarray, " bytes"]
    """WebP files, one after the other."""
    offsets: Int[np.ndarray, " images_and_end"]
    """Where each image's file begins; it is empty where nothing shows the image."""

    def picture(self, position: int) -> bytes:
        """The WebP file of an image, or nothing."""
        return self.pictures[self.offsets[position] : self.offsets[position + 1]].tobytes()

    def save(self, folder: Path) -> None:
        """Write it; `survey.json`, which says that it is whole, comes last, and goes first."""
        (folder / "survey.json").unlink(missing_ok=True)
        for layer, seen in self.layers.items():
            arrays = {f.name: getattr(seen, f.name) for f in fields(seen)}
            of_words = {
                f"codes-{number}": by_layer[layer]
                for number, by_layer in enumerate(self.codes.values())
            }
            save_tensors(folder / f"layer-{layer:02}.safetensors", _tensors(arrays | of_words))
        images = {"pictures": self.pictures, "offsets": self.offsets}
        images |= {"responding": self.responding, "response": self.response, "texts": self.texts}
        save_tensors(folder / "images.safetensors", _tensors(images))
        manifest = {"format": FORMAT, "lens": self.lens, "surveyed": self.surveyed}
        manifest |= {"named": self.named}
        manifest |= {"layers": list(self.layers), "vocabularies": list(self.codes)}
        save_json(folder / "survey.json", manifest)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `survey.json` holds."""

    format: int
    lens: str
    surveyed: Position
    named: bool
    layers: tuple[Position, ...]
    vocabularies: Texts


def load_survey(folder: Path, lens: Lens) -> Survey | None:
    """The survey in a folder; None if there is none, a damaged one, or one of another lens."""
    try:
        manifest = convert(read_json(folder / "survey.json"), Manifest, "survey.json")
        if (manifest.format, manifest.lens) != (FORMAT, fingerprint(lens)):
            return None
        layers, names = {}, manifest.vocabularies
        if list(manifest.layers) != lens.layers or list(names) != list(lens.codes):
            return None
        codes: dict[str, dict[int, np.ndarray]] = {name: {} for name in names}
        for layer in manifest.layers:
            arrays = _arrays(folder / f"layer-{layer:02}.safetensors")
            for number, name in enumerate(names):
                codes[name][layer] = arrays.pop(f"codes-{number}")
            layers[layer] = LayerSurvey(**arrays)
        images = _arrays(folder / "images.safetensors")
        found = Survey(
            lens=manifest.lens,
            surveyed=manifest.surveyed,
            named=manifest.named,
            layers=layers,
            codes=codes,
            **images,
        )
        _check(found, lens)
    except DAMAGED:
        return None
    return found


def _check(found: Survey, lens: Lens) -> None:
    """Raise `ValueError` for arrays that are not those of a survey of this lens."""
    neurons, images, pictures = lens.model["neurons"], len(lens.image_ids), len(lens.picture_ids)
    rows, columns = lens.model["grid"]
    labels = len(next(iter(lens.codes.values())).labels)
    sizes = {"neurons": neurons, "slots": SLOTS, "patches": rows * columns, "bands": BANDS}
    for layer, seen in found.layers.items():
        paths = lens.path_count(layer)
        most = {"classes": CLASSES}
        check_tensors(seen, most, (), bins=BINS, paths=paths, **sizes)
        for positions, below, least in (
            (seen.images, pictures, -1),
            (seen.path, paths, 0),
            (seen.heat, LIGHT + 1, 0),
            (seen.classes, labels, 0),
        ):
            check_positions(positions, below, "positions of a survey", least)
        for name, by_layer in found.codes.items():
            size = min(SIZES, lens.codes[name].indices[layer].shape[1])
            if by_layer[layer].shape != (neurons, size + size * (size + 1) // 2):
                raise ValueError("the codes of a survey are not those of the lens")
    check_tensors(found, finite=(), images=images, texts=labels, dim=lens.model["dim"])
    check_positions(found.responding, neurons * len(lens.layers), "responding neurons", -1)
    ends = found.offsets
    if len(ends) != pictures + 1 or ends[0] != 0 or ends[-1] != len(found.pictures):
        raise ValueError("the pictures of a survey are not those of the lens")
    check_positions(np.diff(ends), len(found.pictures) + 1, "lengths of pictures")


def is_outdated(folder: Path, lens: Lens) -> bool:
    """Whether a folder has a survey of the lens as it was before, with other words."""
    try:
        manifest = read_json(folder / "survey.json")
        return bool(manifest["lens"] != fingerprint(lens))
    except DAMAGED:
        return False


def fingerprint(lens: Lens) -> str:
    """Tells lenses apart by model, images, directions, words, and pictures of names."""
    words = {name: codes.labels for name, codes in lens.codes.items()}
    digest = hashlib.sha256(json.dumps([lens.model, lens.image_ids, words]).encode())
    weights = [each.coefficients for each in lens.codes.values()]
    names = lens.first_names
    named = [] if names is None else [names.pictures]
    if names is not None:
        digest.update(json.dumps(names.image_ids).encode())
    for layer in lens.layers:
        of_words = [each[layer] for each in (*weights, *named) if layer in each]
        for tensor in (lens[layer].directions, *of_words):
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}


def _arrays(path: Path) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in load_tensors(path).items()}
