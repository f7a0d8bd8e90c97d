"""Look at the pictures of a lens once, and keep what the pages show of every neuron.

Two passes: the first measures every effect on the surveyed images, the second reads where neurons
fire on the images chosen.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from ..data.reader import FEW_IMAGES, Reader
from ..data.sources import ImageSource, with_ids
from ..devices import undisturbed
from ..effects.streaming import Encoded, stream
from ..effects.value_paths import OFFICIAL_SCALE
from ..errors import SecondLensError
from ..lens.lens import Lens
from ..lens.pictures import pictures_at
from ..models.view import Clip
from ..report.page import model_view
from ..words.describing import texts_of
from . import records
from .language import class_changes, triangles
from .projections import Projections
from .records import GROUPS, LIGHT, LayerSurvey, Survey, fingerprint


def choose(
    lens: Lens,
    layer: int,
    effects: Float[Tensor, "surveyed neurons"],
    peaks: Float[Tensor, "surveyed neurons"],
    sample: Int[Tensor, " surveyed"],
    named: bool,
) -> Int[Tensor, "neurons slots"]:
    """The images that each neuron of a layer shows, those that hold its names if `named`."""
    surveyed, neurons = effects.shape
    chosen = torch.full((neurons, records.SLOTS), -1, dtype=torch.int64)

    def put(group: slice, images: Tensor) -> None:
        chosen[:, group.start : group.start + images.shape[1]] = images

    put(GROUPS["strongest"], lens[layer].top_images[:, : records.STRONGEST])
    firing = peaks.T.topk(min(records.FIRING, surveyed), dim=1)
    put(GROUPS["firing"], sample[firing.indices])
    generator = torch.Generator().manual_seed(layer)
    noise = torch.rand(neurons, surveyed, generator=generator)
    band = _band(effects.T)
    for which in range(records.BANDS):
        order = noise.masked_fill(band != which, -1).topk(min(records.IN_BAND, surveyed), dim=1)
        start = GROUPS["bands"].start + which * records.IN_BAND
        inside = sample[order.indices].masked_fill(order.values < 0, -1)
        put(slice(start, start + records.IN_BAND), inside)
    order = (1 - noise).topk(min(records.RANDOM, surveyed), dim=1)
    put(GROUPS["random"], sample[order.indices])
    names = lens.first_names
    if named and names is not None and layer in names.pictures:
        pictures = names.pictures[layer][:, : records.NAMES, : records.PER_NAME]
        place = chosen[:, GROUPS["named"]].view(neurons, records.NAMES, records.PER_NAME)
        holding = torch.where(pictures < 0, -1, pictures + len(lens.image_ids))
        place[:, : pictures.shape[1], : pictures.shape[2]] = holding
    return chosen


def _band(effects: Float[Tensor, "neurons surveyed"]) -> Int[Tensor, "neurons surveyed"]:
    """The fifth of the neuron's range that each effect lies in, from below."""
    low, high = effects.aminmax(dim=1, keepdim=True)
    place = (effects - low) / (high - low).clamp(min=1e-30) * records.BANDS
    return place.long().clamp(0, records.BANDS - 1)


def bands(effects: Float[Tensor, "surveyed neurons"]) -> dict[str, np.ndarray]:
    """Fields of `LayerSurvey`: range and histogram of the effects, and shares of the bands."""
    low, high = effects.aminmax(dim=0)
    place = ((effects - low) / (high - low).clamp(min=1e-30) * records.BINS).long()
    place = place.clamp(0, records.BINS - 1).T
    counts = torch.zeros(len(place), records.BINS, dtype=torch.int64)
    counts.scatter_add_(1, place, torch.ones_like(place))
    in_band = counts.unflatten(1, (records.BANDS, -1)).sum(-1)
    return {
        "extent": torch.stack([low, high], dim=1).float().numpy(),
        "shares": (in_band / effects.shape[0]).float().numpy(),
        "counts": counts.int().numpy(),
    }


