"""Table 4: zero-shot segmentation by neurons beside every earlier method."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from ..applications.photo_files import tensor_hash
from ..applications.segmentation.baselines import baselines
from ..applications.segmentation.heat_maps import grey, overlay
from ..applications.segmentation.metrics import paired_differences, score
from ..applications.segmentation.protocol import (
    MIXED,
    OURS,
    BatchStatistics,
    Classes,
    MapBatch,
    Measured,
    Method,
    MethodComparison,
    Tuned,
    batches,
    comparison_of,
    heat_of,
    measure_batch,
    table4_methods,
    tune,
)
from ..data.masked import (
    MaskedImages,
    Part,
    WorldMasks,
    masked,
    split,
)
from ..data.reader import FEW_IMAGES
from ..data.vocabularies import Vocabulary, class_names, object_names, vocabulary
from ..demo.model import TWIN
from ..demo.scenes import FIT_SEED, Scenes, World
from ..errors import SecondLensError
from ..formatting import counted
from ..lens.fitting import fit
from ..lens.lens import Lens
from ..models.loading import load
from ..models.view import Clip
from ..progress import tracked
from ..storage.checkpoints import Checkpoints
from .results import Result, Row, Setting
from .study import PAPER_MODEL, Study

PAPER: dict[str, tuple[float, float, float]] = {
    "Partial-LRP": (55.0, 35.5, 66.9),
    "Rollout": (61.8, 42.6, 74.0),
    "LRP": (62.9, 35.8, 68.5),
    "GradCAM": (67.3, 39.3, 61.9),
    "Chefer et al.": (68.9, 49.1, 79.7),
    "Raw attention": (69.6, 49.8, 80.0),
    "TextSpan": (76.5, 58.1, 84.1),
    OURS: (78.1, 59.0, 84.9),
}
"""Pixel accuracy, mIoU and mAP in the paper's Table 4: ViT-B/32 on ImageNet-Segmentation."""

METRICS = ("pixel accuracy", "mIoU", "mAP")

NOTE = (
    "In %; below, neurons − theirs, then neurons, patches, heads − theirs, 95 % intervals; paper: "
    "accuracy, mIoU and mAP, of each paper's own masks; cut: threshold, x in means of the map, + "
    "if heat below 0 became 0."
)

MASKS = {
    "same": "tuned, same post-processing",
    "refined": "tuned, and refined by colours",
    "own": "each paper's own",
}
"""Ways to make masks from maps."""

PREDICTED = "predicted, as the published code does"
"""How classes are known there."""

CROPPED = "cropped to a square, under whole masks squeezed into it"
SQUEEZED = "squeezed into a square, as their masks are"
"""What is seen of pictures that are no squares: in the published code, and else."""

PAPER_SET = "ImageNet-Segmentation"
PAPER_IMAGES = 4276
"""Of that set: all of them are measured in the paper, which tunes nothing."""

TUNED_ON = 200
"""By default: measuring on all others still is the paper's experiment."""

GROUPS = {"all images": (1, 10**9), "one object": (1, 1), "several objects": (2, 10**9)}
"""Images by their number of masks."""


@dataclass(frozen=True, kw_only=True)
class MaskRow:
    """One method, one way to make masks, one group of images; shares in %."""

    group: str
    protocol: str
    method: str
    pixel_accuracy: float
    miou: float
    map: float
    ahead: tuple[tuple[float, float], ...] | None
    """95 % intervals of ours minus this method, in the order of `METRICS`; None for ours."""
    mixed_ahead: tuple[tuple[float, float], ...] | None
    """The same of ours with what patches and heads read."""
    paper: tuple[float, float, float] | None
    variant: str
    form: str
    threshold: str
    maps_per_second: float


def rows(comparison: MethodComparison) -> list[MaskRow]:
    """All rows, for every group that has maps."""
    return [row for group in GROUPS for way in MASKS for row in _group(comparison, group, way)]


def _group(comparison: MethodComparison, group: str, way: str) -> Iterator[MaskRow]:
    fewest, most = GROUPS[group]
    mine = [i for i, count in enumerate(comparison.objects) if fewest <= count <= most]
    if not mine:
        return
    images = [comparison.images[i] for i in mine]
    ours = next(each for each in comparison.methods if each.name == OURS)
    mixed = next((each for each in comparison.methods if each.name == MIXED), None)
    for measured in comparison.methods:
        found = score(getattr(measured, way)[mine])
        ahead, mixed_ahead = (
            _ahead(getattr(each, way)[mine], getattr(measured, way)[mine], images)
            if each is not None and each is not measured
            else None
            for each in (ours, mixed)
        )
        yield MaskRow(
            group=group,
            protocol=way,
            method=measured.name,
            pixel_accuracy=100 * found.pixel_accuracy,
            miou=100 * found.miou,
            map=100 * found.map,
            ahead=ahead,
            mixed_ahead=mixed_ahead,
            paper=PAPER.get(measured.name),
            **_settings(measured, way),
        )


