"""Multi-class segmentation: each pixel gets the class whose texts say most there.

Counted as MMSegmentation counts: intersections and unions of all images are summed by class, and
mIoU is the mean over classes that are anywhere, in label maps or in predictions.

Two ways to get labels from maps are measured side by side:

- `tuned`: the variant, the form of the texts, and below which value a pixel is background, are
  chosen for every method alike on development images, by mIoU. Forms are texts as they are; minus
  the mean of all texts; and heat in units of its own mean and deviation over development images,
  text by text.
- `own`: each method as its paper published it, with its own post-processing (`OWN`).

A picture is resized so that its short side is `scale` times the model's, and seen through windows
of the model's size that overlap by half. Where a class has several texts, the best counts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from ...data.decoding import whole
from ...data.label_maps import BACKGROUND, Labelled, Queries
from ...errors import SecondLensError
from ...lens.lens import Lens
from ...models.view import Clip
from .baselines import baselines
from .mixture import MixedMaps, Mixture
from .presence import PresenceReader
from .protocol import MIXED, OURS
from .refinement import denoise_prompts, pamr, remove_redundance, smooth_by_keys
from .segmenter import BEST, Recipe, Segmenter, encode
from .windows import Box, joined

Maps = Float[Tensor, "images texts rows columns"]

Among = Literal["all", "present"]
"""Classes that a pixel may get: all of the set, or those of its picture alone."""
AMONG: tuple[Among, ...] = get_args(Among)


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Of some images, as shares."""

    miou: float
    accuracy: float
    """Of pixels."""
    class_accuracy: float
    """The mean over classes of the share of their pixels that is found."""


def counts(
    predicted: Int[Tensor, "height width"], labels: Int[Tensor, "height width"], classes: int
) -> Float[Tensor, "classes 3"]:
    """Pixels by class that are right, predicted, and labelled, where a label is known."""
    known = (labels >= 0) & (labels < classes)
    said, true = predicted[known].long(), labels[known].long()
    parts = (said[said == true], said, true)
    return torch.stack([torch.bincount(each, minlength=classes) for each in parts], 1).double()


def scores(totals: Float[Tensor, "*batch classes 3"]) -> Float[Tensor, "*batch 3"]:
    """mIoU, accuracy of pixels, and mean accuracy of classes, from summed `counts`."""
    right, said, true = totals.unbind(-1)
    union = said + true - right
    return torch.stack(
        [
            (right / union.masked_fill(union == 0, torch.nan)).nanmean(-1),
            right.sum(-1) / true.sum(-1),
            (right / true.masked_fill(true == 0, torch.nan)).nanmean(-1),
        ],
        dim=-1,
    )


def score(images: Float[Tensor, "images classes 3"]) -> ClassScores:
    """The scores of a set from the counts of its images."""
    miou, accuracy, of_classes = scores(images.sum(0)).tolist()
    return ClassScores(miou=miou, accuracy=accuracy, class_accuracy=of_classes)


def paired_difference(
    ours: Float[Tensor, "images classes 3"],
    theirs: Float[Tensor, "images classes 3"],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % bootstrap interval of ours - theirs in mIoU; both are scored on the same draws."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(ours), (samples, len(ours)), generator=generator)
    weights = torch.zeros(samples, len(ours), dtype=ours.dtype)
    weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=ours.dtype))
    found = [
        scores((weights @ each.flatten(1)).unflatten(-1, each.shape[1:]))[:, 0]
        for each in (ours, theirs)
    ]
    ends = torch.tensor([0.025, 0.975], dtype=ours.dtype)
    low, high = torch.nanquantile(found[0] - found[1], ends).tolist()
    return low, high


def windows_of(height: int, width: int, crop: tuple[int, int]) -> list[Box]:
    """Windows of the size `crop` that overlap by half; the last ones end where the picture ends."""
    boxes = []
    for upper in _starts(height, crop[0]):
        for left in _starts(width, crop[1]):
            lower, right = min(upper + crop[0], height), min(left + crop[1], width)
            boxes.append((left, upper, right, lower))
    return boxes


