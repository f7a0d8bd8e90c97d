"""Multi-class mIoU of neurons and of every method whose maps of several texts can be compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..applications.photo_files import tensor_hash
from ..applications.segmentation.multiclass import (
    AMONG,
    Among,
    ClassMethod,
    Texts,
    TunedLabels,
    check_scale,
    class_methods,
    counts,
    paired_difference,
    published_labels,
    score,
    text_maps,
    tune,
    tuned_labels,
)
from ..applications.segmentation.protocol import MIXED, OURS
from ..data.label_maps import (
    BACKGROUND,
    Labelled,
    LabelledImages,
    Queries,
    WorldLabels,
    label_maps,
    named,
    world_queries,
)
from ..demo.scenes import World
from ..errors import SecondLensError
from ..formatting import counted
from ..lens.lens import Lens
from ..models.view import Clip
from ..progress import tracked
from ..storage.checkpoints import Checkpoints
from .results import Result, Row, Setting
from .table4 import DEV_SEED, TEST_SEED, second_of

EXPECTED: dict[str, float] = {
    "voc21": 64.07,
    "context60": 34.99,
    "coco-object": 36.19,
    "voc20": 83.03,
    "cityscapes": 38.27,
    "context59": 38.35,
    "ade20k": 19.05,
    "coco-stuff": 25.69,
}
"""mIoU of NACLIP with its own post-processing, ViT-B/16 of OpenAI, as its authors publish it. The
mean of the eight is 42.5, and that of CLIP's own patches 14.1."""

SCALES = {"cityscapes": 2.5}
"""The short side of a picture in that of the model, where it is not `SCALE`: 560 of 224 pixels."""

SCALE = 1.5
"""336 of 224 pixels."""

IMAGES_PER_PART = 10
"""Measured between two checkpoints."""


@dataclass(frozen=True, kw_only=True)
class LabelTask:
    """What to label: images to tune on, others to test on, and texts for the classes."""

    name: str
    """A member of `label_sets`, or of the embedded world."""
    classes: Sequence[str]
    queries: Queries
    dev: "Images"
    test: "Images"
    scale: float | None


@dataclass(frozen=True)
class Images:
    """Some images of a set, by position."""

    whole: LabelledImages
    positions: Sequence[int]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Labelled:
        return self.whole[self.positions[index]]


def demo_labels(*, images: int, dev: int, background: bool, single: bool = False) -> LabelTask:
    """Scenes of the embedded world; `single` tests on scenes of one object each."""
    tuning, testing = (
        WorldLabels(world=World(), seed=seed, count=count, background=background, single=one)
        for seed, count, one in ((DEV_SEED, dev, False), (TEST_SEED, images, single))
    )
    return LabelTask(
        name=f"{testing.name}, one object each" if single else testing.name,
        classes=testing.classes,
        queries=world_queries(testing.classes),
        dev=Images(tuning, range(dev)),
        test=Images(testing, range(images)),
        scale=None,
    )


def data_labels(
    path: Path,
    name: str,
    *,
    images: int,
    dev: int,
    expansions: Path | None,
    scale: float | None,
) -> LabelTask:
    """Images from a folder, some of them set aside for tuning.

    Parameters
    ----------
    path, name
        As for `label_maps`.
    expansions
        As for `named`.
    scale
        See `text_maps`; None takes the set's own.

    Raises
    ------
    SecondLensError
        Data that are not there or not laid out so, too few images, or a scale below 1.
    """
    check_scale(scale)
    found = label_maps(path, name)
    queries = named(found.classes, expansions)
    if dev >= len(found):
        raise SecondLensError(
            f"{dev} development images of {len(found)} leave none to test on: take fewer"
        )
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(found), generator=generator).tolist()
    return LabelTask(
        name=name,
        classes=found.classes,
        queries=queries,
        dev=Images(found, sorted(order[:dev])),
        test=Images(found, sorted(order[dev:])[:images]),
        scale=SCALES.get(name, SCALE) if scale is None else scale,
    )


WAYS = ("tuned", "own")