def _ahead(
    ours: Float[Tensor, "maps statistics"],
    theirs: Float[Tensor, "maps statistics"],
    images: list[str],
) -> tuple[tuple[float, float], ...]:
    intervals = paired_differences(ours, theirs, images)
    return tuple((100 * low, 100 * high) for low, high in intervals.tolist())


def _settings(measured: Measured, way: str) -> dict[str, Any]:
    choice = measured.choice
    if way == "refined" and choice.refined is not None:
        choice = choice.refined
    tuned = way != "own"
    return {
        "variant": choice.variant if tuned else "as published",
        "form": choice.form if tuned else measured.own_form,
        "threshold": _threshold(choice) if tuned else "own",
        "maps_per_second": 1 / measured.seconds,
    }


def _threshold(choice: Tuned) -> str:
    """Such as "0.45"; "1.2x" in means of the map; "1.2x+" if it is also cut at 0."""
    value = f"{choice.threshold:.1f}x" if choice.relative else f"{choice.threshold:.2f}"
    return f"{value}+" if choice.positive else value


def _flat(row: MaskRow) -> Row:
    """With a column for each number."""
    plain: Row = asdict(row)
    paper = plain.pop("paper")
    for i, name in enumerate(METRICS):
        for whose, key in (("ours", "ahead"), ("mixed", "mixed_ahead")):
            low, high = (None, None) if plain[key] is None else plain[key][i]
            plain[f"{whose} minus this, {name}, low"] = low
            plain[f"{whose} minus this, {name}, high"] = high
        plain[f"paper, {name}"] = None if paper is None else paper[i]
    del plain["ahead"], plain["mixed_ahead"]
    return plain


def _compact(row: MaskRow) -> Row:
    """With the intervals below ours, and the paper's numbers beside masks that were made so."""
    values = (row.pixel_accuracy, row.miou, row.map)
    cells = [_cell(row, i, value) for i, value in enumerate(values)]
    return {
        "pictures": row.group,
        "masks": MASKS[row.protocol],
        "method": row.method,
        **dict(zip(("accuracy", "mIoU", "mAP"), cells, strict=True)),
        "paper": "{:.1f} {:.1f}\n{:.1f}".format(*row.paper)
        if row.paper and row.protocol == "own"
        else None,
        "cut": None if row.threshold == "own" else row.threshold,
        "maps/s": round(row.maps_per_second),
    }


def _cell(row: MaskRow, metric: int, value: float) -> str:
    cell = f"{value:.1f}"
    for ahead in (row.ahead, row.mixed_ahead if row.method != OURS else None):
        if ahead is not None:
            low, high = ahead[metric]
            cell += f"\n{low:+.1f}…{high:+.1f}"
    return cell


DEV_SEED, TEST_SEED = 21, 22
"""Of scenes that nothing else is made from."""

SHOWN = 8
"""Images in the picture grid."""

