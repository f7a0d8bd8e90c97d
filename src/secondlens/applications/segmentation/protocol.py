"""One protocol for all methods: tuned on some images, measured on others, compared in pairs.

Three ways to make a mask of a heat-map are measured side by side:

- `same`: every map is cut at 0 or not, resized bilinearly, scaled to [0, 1] and thresholded, at a
  fixed value or at a multiple of its mean. Which of these, the threshold, the variant and the form
  of the text are chosen for each method on development images, by mIoU.
- `refined`: the same variant and form of the text, after the map has followed the colours of the
  image (`refinement.pamr` at the model's size); cut and threshold are chosen anew.
- `own`: each method as its paper published it, with its own post-processing (`Own`).

Images are squeezed into the model's square and masks follow. The scripts that were published with
the papers crop the image, as the model's preprocessing does, and squeeze the whole mask, so that
the two show the same thing only where the image is a square; `batches` does so on request.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from ...data.decoding import whole
from ...data.masked import Example, MaskedImages, iterate
from ...data.reader import FEW_IMAGES
from ...data.vocabularies import Vocabulary
from ...errors import SecondLensError
from ...lens.lens import Lens
from ...models.view import Clip
from .baselines import baselines
from .heat_maps import standardise
from .metrics import scores, statistics
from .mixture import MixedMaps
from .refinement import followed
from .segmenter import PAPER, PAPER_SHARE, Recipe, Scale, Segmenter, Weigh, encode


@dataclass(frozen=True, kw_only=True, eq=False)
class MapBatch:
    """Maps to make: an image may be in it several times, with another text each time."""

    pixels: Float[Tensor, "maps 3 height width"]
    texts: Mapping[str, Float[Tensor, "maps dim"]]
    """By form: `plain`, and `centred`, with the mean of all classes subtracted."""
    masks: Int8[Tensor, "maps height width"]
    images: list[str]
    """The id of each image."""
    objects: list[int]
    """How many things each image has masks for."""


class Classes:
    """Text embeddings of all classes of a data set.

    Parameters
    ----------
    clip
        The model.
    texts
        Labels as the data set spells them, and their prompts.
    predicted
        Whether to segment the class that CLIP predicts for an image and not the one it has. Images
        of unnamed classes always take the predicted one.
    """

    def __init__(self, clip: Clip, texts: Vocabulary, predicted: bool = False) -> None:
        self.clip, self.predicted = clip, predicted
        self.position = {label: i for i, label in enumerate(texts.labels)}
        self.rows = texts.embed(clip)
        self.mean = self.rows.mean(0)

    def of(
        self, labels: Sequence[str | None], pixels: Float[Tensor, "maps 3 height width"]
    ) -> Float[Tensor, "maps dim"]:
        """The embedding for each map.

        Raises
        ------
        SecondLensError
            A label that is not among the classes.
        """
        if missing := [label for label in labels if label and label not in self.position]:
            raise SecondLensError(f"no text for the class {missing[0]!r}: add it to the classes")
        chosen = torch.tensor([self.position[label] if label else -1 for label in labels])
        chosen = chosen.to(self.rows.device)
        if self.predicted or (chosen < 0).any():
            unit = F.normalize(self.clip.encode_image(pixels).to(self.rows.dtype), dim=-1)
            best = (unit @ self.rows.T).argmax(1)
            chosen = best if self.predicted else torch.where(chosen < 0, best, chosen)
        return self.rows[chosen]


def batches(
    clip: Clip,
    images: MaskedImages,
    classes: Classes,
    size: int = FEW_IMAGES,
    *,
    cropped: bool = False,
) -> Iterator[MapBatch]:
    """Maps to make, `size` images at a time.

    Parameters
    ----------
    cropped
        Whether the model's preprocessing crops images, while masks stay whole, as the published
        code has it.
    """
    examples = iterate(images)
    while some := list(islice(examples, size)):
        yield _batch(clip, some, classes, cropped)


def _batch(clip: Clip, examples: list[Example], classes: Classes, cropped: bool) -> MapBatch:
    repeats = torch.tensor([len(example.labels) for example in examples])
    pictures = [example.image for example in examples]
    prepared = clip.prepare(pictures if cropped else whole(clip, pictures))
    pixels = prepared.repeat_interleave(repeats.to(prepared.device), dim=0)
    plain = classes.of([label for example in examples for label in example.labels], pixels)
    return MapBatch(
        pixels=pixels,
        texts={"plain": plain, "centred": F.normalize(plain - classes.mean, dim=-1)},
        masks=torch.cat([example.masks_at(clip.image_size) for example in examples]),
        images=[example.id for example in examples for _ in example.labels],
        objects=[len(example.labels) for example in examples for _ in example.labels],
    )


Grids = dict[str, Float[Tensor, "maps rows columns"]]
"""Raw heat-maps at the patches, by variant."""

OURS = "Neurons"
MIXED = "Neurons, patches, heads"
CEILING = "Patch ceiling"


@dataclass(frozen=True, kw_only=True)
class Own:
    """How a method's own paper, or its published script, turns a heat-map into a mask."""

    threshold: Literal["half", "mean"] = "mean"
    """Of the map scaled to [0, 1]: 0.5, or its mean."""
    positive: bool = False
    """Whether values below 0, after resizing, become 0 before scaling."""
    form: Literal["plain", "centred"] = "plain"
    """Of the text: "centred" takes off the mean over all classes."""