def _starts(pixels: int, crop: int) -> list[int]:
    stride = max(1, crop // 2)
    count = -(-max(pixels - crop, 0) // stride) + 1
    return [max(0, min(i * stride, pixels - crop)) for i in range(count)]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassMethod:
    """Maps of several texts at once, and what its paper does to them."""

    name: str
    variants: Mapping[str, Callable[[Tensor, Tensor], Maps]]
    """Maps of preprocessed images [images, 3, height, width] and texts [texts, dim], by name; the
    first are those of the method as published."""
    own_maps: Callable[[Tensor, Tensor], Maps] | None = None
    """The same after the paper's own refinement at the patches, if it has one."""
    own: "OwnLabels | None" = None
    """Labels as its paper makes them; None for a method that has no paper's."""


@dataclass(frozen=True, kw_only=True)
class OwnLabels:
    """How a paper, or its published script, turns maps into labels."""

    scale: float = 40.0
    """Of cosines before a softmax over texts."""
    least: float = 0.1
    """Where there is a background: below this probability a pixel is background."""
    area: float = 0.0
    """Where there is a background: the share of the pixels that are not background which a class
    must have to be kept."""
    refine: bool = False
    """Whether PAMR refines maps by the picture's colours."""


OWN: dict[str, OwnLabels] = {
    "MaskCLIP": OwnLabels(scale=1.0, least=0.0),
    "CLIP Surgery": OwnLabels(scale=1.0, least=0.0),
    "SCLIP": OwnLabels(area=0.1),
    "ClearCLIP": OwnLabels(),
    "ProxyCLIP": OwnLabels(),
    "NACLIP": OwnLabels(refine=True),
}
"""By name of a baseline."""


READ = (
    *("TextSpan", "Patch similarity", "MaskCLIP", "CLIP Surgery"),
    *("SCLIP", "ClearCLIP", "ProxyCLIP", "NACLIP"),
)
"""Baselines whose maps of several texts can be compared: the others scale each map by itself."""


PUBLISHED = "as published"
FAINT = 1e-3
"""What is left of maps of texts that a picture does not speak for: where no other text is, they
still tell the likelier one."""


def class_methods(
    clip: Clip, lens: Lens, second: Clip | None = None, recipe: Recipe = BEST
) -> list[ClassMethod]:
    """Our methods and all baselines whose maps of several texts can be compared.

    `second` is the model that ProxyCLIP compares patches by; without one, `clip` itself.
    """
    segmenter = Segmenter(clip, lens, recipe)
    mixed = MixedMaps(clip, lens, Mixture(recipe=recipe))
    reader = PresenceReader(clip, lens)

    def neurons(pixels: Tensor, texts: Tensor) -> Tensor:
        encoded = encode(clip, pixels, segmenter.layers)
        return segmenter.heat_maps(encoded, texts.expand(len(pixels), -1, -1))

    def mixture(pixels: Tensor, texts: Tensor) -> Tensor:
        return mixed.maps(pixels, texts.expand(len(pixels), -1, -1))

    def spoken(pixels: Tensor, texts: Tensor) -> Tensor:
        there = reader.spoken(pixels, texts)[..., None, None]
        return mixture(pixels, texts) * torch.where(there, 1, FAINT)

    methods = [
        ClassMethod(name=OURS, variants={PUBLISHED: neurons}),
        ClassMethod(name=MIXED, variants={PUBLISHED: mixture, "texts that are spoken for": spoken}),
    ]
    for name in READ:
        maps = _baseline(clip, name, second)
        methods.append(
            ClassMethod(
                name=name,
                variants={PUBLISHED: maps},
                own_maps=_refined(clip, name, maps),
                own=OWN.get(name),
            )
        )
    return methods


def _baseline(clip: Clip, name: str, second: Clip | None) -> Callable[[Tensor, Tensor], Tensor]:
    options = {"second": second} if name == "ProxyCLIP" else {}

    def maps(pixels: Tensor, texts: Tensor) -> Tensor:
        return baselines[name](clip, pixels, texts.expand(len(pixels), -1, -1), **options)

    return maps


def _refined(
    clip: Clip, name: str, maps: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """What a paper does at the patches, if it does anything there."""
    if name == "MaskCLIP":
        return lambda pixels, texts: smooth_by_keys(
            clip, pixels, denoise_prompts(maps(pixels, texts))
        )
    if name == "CLIP Surgery":
        return lambda pixels, texts: remove_redundance(clip, pixels, texts, maps(pixels, texts))
    return None


def text_maps(
    clip: Clip,
    maps: Callable[[Tensor, Tensor], Maps],
    image: Image.Image,
    texts: Float[Tensor, "texts dim"],
    scale: float | None,
) -> Float[Tensor, "texts height width"]:
    """Maps of a picture at its own size.

    Parameters
    ----------
    scale
        The picture's short side in that of the model; None squeezes it whole into the model's
        square.
    """
    size = (image.height, image.width)
    if scale is None:
        (found,) = maps(clip.prepare(whole(clip, [image])), texts)
    else:
        ratio = scale * max(clip.image_size) / min(size)
        seen = (max(1, round(ratio * size[0])), max(1, round(ratio * size[1])))
        resized = image.convert("RGB").resize(seen[::-1], Image.Resampling.BICUBIC)
        boxes = windows_of(*seen, clip.image_size)
        crops = clip.prepare([resized.crop(box) for box in boxes])
        found = joined(maps(crops, texts), boxes, seen)
    return F.interpolate(found[None], size, mode="bilinear", align_corners=False)[0]


def check_scale(scale: float | None) -> None:
    """Raise `SecondLensError` for a scale at which a window would be larger than the picture."""
    if scale is not None and scale < 1:
        raise SecondLensError(
            f"at a scale of {scale} a picture is smaller than what the model sees: give 1 or more"
        )


class Texts:
    """Embeddings of all texts of a set's classes, and which class each is of."""

    def __init__(self, clip: Clip, queries: Queries, classes: Sequence[str]) -> None:
        self.plain = queries.vocabulary.embed(clip)
        self.centred = F.normalize(self.plain - self.plain.mean(0), dim=-1)
        self.of = torch.tensor(queries.classes)
        self.classes = len(classes)
        self.background = bool(classes) and classes[0] == BACKGROUND

    def by_class(
        self, maps: Float[Tensor, "texts height width"]
    ) -> Float[Tensor, "classes height width"]:
        """The best text of each class; classes without one are nowhere."""
        found = maps.new_full((self.classes, *maps.shape[1:]), -torch.inf)
        of = self.of.to(maps.device)[:, None, None].expand_as(maps)
        return found.scatter_reduce(0, of, maps, "amax")


def best_class(
    values: Float[Tensor, "classes height width"],
    labels: Int[Tensor, "height width"] | None = None,
    *,
    background: bool = False,
) -> tuple[Int[Tensor, "height width"], Float[Tensor, "height width"]]:
    """The class with the largest value at each pixel, and that value.

    With `labels`, among those classes alone that they hold, and background where there is one.
    """
    if labels is not None:
        there = torch.zeros(len(values), dtype=torch.bool)
        there[labels[labels >= 0].long().unique()] = True
        there[0] |= background
        values = values.masked_fill(~there.to(values.device)[:, None, None], -torch.inf)
    top, best = values.max(0)
    return best, top


def own_labels(
    maps: Float[Tensor, "texts height width"],
    pixels: Float[Tensor, "3 height width"],
    texts: Texts,
    own: OwnLabels,
    labels: Int[Tensor, "height width"] | None = None,
) -> Int[Tensor, "height width"]:
    """Labels as a paper makes them of maps at the picture's size; `labels` as for `best_class`."""
    if own.refine:
        maps = pamr(pixels[None].to(maps), maps[None])[0]
    likely = texts.by_class((own.scale * maps).softmax(0))
    best, top = best_class(likely, labels, background=texts.background)
    if not texts.background:
        return best
    if own.area:
        sizes = torch.bincount(best.flatten(), minlength=texts.classes)
        kept = sizes > own.area * sizes[1:].sum()
        kept[0] = True
        likely = likely * kept.to(likely)[:, None, None]
        best, top = best_class(likely, labels, background=True)
    return best.masked_fill(top < own.least, 0)


LEVELS = 20
"""Quantiles of the best class's value over development pixels below which background is tried."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TunedLabels:
    """What was chosen for a method on development images."""

    variant: str
    form: str
    """Of the text: `plain`, `centred`, or `standard`."""
    level: float
    """Below it a pixel is background, where there is one."""
    miou: float
    """On the development images."""
    mean: Float[Tensor, " texts"]
    """Of heat over development images, with `deviation`, for the form `standard`."""
    deviation: Float[Tensor, " texts"]


FORMS = ("plain", "centred", "standard")


def tune(
    clip: Clip,
    method: ClassMethod,
    images: Iterable[Labelled],
    texts: Texts,
    *,
    scale: float | None,
) -> dict[Among, TunedLabels]:
    """The variant, form of texts and level of background with the best mIoU on some images.

    Both are chosen among all classes, and among those of each picture.

    Raises
    ------
    SecondLensError
        There are no images.
    """
    seen = [(each, torch.from_numpy(each.labels)) for each in images]
    if not seen:
        raise SecondLensError("there are no development images with label maps: give at least one")
    best: dict[Among, TunedLabels] = {}
    given = ((False, texts.plain), (True, texts.centred))
    for (variant, read), (standard_too, rows) in product(method.variants.items(), given):
        maps = [text_maps(clip, read, each.image, rows, scale).cpu() for each, _ in seen]
        flat = [each.flatten(1) for each in maps]
        count = sum(each.shape[1] for each in flat)
        mean = torch.stack([each.sum(1) for each in flat]).sum(0) / count
        spread = torch.stack([(each - mean[:, None]).square().sum(1) for each in flat]).sum(0)
        deviation = (spread / count).sqrt().clamp(min=torch.finfo(mean.dtype).eps)
        for form in FORMS[1:] if standard_too else FORMS[:1]:
            of = TunedLabels(
                variant=variant,
                form=form,
                level=-torch.inf,
                miou=0.0,
                mean=mean,
                deviation=deviation,
            )
            for among in AMONG:
                found = _with_level(of, maps, [labels for _, labels in seen], texts, among)
                if among not in best or found.miou > best[among].miou:
                    best[among] = found
    return best


def _with_level(
    choice: TunedLabels,
    maps: Sequence[Tensor],
    labels: Sequence[Tensor],
    texts: Texts,
    among: Among,
) -> TunedLabels:
    read = [
        best_class(
            texts.by_class(_standardised(each, choice)),
            true if among == "present" else None,
            background=texts.background,
        )
        for each, true in zip(maps, labels, strict=True)
    ]
    levels = [-torch.inf]
    if texts.background:
        values = torch.cat([top.flatten() for _, top in read]).double()
        step = max(1, len(values) // 1_000_000)  # a quantile takes so many at most
        shares = torch.arange(1, LEVELS, dtype=torch.float64) / LEVELS
        levels += values[::step].quantile(shares).tolist()
    found = []
    for level in levels:
        total = sum(
            counts(said.masked_fill(top < level, 0), true, texts.classes)
            for (said, top), true in zip(read, labels, strict=True)
        )
        assert isinstance(total, Tensor)
        found.append(float(scores(total)[0]))
    best = max(range(len(levels)), key=found.__getitem__)
    return replace(choice, level=levels[best], miou=found[best])


def _standardised(maps: Tensor, choice: TunedLabels) -> Tensor:
    if choice.form != "standard":
        return maps
    return (maps - choice.mean.to(maps)[:, None, None]) / choice.deviation.to(maps)[:, None, None]


def tuned_labels(
    maps: Float[Tensor, "texts height width"],
    texts: Texts,
    choice: TunedLabels,
    labels: Int[Tensor, "height width"] | None = None,
) -> Int[Tensor, "height width"]:
    """Labels from maps of the chosen form as they were tuned; `labels` as for `best_class`."""
    values = texts.by_class(_standardised(maps, choice))
    best, top = best_class(values, labels, background=texts.background)
    return best.masked_fill(top < choice.level, 0) if texts.background else best


def published_labels(
    maps: Float[Tensor, "texts height width"],
    image: Image.Image,
    texts: Texts,
    own: OwnLabels,
    labels: Int[Tensor, "height width"] | None = None,
) -> Int[Tensor, "height width"]:
    """Labels of a picture as a paper makes them of its maps; `labels` as for `best_class`."""
    return own_labels(maps, _colours(image) if own.refine else maps[:3], texts, own, labels)


def _colours(image: Image.Image) -> Float[Tensor, "3 height width"]:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()