class ImageRecords:
    """What the last pass fills in for the neurons of a layer."""

    def __init__(
        self, clip: Clip, images: Int[Tensor, "neurons slots"], projections: Projections
    ) -> None:
        self.images, self.projections = images, projections
        self.order = images.flatten().argsort(stable=True)
        self.sorted = images.flatten()[self.order]
        neurons, slots = images.shape
        self.effect = torch.zeros(neurons * slots)
        self.peak = torch.zeros(neurons * slots)
        self.path = torch.zeros(neurons * slots, dtype=torch.int16)
        self.heat = torch.zeros(neurons * slots, clip.tokens - clip.prefix, dtype=torch.uint8)
        self.paths = torch.zeros(neurons, projections.own)

    def see(
        self,
        position: int,
        activation: Float[Tensor, "patches neurons"],
        parts: Float[Tensor, "extended neurons"],
        scale: Float[Tensor, " neurons"],
    ) -> None:
        """One image, for all neurons that show it."""
        place = torch.tensor([position, position + 1])
        start, end = torch.searchsorted(self.sorted, place).tolist()
        slots = self.order[start:end]
        if not len(slots):
            return
        neurons = slots // self.images.shape[1]
        centred = (parts - self.projections.mean_parts.cpu())[:, neurons]
        effect = parts[:, neurons].sum(0) - self.projections.mean[neurons].cpu()
        sign = torch.where(effect < 0, -1.0, 1.0).to(effect)
        own = centred[: self.projections.own] * sign
        self.effect[slots] = effect.float()
        self.path[slots] = own.argmax(0).short()
        self.peak[slots] = activation[:, neurons].amax(0)
        light = activation[:, neurons] / scale[neurons].clamp(min=1e-30)
        self.heat[slots] = (light.clamp(0, 1) * LIGHT).round().byte().T
        strongest = slots % self.images.shape[1] < records.STRONGEST
        self.paths.index_add_(0, neurons[strongest], own[:, strongest].T.float())

    def arrays(self) -> dict[str, np.ndarray]:
        """Fields of `LayerSurvey`."""
        shape = self.images.shape
        total = self.paths.sum(1, keepdim=True)
        return {
            "images": self.images.int().numpy(),
            "effect": self.effect.view(shape).numpy(),
            "peak": self.peak.view(shape).numpy(),
            "path": self.path.view(shape).numpy(),
            "heat": self.heat.view(*shape, -1).numpy(),
            "paths": (self.paths / total.masked_fill(total.abs() < 1e-30, 1)).numpy(),
        }


SURVEYED = 5000
"""Images, at most, that bands and histograms come from: the paper's number."""
THUMBNAIL = 160
"""Pixels on the longer side of a picture, at most."""