@runtime_checkable
class Method(Protocol):
    """Heat-maps in one or more variants, the first of which is the method as published."""

    @property
    def name(self) -> str:
        """As tables show it."""

    @property
    def own(self) -> Own:
        """Its own post-processing."""

    @property
    def reads_text(self) -> bool:
        """Whether maps depend on the text."""

    @property
    def variants(self) -> Sequence[str]:
        """Names of variants."""

    def grids(self, batch: MapBatch, form: str, variants: Sequence[str]) -> Grids:
        """Heat-maps of some variants, for a form of the texts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BaselineMaps:
    """One of `baselines` with its options."""

    name: str
    clip: Clip
    heat_maps: Callable[..., Tensor]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"as published": {}})
    own: Own = field(default_factory=Own)
    reads_text: bool = True

    @property
    def variants(self) -> Sequence[str]:
        """Names of options."""
        return list(self.options)

    def grids(self, batch: MapBatch, form: str, variants: Sequence[str]) -> Grids:
        """One run for each variant."""
        return {
            name: self.heat_maps(self.clip, batch.pixels, batch.texts[form], **self.options[name])
            for name in variants
        }


class NeuronMaps:
    """Ours: recipes that share one forward pass."""

    name = OURS
    own = Own(threshold="half")
    reads_text = True

    def __init__(self, clip: Clip, lens: Lens, recipes: Mapping[str, Recipe]) -> None:
        self.clip = clip
        self.segmenters = {name: Segmenter(clip, lens, each) for name, each in recipes.items()}

    @property
    def variants(self) -> Sequence[str]:
        """Names of recipes."""
        return list(self.segmenters)

    def grids(self, batch: MapBatch, form: str, variants: Sequence[str]) -> Grids:
        """Encode once, and follow each recipe."""
        chosen = {name: self.segmenters[name] for name in variants}
        layers = {layer for segmenter in chosen.values() for layer in segmenter.layers}
        encoded = encode(self.clip, batch.pixels, layers)
        texts = batch.texts[form][:, None]
        return {name: each.heat_maps(encoded, texts)[:, 0] for name, each in chosen.items()}


class Mixed:
    """Ours with what patches and heads read: `mixture.MixedMaps`."""

    name = MIXED
    own = Own(threshold="half", form="centred")
    reads_text = True
    variants: Sequence[str] = ("as published",)

    def __init__(self, clip: Clip, lens: Lens) -> None:
        self.maps = MixedMaps(clip, lens)

    def grids(self, batch: MapBatch, form: str, variants: Sequence[str]) -> Grids:
        """There is one variant."""
        found = self.maps.maps(batch.pixels, batch.texts[form][:, None])[:, 0]
        return dict.fromkeys(variants, found)


@dataclass(frozen=True, kw_only=True, eq=False)
class CeilingMaps:
    """What a map with one value for each patch could reach: the share of the patch in the mask."""

    grid: tuple[int, int]
    name: str = CEILING
    own: Own = field(default_factory=lambda: Own(threshold="half"))
    reads_text: bool = False
    variants: Sequence[str] = ("share of the patch",)

    def grids(self, batch: MapBatch, form: str, variants: Sequence[str]) -> Grids:
        """Read off the masks."""
        share = F.adaptive_avg_pool2d((batch.masks == 1).to(batch.pixels.dtype), self.grid)
        return dict.fromkeys(variants, share)


SHARES = (PAPER_SHARE / 2, PAPER_SHARE, 5 * PAPER_SHARE, 1.0)
"""Of the neurons of the layers read: numbers tried."""


def recipes(clip: Clip, lens: Lens) -> dict[str, Recipe]:
    """The paper's recipe, and variants of it to choose from on development images."""
    found = {"as published": PAPER}
    for depth, share, weigh, scale in product((1, 2, 4), SHARES, get_args(Weigh), get_args(Scale)):
        if weigh == "equal" and share == 1:
            continue  # all neurons alike: the text would not be read
        layers = lens.late_layers(clip, depth)
        neurons = max(1, round(share * len(layers) * clip.neurons))
        name = f"layers {layers[0]} to {layers[-1]}, {neurons} neurons, {weigh}, {scale}"
        found[name] = Recipe(
            layers=tuple(layers),
            neurons=neurons,
            choose="positive" if weigh == "equal" else "absolute",
            weigh=weigh,
            scale=scale,
        )
    return found