TEMPLATE = "a photo of a {}"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to segment: images to tune on, other images to test on, and their classes."""

    name: str
    dev: MaskedImages
    test: MaskedImages
    classes: Vocabulary
    published: str | None = None
    """The published set that the images are from, where the paper has used it."""


def check_sources(*, demo: bool, model: str, data: Path | None, lens: Path | None) -> None:
    """Raise `SecondLensError` unless there is the embedded world, or data and a lens."""
    if demo and (data is not None or not model.startswith("demo")):
        raise SecondLensError("--demo has its own model and data: drop --model and --images")
    if not demo and (data is None or lens is None):
        raise SecondLensError("name data with --images and a lens with --lens, or take --demo")


def demo_work(*, images: int, dev: int, single: bool = False) -> Task:
    """Scenes of the embedded world, a mask for every visible object.

    With `single`, those that are tested on show one object each.
    """
    world = World()
    return Task(
        name="embedded world, one object each" if single else "embedded world",
        dev=WorldMasks(world, DEV_SEED, dev),
        test=WorldMasks(world, TEST_SEED, images, single),
        classes=object_names(),
    )


def demo_lens(clip: Clip, images: int) -> Lens:
    """A lens on scenes that are neither tuned nor tested on."""
    return fit(clip, Scenes(World(), FIT_SEED, images), progress=True)


def data_work(
    path: Path,
    layout: str | None,
    *,
    classes: Path | None,
    names: Path | None,
    ignore: int | None,
    images: int,
    dev: int,
    follow: Literal["paper", "code"] = "paper",
) -> Task:
    """Images from files, some of them set aside for tuning.

    Parameters
    ----------
    path, layout, names, ignore
        As for `masked`.
    classes
        A file with one class a line; by default the classes that the data name, or ImageNet's where
        they name none.
    follow
        Prompts of the paper's text, "a photo of a ...", or OpenAI's 80, as in its code.

    Raises
    ------
    SecondLensError
        Data that are not there or not laid out so, or too few images.
    """
    recognised, found = masked(path, layout, names=names, ignore=ignore)
    tuning, rest = split(found, dev)
    texts = vocabulary(classes or found.classes or "imagenet", templates=[TEMPLATE])
    if follow == "code":
        texts = class_names(texts.name, texts.labels)
    return Task(
        name=f"{recognised} in {path}",
        published=PAPER_SET if recognised == "imagenet-segmentation" else None,
        dev=tuning,
        test=Part(found, rest.positions[:images]),
        classes=texts,
    )


def second_of(clip: Clip) -> Clip | None:
    """The twin of an embedded model."""
    return load(TWIN[clip.name], device=clip.device) if clip.name in TWIN else None


def compare(
    clip: Clip,
    lens: Lens,
    work: Task,
    *,
    model: str,
    predicted: bool,
    cropped: bool = False,
    second: Clip | None = None,
    only: Sequence[str] = (),
    kept: str | Path | None = None,
) -> Result:
    """Tune all methods on some images and measure them on others.

    Parameters
    ----------
    model
        What the result calls it.
    predicted
        Whether the class that CLIP predicts is segmented, and not the one that is given.
    cropped
        Whether images are cropped while masks are squeezed, see `batches`.
    second
        The model that ProxyCLIP compares patches by; by default the twin of an embedded model, and
        else the model itself.
    only
        Baselines to measure, by name; by default all.
    kept
        A folder of what was measured so far, from which an interrupted run goes on.
    """
    second = second_of(clip) if second is None else second
    methods = [
        each
        for each in table4_methods(clip, lens, second)
        if not only or each.name in only or each.name not in baselines
    ]
    classes = Classes(clip, work.classes, predicted)
    parts = Checkpoints(kept)
    parts.claim(
        {
            "model": clip.weights_hash,
            "second": None if second is None else second.weights_hash,
            "lens": tensor_hash(*(lens[layer].directions for layer in lens.layers)),
            "methods": [method.name for method in methods],
            "data": work.name,
            "classes": list(work.classes.labels),
            "dev": len(work.dev),
            "test": len(work.test),
            "predicted": predicted,
            "cropped": cropped,
        },
        {},
    )
    choices = _choices(clip, methods, work, classes, parts, cropped=cropped)
    starts = range(0, len(work.test), FEW_IMAGES)
    for start in tracked(starts, "testing", shown=True):
        if _part(start) not in parts.names():
            some = Part(work.test, range(start, min(start + FEW_IMAGES, len(work.test))))
            (batch,) = batches(clip, some, classes, cropped=cropped)
            _save(parts, start, measure_batch(methods, choices, batch))
    comparison = comparison_of(methods, choices, (_saved(parts, start) for start in starts))
    parts.drop()
    first = Part(work.test, range(min(SHOWN, len(work.test))))
    shown = next(batches(clip, first, classes, size=SHOWN, cropped=cropped))
    images, found = len(set(comparison.images)), rows(comparison)
    facts = {
        "model": lens.model,
        "data": work.name,
        "dev images": len(work.dev),
        "test images": images,
        "maps": len(comparison.images),
        "predicted classes": predicted,
        "cropped": cropped,
        "second model": None if second is None else second.name,
        "choices": {name: asdict(choice) for name, choice in choices.items()},
    }
    flat = [_flat(row) for row in found]
    nested = [
        {"ahead": row.ahead, "mixed_ahead": row.mixed_ahead, "paper": row.paper} for row in found
    ]
    return Result(
        name="table4",
        title=f"zero-shot segmentation ({counted(images, 'picture')})",
        rows=flat,
        compact=[_compact(row) for row in found],
        divided_by=["pictures", "masks"],
        settings=_task_settings(work, model, predicted=predicted, cropped=cropped),
        notes=[NOTE],
        picture=comparison_grid(methods, choices, shown),
        facts=facts,
        earlier=facts | {"rows": [new | old for new, old in zip(flat, nested, strict=True)]},
    )


def _choices(
    clip: Clip,
    methods: Sequence[Method],
    work: Task,
    classes: Classes,
    parts: Checkpoints,
    *,
    cropped: bool,
) -> dict[str, Tuned]:
    """What was tuned for each method, kept once it is known."""
    if "choices" not in parts.names():
        seen = batches(clip, work.dev, classes, cropped=cropped)
        count = -(-len(work.dev) // FEW_IMAGES)
        found = tune(methods, tracked(seen, "tuning", shown=True, total=count))
        parts.save("choices", {}, {name: asdict(choice) for name, choice in found.items()})
    return {name: _tuned(**choice) for name, choice in parts.info("choices").items()}


def _tuned(*, refined: dict[str, Any] | None, **choice: Any) -> Tuned:
    return Tuned(**choice, refined=None if refined is None else _tuned(**refined))


def _part(start: int) -> str:
    return f"images-{start:06}"


def _save(parts: Checkpoints, start: int, found: BatchStatistics) -> None:
    told = {"images": found.images, "objects": found.objects, "seconds": found.seconds}
    parts.save(_part(start), found.maps, told)


def _saved(parts: Checkpoints, start: int) -> BatchStatistics:
    return BatchStatistics(**parts.info(_part(start)), maps=parts.tensors(_part(start)))


def _task_settings(work: Task, model: str, *, predicted: bool, cropped: bool) -> list[Setting]:
    prompts = len(work.classes.prompts[0])
    images = len(work.test)
    return [
        Setting(name="model", ours=model, paper=PAPER_MODEL),
        Setting(name="pictures", ours=work.published or work.name, paper=PAPER_SET),
        Setting(
            name="pictures measured",
            ours=f"{images:,}",
            paper=f"{PAPER_IMAGES:,}",
            harmless=PAPER_IMAGES - TUNED_ON <= images < PAPER_IMAGES,
        ),
        Setting(name="classes", ours=PREDICTED if predicted else "given", paper=PREDICTED),
        Setting(
            name="prompts",
            ours=f'"{TEMPLATE}"' if prompts == 1 else f"{prompts} a class",
            paper="80 a class in the code; the text leaves it open",
            harmless=prompts in (1, 80),
        ),
        Setting(name="what is seen", ours=CROPPED if cropped else SQUEEZED, paper=CROPPED),
        Setting(
            name="masks",
            ours="tuned alike for every method (same), and each paper's own",
            paper="each paper's own",
            harmless=True,
        ),
    ]


DEV_IMAGES, TEST_IMAGES = 100, 200
"""Fewer than the command `reproduce table4` takes: a page with everything must not take hours."""


def table4(study: Study) -> Result:
    """Zero-shot segmentation by neurons, beside every earlier method.

    Raises
    ------
    SecondLensError
        The study is of photographs and has no masks.
    """
    if study.masks is None and not study.demo:
        raise SecondLensError(
            "name masks: secondlens reproduce table4 --images gtsegs_ijcv.mat --lens LENS"
        )
    if study.masks is None:
        work = demo_work(images=TEST_IMAGES, dev=DEV_IMAGES)
    else:
        _, images = masked(study.masks)
        dev = min(DEV_IMAGES, max(1, len(images) // 3))
        work = data_work(
            study.masks,
            None,
            classes=None,
            names=None,
            ignore=None,
            images=TEST_IMAGES,
            dev=dev,
            follow=study.follow,
        )
    as_code = study.follow == "code"
    found = compare(
        *(study.clip, study.lens, work),
        model=study.known_model,
        predicted=as_code,
        cropped=as_code,
        second=None if study.second_model is None else study.second_model.load(),
    )
    more = "`secondlens reproduce table4` measures more pictures."
    return replace(found, notes=[*found.notes, more])


def comparison_grid(
    methods: Sequence[Method], choices: Mapping[str, Tuned], batch: MapBatch, side: int = 112
) -> Image.Image:
    """Every method's heat-map over the same pictures, one picture a row; `side` in pixels."""
    pictures = [_visible(pixels).resize((side, side), _SMOOTH) for pixels in batch.pixels.cpu()]
    masks = [grey((mask == 1).float()).resize((side, side)) for mask in batch.masks]
    columns = {"picture": pictures, "mask": masks}
    for method in methods:
        choice = choices[method.name]
        grid = method.grids(batch, choice.form, [choice.variant])[choice.variant]
        heat = heat_of(grid.cpu(), (side, side), choice.positive).float()
        columns[method.name] = [overlay(p, h) for p, h in zip(pictures, heat, strict=True)]
    header, step = 16, side + 4
    sheet = Image.new("RGB", (len(columns) * step, header + len(pictures) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for x, (name, column) in enumerate(columns.items()):
        draw.text((x * step + 2, 2), name, fill="black")
        for y, tile in enumerate(column):
            sheet.paste(tile, (x * step, header + y * step))
    return sheet


_SMOOTH = Image.Resampling.BICUBIC


def _visible(pixels: Float[Tensor, "3 height width"]) -> Image.Image:
    """A preprocessed image with its values stretched to what a picture can show."""
    spread = (pixels.max() - pixels.min()).clamp(min=torch.finfo(pixels.dtype).eps)
    channels = (255 * (pixels - pixels.min()) / spread).round().byte()
    return Image.fromarray(channels.permute(1, 2, 0).numpy())