def compare_labels(
    clip: Clip,
    lens: Lens,
    task: LabelTask,
    *,
    model: str,
    second: Clip | None = None,
    work: str | Path | None = None,
) -> Result:
    """Tune every method on some images, and count what it labels right on others.

    Parameters
    ----------
    model
        What the result calls it.
    second
        The model that ProxyCLIP compares patches by; by default the twin of an embedded model, and
        else the model itself.
    work
        A folder of what was counted so far, from which an interrupted run goes on.
    """
    second = second_of(clip) if second is None else second
    methods = class_methods(clip, lens, second)
    texts = Texts(clip, task.queries, task.classes)
    parts = Checkpoints(work)
    parts.claim(
        {
            "model": clip.weights_hash,
            "second": None if second is None else second.weights_hash,
            "lens": tensor_hash(*(lens[layer].directions for layer in lens.layers)),
            "set": task.name,
            "texts": list(task.queries.vocabulary.labels),
            "dev": len(task.dev),
            "test": len(task.test),
            "scale": task.scale,
        },
        {},
    )
    choices = _choices(clip, methods, task, texts, parts)
    for start in tracked(
        range(0, len(task.test), IMAGES_PER_PART),
        "testing",
        shown=True,
        total=-(-len(task.test) // IMAGES_PER_PART),
    ):
        if f"images-{start:06}" not in parts.names():
            examples = [
                task.test[i] for i in range(start, min(start + IMAGES_PER_PART, len(task.test)))
            ]
            found = _counted(clip, methods, examples, task, texts, choices)
            parts.save(f"images-{start:06}", found, {})
    saved = [
        parts.tensors(f"images-{start:06}") for start in range(0, len(task.test), IMAGES_PER_PART)
    ]
    totals = {key: torch.cat([each[key] for each in saved]) for key in saved[0]}
    result = _result(methods, choices, totals, task, model, second)
    parts.drop()
    return result


def _choices(
    clip: Clip,
    methods: Sequence[ClassMethod],
    task: LabelTask,
    texts: Texts,
    parts: Checkpoints,
) -> dict[tuple[str, Among], TunedLabels]:
    found: dict[tuple[str, Among], TunedLabels] = {}
    examples = [task.dev[i] for i in range(len(task.dev))]
    for number, method in enumerate(tracked(methods, "tuning", shown=True)):
        name = f"choices-{number:02}"
        if name not in parts.names():
            chosen = tune(clip, method, examples, texts, scale=task.scale)
            tensors: dict[str, Tensor] = {}
            infos: dict[str, Any] = {}
            for among, choice in chosen.items():
                tensors[f"{among}/mean"] = choice.mean.clone()
                tensors[f"{among}/deviation"] = choice.deviation.clone()
                tensors[f"{among}/level"] = torch.tensor([choice.level], dtype=torch.float64)
                infos[among] = {
                    "variant": choice.variant,
                    "form": choice.form,
                    "miou": choice.miou,
                }
            parts.save(name, tensors, infos)
        for among in AMONG:
            info = parts.info(name)[among]
            kept = parts.tensors(name, f"{among}/")
            found[method.name, among] = TunedLabels(
                variant=info["variant"],
                form=info["form"],
                level=float(kept["level"]),
                miou=info["miou"],
                mean=kept["mean"],
                deviation=kept["deviation"],
            )
    return found


def _counted(
    clip: Clip,
    methods: Sequence[ClassMethod],
    examples: Sequence[Labelled],
    task: LabelTask,
    texts: Texts,
    choices: dict[tuple[str, Among], TunedLabels],
) -> dict[str, Float[Tensor, "images classes 3"]]:
    """Counts of images by method, way and among which classes."""
    found: dict[str, list[Tensor]] = {}
    for example in examples:
        true = torch.from_numpy(example.labels)
        for method in methods:
            own = None
            if method.own is not None:
                read = method.own_maps or next(iter(method.variants.values()))
                own = text_maps(clip, read, example.image, texts.plain, task.scale).cpu()
            tuned: dict[tuple[str, bool], Tensor] = {}
            for among in AMONG:
                there = true if among == "present" else None
                choice = choices[method.name, among]
                key = (choice.variant, choice.form == "plain")
                if key not in tuned:
                    rows = texts.plain if choice.form == "plain" else texts.centred
                    read = method.variants[choice.variant]
                    tuned[key] = text_maps(clip, read, example.image, rows, task.scale).cpu()
                labels = {"tuned": tuned_labels(tuned[key], texts, choice, there)}
                if method.own is not None and own is not None:
                    labels["own"] = published_labels(own, example.image, texts, method.own, there)
                for way, said in labels.items():
                    counted_as = f"{method.name}|{way}|{among}"
                    found.setdefault(counted_as, []).append(counts(said, true, texts.classes))
    return {key: torch.stack(each) for key, each in found.items()}


LABELS = {"tuned": "tuned alike", "own": "the paper's own"}
CLASSES = {"all": "all classes", "present": "classes in the picture"}


def _result(
    methods: Sequence[ClassMethod],
    choices: dict[tuple[str, Among], TunedLabels],
    totals: dict[str, Tensor],
    task: LabelTask,
    model: str,
    second: Clip | None,
) -> Result:
    rows: list[Row] = []
    for among in AMONG:
        ahead = {name: totals[f"{name}|tuned|{among}"] for name in (OURS, MIXED)}
        for way in WAYS:
            for method in methods:
                key = f"{method.name}|{way}|{among}"
                if key not in totals:
                    continue
                found = score(totals[key])
                less: dict[str, tuple[float | None, float | None]] = {}
                for name, ours in ahead.items():
                    less[name] = (None, None)
                    if method.name != name:
                        low, high = paired_difference(ours, totals[key])
                        less[name] = (100 * low, 100 * high)
                choice = choices[method.name, among]
                rows.append(
                    {
                        "among": CLASSES[among],
                        "labels": LABELS[way],
                        "method": method.name,
                        "mIoU": 100 * found.miou,
                        "accuracy": 100 * found.accuracy,
                        "class accuracy": 100 * found.class_accuracy,
                        "neurons minus this, low": less[OURS][0],
                        "neurons minus this, high": less[OURS][1],
                        "mixture minus this, low": less[MIXED][0],
                        "mixture minus this, high": less[MIXED][1],
                        "texts": choice.form if way == "tuned" else "plain",
                        "published": _published(task, method.name, way, among),
                    }
                )
    tested = len(next(iter(totals.values())))
    compact: list[Row] = [_compact(row) for row in rows]
    return Result(
        name="multiclass",
        title=f"{task.name}, {len(task.classes)} classes ({counted(tested, 'picture')})",
        rows=rows,
        compact=compact,
        divided_by=["among", "labels"],
        settings=_settings(task, model),
        notes=[
            "In %; mIoU over classes as MMSegmentation counts it; neurons − and mixture −: 95 % "
            "interval of tuned neurons, and of neurons with patches and heads, minus the row, in "
            "mIoU; published: by NACLIP's authors."
        ],
        facts={
            "set": task.name,
            "classes": len(task.classes),
            "background": task.classes[0] == BACKGROUND,
            "texts": len(task.queries.classes),
            "dev images": len(task.dev),
            "test images": tested,
            "second model": None if second is None else second.name,
            "choices": {
                f"{name}, {among}": {
                    "variant": choice.variant,
                    "form": choice.form,
                    "level": choice.level if choice.level > -torch.inf else None,
                    "dev mIoU": choice.miou,
                }
                for (name, among), choice in choices.items()
            },
        },
    )


def _compact(row: Row) -> Row:
    """With both intervals in a cell each, so that the names of methods have room."""

    def interval(whose: str) -> str | None:
        low, high = (row[f"{whose} minus this, {end}"] for end in ("low", "high"))
        return None if low is None else f"{low:+.1f}…{high:+.1f}"

    kept = ("among", "labels", "method", "mIoU", "accuracy")
    return {
        **{key: row[key] for key in kept},
        "neurons −": interval("neurons"),
        "mixture −": interval("mixture"),
        "published": row["published"],
    }


def _published(task: LabelTask, method: str, way: str, among: Among) -> float | None:
    if (method, way, among) == ("NACLIP", "own", "all"):
        return EXPECTED.get(task.name)
    return None


def _settings(task: LabelTask, model: str) -> list[Setting]:
    seen = "squeezed whole" if task.scale is None else f"short side {task.scale:g} of the model's"
    return [
        Setting(name="model", ours=model, paper="ViT-B-16 (openai)"),
        Setting(name="pictures measured", ours=f"{len(task.test):,}", paper="all"),
        Setting(name="what is seen", ours=seen, paper="short side 1.5 of the model's"),
    ]