TEXTSPAN_OWN = Own(positive=True, form="centred")
"""The published script takes the mean over all classes off the heat of one, and cuts at 0."""


MINMAX_OWN = Own(threshold="half")
"""Methods that came after Table 4 scale maps to [0, 1] where they cut one map at all."""

OWN = {
    "TextSpan": TEXTSPAN_OWN,
    "CLIP Surgery": Own(threshold="half", form="centred"),
    **dict.fromkeys(
        ("MaskCLIP", "SCLIP", "ClearCLIP", "LeGrad", "ProxyCLIP", "NACLIP"), MINMAX_OWN
    ),
}
"""By name of a baseline, where it is not that of `Own`."""


def table4_methods(clip: Clip, lens: Lens, second: Clip | None = None) -> list[Method]:
    """Every row of the paper's Table 4, every other baseline, and the ceiling.

    `second` is the model that ProxyCLIP compares patches by; without one, `clip` itself.
    """
    half = clip.layers // 2
    late = max(1, round(clip.layers / 3))
    rules = {"as published": {}, "all contributions": {"rule": "zero"}}
    options: dict[str, dict[str, dict[str, Any]]] = {
        "Partial-LRP": rules,
        "LRP": rules,
        "Rollout": {"as published": {}, "later half": {"first": half}},
        "GradCAM": {"as published": {}, "block before the last": {"layer": -2}},
        "Chefer et al.": {
            **rules,
            "later half": {"first": half},
            "later half, all contributions": {"first": half, "rule": "zero"},
        },
        "Raw attention": {"as published": {}, "later half": {"layers": clip.layers - half}},
        "TextSpan": {"as published": {}, "last third": {"layers": late}, "last": {"layers": 1}},
        "MaskCLIP": _of_last_block(residual=True),
        "CLIP Surgery": {"as published": {}, "last third": {"blocks": late}},
        "SCLIP": _of_last_block(residual=True),
        "ClearCLIP": _of_last_block(residual=False),
        "LeGrad": {"as published": {}, "later half": {"layers": clip.layers - half}},
        "ProxyCLIP": {
            "as published": {"second": second},
            "block before the last": {"second": second, "block": -2},
        },
        "NACLIP": _of_last_block(residual=False),
    }
    blind = ("Rollout", "Raw attention")
    methods: list[Method] = [
        BaselineMaps(
            name=each.name,
            clip=clip,
            heat_maps=each,
            own=OWN.get(each.name, Own()),
            reads_text=each.name not in blind,
            **({"options": options[each.name]} if each.name in options else {}),
        )
        for each in baselines
    ]
    ours = (NeuronMaps(clip, lens, recipes(clip, lens)), Mixed(clip, lens))
    return [*methods, *ours, CeilingMaps(grid=clip.grid)]


def _of_last_block(*, residual: bool) -> dict[str, dict[str, Any]]:
    """Variants of a method that was published with a residual stream, or without."""
    return {
        "as published": {},
        "block before the last": {"block": -2},
        "without residual" if residual else "with residual": {"residual": not residual},
    }


BINS = 20
"""Thresholds tried: multiples of 1 / BINS."""

MEANS = 4.0
"""The largest multiple of a map's mean to threshold at, divided into as many."""

FORMS = ("plain", "centred")