@undisturbed
def survey(
    clip: Clip,
    lens: Lens,
    source: ImageSource,
    named_on: ImageSource | None = None,
    *,
    progress: bool = False,
) -> Survey:
    """Survey a described lens.

    Parameters
    ----------
    clip
        The model the lens was fitted on.
    lens
        With at least one description.
    source
        The pictures of the fit.
    named_on
        Those that the neurons were named on; without them, no pictures stand under names.
    progress
        Show progress bars.

    Raises
    ------
    SecondLensError
        Another model's lens, no description, or a picture that the source lacks or cannot read.
    """
    lens.check_model(clip)
    if not lens.codes:
        raise SecondLensError("this lens has no description yet: run secondlens describe first")
    name, codes = next(iter(lens.codes.items()))
    texts = texts_of(name, codes.labels)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randperm(len(lens.image_ids), generator=generator)[:SURVEYED].sort().values
    readers = {layer: Projections(clip, lens, layer) for layer in lens.layers}
    looked = _first_look(clip, lens, source, sample, readers, progress)
    chosen = {
        layer: choose(
            *(lens, layer, looked.effects[layer], looked.peaks[layer], sample),
            named_on is not None,
        )
        for layer in lens.layers
    }
    seen, pictures = _second_look(clip, lens, source, named_on, chosen, looked, readers, progress)
    rows, layers = texts.embed(clip), {}
    unit = OFFICIAL_SCALE if lens.convention == "official" else 1.0
    for layer in lens.layers:
        strongest = {of: seen[layer][of][:, GROUPS["strongest"]] for of in ("images", "effect")}
        there = np.where(strongest["images"] >= 0, 1.0, np.nan)
        mean_effect = np.nanmean(there * strongest["effect"], axis=1) / unit
        classes, change = class_changes(lens[layer].directions, rows, mean_effect)
        layers[layer] = LayerSurvey(
            **seen[layer],
            **bands(looked.effects[layer]),
            scale=looked.scale[layer].numpy(),
            classes=classes,
            change=change,
        )
    offsets = np.cumsum([0, *(len(pictures.get(i, b"")) for i in range(len(lens.picture_ids)))])
    return Survey(
        lens=fingerprint(lens),
        surveyed=len(sample),
        named=named_on is not None,
        layers=layers,
        codes={each: triangles(clip, lens, each, progress=progress) for each in lens.codes},
        responding=looked.responding,
        response=looked.response,
        texts=F.normalize(rows - rows.mean(0), dim=1).half().cpu().numpy(),
        pictures=np.frombuffer(bytearray().join(pictures[p] for p in sorted(pictures)), np.uint8),
        offsets=offsets.astype(np.int64),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Looked:
    """What the first pass measured."""

    effects: Mapping[int, Float[Tensor, "surveyed neurons"]]
    peaks: Mapping[int, Float[Tensor, "surveyed neurons"]]
    scale: Mapping[int, Float[Tensor, " neurons"]]
    responding: Int[np.ndarray, "images responding"]
    response: Float[np.ndarray, "images responding"]


@torch.no_grad()
def _first_look(
    clip: Clip,
    lens: Lens,
    source: ImageSource,
    sample: Int[Tensor, " surveyed"],
    readers: Mapping[int, Projections],
    progress: bool,
) -> _Looked:
    """Effects and peaks on all surveyed images; leaves the mean of the parts in `readers`."""
    ids = [lens.image_ids[position] for position in sample.tolist()]
    reader = Reader(source=with_ids(source, ids), clip=clip, batch_size=FEW_IMAGES)
    effects: dict[int, list[Tensor]] = {layer: [] for layer in readers}
    peaks: dict[int, list[Tensor]] = {layer: [] for layer in readers}
    most = min(records.RESPONDING, clip.neurons * len(readers))
    responding = np.full((len(lens.image_ids), most), -1, dtype=np.int32)
    response = np.zeros((len(lens.image_ids), most), dtype=np.float32)
    energy = torch.cat([lens[layer].energy for layer in lens.layers]).sqrt().clamp(min=1e-12)
    for batch in _streamed(clip, reader, readers, "effects", progress):
        for layer, projections in readers.items():
            parts = projections.parts(batch.pooled)
            projections.mean_parts += parts.sum(0) / len(ids)
            effects[layer].append((parts.sum(1) - projections.mean).cpu())
            peaks[layer].append(
                batch.pooled.activations[layer][:, clip.prefix :].amax(1).float().cpu()
            )
        standard = torch.cat([effects[layer][-1] for layer in lens.layers], dim=1) / energy
        top = standard.abs().topk(most, dim=1).indices
        rows = sample[batch.positions].numpy()
        responding[rows] = top.int().numpy()
        response[rows] = standard.gather(1, top).float().numpy()
    reader.check_read()
    return _Looked(
        effects={layer: torch.cat(parts) for layer, parts in effects.items()},
        peaks={layer: torch.cat(parts) for layer, parts in peaks.items()},
        scale={layer: torch.cat(parts).amax(0) for layer, parts in peaks.items()},
        responding=responding,
        response=response,
    )


@torch.no_grad()
def _second_look(
    clip: Clip,
    lens: Lens,
    source: ImageSource,
    named_on: ImageSource | None,
    chosen: Mapping[int, Int[Tensor, "neurons slots"]],
    looked: _Looked,
    readers: Mapping[int, Projections],
    progress: bool,
) -> tuple[dict[int, dict[str, np.ndarray]], dict[int, bytes]]:
    """Where neurons fire on the images they show, by which paths that acts, and the pictures."""
    wanted = torch.cat([each.flatten() for each in chosen.values()]).unique()
    view, pictures = model_view(clip), {}
    seen = {layer: ImageRecords(clip, images, readers[layer]) for layer, images in chosen.items()}
    for some, places in pictures_at(lens, source, named_on, wanted[wanted >= 0].tolist()):
        reader = Reader(source=some, clip=clip, batch_size=FEW_IMAGES)
        for batch in _streamed(clip, reader, readers, "heat maps", progress):
            pooled = batch.pooled
            parts = {layer: projections.parts(pooled) for layer, projections in readers.items()}
            for row, index in enumerate(batch.positions):
                position = places[index]
                pictures[position] = _webp(view(batch.pixels[row]))
                for layer, slots in seen.items():
                    activation = pooled.activations[layer][row, clip.prefix :].float().cpu()
                    if clip.reads_texts:  # whose tokens have no place in the picture of the text
                        activation = torch.zeros_like(activation)
                    slots.see(position, activation, parts[layer][row].cpu(), looked.scale[layer])
        reader.check_read()
    return {layer: slots.arrays() for layer, slots in seen.items()}, pictures


def _streamed(
    clip: Clip, reader: Reader, layers: Iterable[int], what: str, progress: bool
) -> Iterator[Encoded]:
    return stream(
        *(clip, reader, layers),
        keep_activations=True,
        class_token_only=True,
        what=what,
        progress=progress,
    )


def _webp(image: Image.Image) -> bytes:
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "webp", quality=80)
    return buffer.getvalue()