POSITIVE = (False, True)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was chosen for a method on development images."""

    variant: str
    form: str
    positive: bool
    """Whether values below 0 become 0 before scaling."""
    relative: bool
    """Whether the threshold counts in means of the map."""
    threshold: float
    miou: float
    """On the development images."""
    refined: "Tuned | None" = None
    """What was chosen for the same maps after they followed the image's colours."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One method on the test images; a row of statistics for each map, see `metrics`."""

    name: str
    choice: Tuned
    own_form: str
    """Of the text, in its own paper's form."""
    same: Float[Tensor, "maps statistics"]
    refined: Float[Tensor, "maps statistics"]
    own: Float[Tensor, "maps statistics"]
    seconds: float
    """For one map, encoding and all, in the chosen variant."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MethodComparison:
    """All methods on the same maps."""

    methods: list[Measured]
    images: list[str]
    """The image of each map."""
    objects: list[int]
    """How many things that image has masks for."""


def tune(methods: Sequence[Method], work: Iterable[MapBatch]) -> dict[str, Tuned]:
    """The variant, form of text and threshold with the best mIoU, by name of the method."""
    kept: dict[tuple[str, str, str], list[Tensor]] = {}
    pixels: list[Tensor] = []
    masks: list[Tensor] = []
    for batch in work:
        pixels.append(batch.pixels.cpu())
        masks.append(batch.masks)
        for method in methods:
            for form in FORMS if method.reads_text else FORMS[:1]:
                for variant, grid in method.grids(batch, form, method.variants).items():
                    kept.setdefault((method.name, variant, form), []).append(grid.cpu())
    if not kept:
        raise SecondLensError("there are no development images with masks: give at least one")
    found: dict[str, Tuned] = {}
    for (name, variant, form), grids in kept.items():
        best = _best_cut(variant, form, grids, masks)
        if name not in found or best.miou > found[name].miou:
            found[name] = best
    for name, best in found.items():
        grids = kept[name, best.variant, best.form]
        refined = [_followed(*pair) for pair in zip(grids, pixels, strict=True)]
        found[name] = replace(best, refined=_best_cut(best.variant, best.form, refined, masks))
    return found


def _followed(
    grid: Float[Tensor, "maps rows columns"], pixels: Float[Tensor, "maps 3 height width"]
) -> Float[Tensor, "maps height width"]:
    return followed(grid[:, None], pixels)[:, 0]


def _best_cut(variant: str, form: str, grids: Sequence[Tensor], masks: Sequence[Tensor]) -> Tuned:
    """The cut and threshold with the best mIoU for maps of one variant and form."""
    counts: dict[tuple[bool, bool], Tensor] = {}
    for grid, mask in zip(grids, masks, strict=True):
        for positive in POSITIVE:
            heat = heat_of(grid, (mask.shape[1], mask.shape[2]), positive)
            for relative in (False, True):
                levels = heat / (MEANS * mean(heat)) if relative else heat
                seen = counts_by_threshold(levels, mask)
                counts[positive, relative] = counts.get((positive, relative), 0) + seen
    found: Tuned | None = None
    for (positive, relative), confusion in counts.items():
        # precision and maps are not needed for mIoU
        miou = scores(F.pad(confusion, (0, 2), value=1.0))[:, 1]
        best = int(miou.argmax())
        if found is None or float(miou[best]) > found.miou:
            found = Tuned(
                variant=variant,
                form=form,
                positive=positive,
                relative=relative,
                threshold=best / BINS * (MEANS if relative else 1),
                miou=float(miou[best]),
            )
    assert found is not None
    return found


def counts_by_threshold(
    heat: Float[Tensor, "maps height width"], masks: Int8[Tensor, "maps height width"]
) -> Float[Tensor, "thresholds 4"]:
    """`metrics.confusion` summed over maps, for heat >= 0, 1 / BINS, ... (BINS - 1) / BINS."""
    level = (heat * BINS).floor().clamp(max=BINS - 1).long()
    histograms = [torch.bincount(level[masks == true], minlength=BINS) for true in (1, 0)]
    # from the highest level down: what is found at a threshold
    found, invented = (each.flip(0).cumsum(0).flip(0).double() for each in histograms)
    return torch.stack([found, found[0] - found, invented, invented[0] - invented], dim=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchStatistics:
    """What all methods did on a batch, before it is summed up."""

    images: list[str]
    """The image of each map."""
    objects: list[int]
    """How many things that image has masks for."""
    maps: dict[str, Float[Tensor, "maps statistics"]]
    """By name of a method and way to make masks, see `statistics_key`."""
    seconds: dict[str, float]
    """By name of a method: encoding and all, in the chosen variant."""


def statistics_key(method: str, way: str) -> str:
    """Of `BatchStatistics.maps`; ways are "same", "refined" and "own"."""
    return f"{method}|{way}"


def measure(
    methods: Sequence[Method], choices: dict[str, Tuned], work: Iterable[MapBatch]
) -> MethodComparison:
    """Every method on every map, all ways, timed."""
    return comparison_of(methods, choices, (measure_batch(methods, choices, each) for each in work))


def measure_batch(
    methods: Sequence[Method], choices: Mapping[str, Tuned], batch: MapBatch
) -> BatchStatistics:
    """Every method on the maps of one batch."""
    maps: dict[str, Tensor] = {}
    seconds: dict[str, float] = {}
    for method in methods:
        choice = choices[method.name]
        published = method.variants[0]
        start = time.perf_counter()
        grid = method.grids(batch, choice.form, [choice.variant])[choice.variant]
        seconds[method.name] = time.perf_counter() - start
        maps[statistics_key(method.name, "same")] = _cut(grid.cpu(), choice, batch)
        colours = _followed(grid.cpu(), batch.pixels.cpu())
        refined = _cut(colours, choice.refined or choice, batch)
        maps[statistics_key(method.name, "refined")] = refined
        if (choice.variant, choice.form) != (published, method.own.form):
            grid = method.grids(batch, method.own.form, [published])[published]
        heat, predicted = own_mask(grid.cpu(), _size(batch), method.own)
        maps[statistics_key(method.name, "own")] = statistics(heat, predicted, batch.masks)
    return BatchStatistics(images=batch.images, objects=batch.objects, maps=maps, seconds=seconds)


def comparison_of(
    methods: Sequence[Method], choices: Mapping[str, Tuned], parts: Iterable[BatchStatistics]
) -> MethodComparison:
    """All batches together.

    Raises
    ------
    SecondLensError
        There are none.
    """
    found = list(parts)
    images = [image for part in found for image in part.images]
    if not images:
        raise SecondLensError("there are no test images with masks: give at least one")

    def joined(method: Method, way: str) -> Tensor:
        return torch.cat([part.maps[statistics_key(method.name, way)] for part in found])

    measured = [
        Measured(
            name=method.name,
            choice=choices[method.name],
            own_form=method.own.form,
            same=joined(method, "same"),
            refined=joined(method, "refined"),
            own=joined(method, "own"),
            seconds=sum(part.seconds[method.name] for part in found) / len(images),
        )
        for method in methods
    ]
    return MethodComparison(
        methods=measured,
        images=images,
        objects=[count for part in found for count in part.objects],
    )


def _cut(
    grid: Float[Tensor, "maps rows columns"], choice: Tuned, batch: MapBatch
) -> Float[Tensor, "maps statistics"]:
    """Statistics of masks as they were tuned."""
    heat = heat_of(grid, _size(batch), choice.positive)
    cut = choice.threshold * (mean(heat) if choice.relative else 1)
    return statistics(heat, heat >= cut, batch.masks)


def own_mask(
    grid: Float[Tensor, "maps rows columns"], size: tuple[int, int], own: Own
) -> tuple[Float[Tensor, "maps height width"], Bool[Tensor, "maps height width"]]:
    """Heat-map in [0, 1] and mask as the method's own paper makes them."""
    heat = standardise(grid, size, positive=own.positive)
    return heat, heat > (0.5 if own.threshold == "half" else mean(heat))


def heat_of(
    grid: Float[Tensor, "maps rows columns"], size: tuple[int, int], positive: bool
) -> Float[Tensor, "maps height width"]:
    """Heat in [0, 1], after values below 0 became 0 if `positive`."""
    return standardise(grid.clamp(min=0) if positive else grid, size)


def mean(heat: Float[Tensor, "maps height width"]) -> Float[Tensor, "maps 1 1"]:
    """Of each map; a little above 0 for a map that is 0 everywhere, so that nothing reaches it."""
    return heat.mean((-2, -1), keepdim=True).clamp(min=torch.finfo(heat.dtype).eps)


def _size(batch: MapBatch) -> tuple[int, int]:
    return batch.masks.shape[1], batch.masks.shape[2]
