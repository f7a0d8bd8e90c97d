"""The whole of Table 4 in one call: data, lens, tuning, measuring, writing."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import Progress

from ...clip.view import Clip
from ...demo.pictures import FIT_SEED, Scenes
from ...demo.scenes import World
from ...errors import SecondLensError
from ...fit.fit import fit
from ...lens import Lens
from ...texts import Vocabulary, vocabulary
from ...texts.world import object_names
from .batches import IMAGES_PER_BATCH, Classes, batches
from .data import VOC, ImageNetS, ImageNetSegmentation, MaskFolder, WorldMasks
from .examples import MaskedImages, Part, split
from .methods import table4
from .pictures import comparison_grid
from .protocol import measure, tune
from .table import Row, rows, tables, write

DEV_SEED, TEST_SEED = 21, 22
"""Of scenes that nothing else is made from."""

SHOWN = 8
"""Images in the picture grid."""

TEMPLATE = "a photo of a {}"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What to segment: images to tune on, other images to test on, and their classes."""

    name: str
    dev: MaskedImages
    test: MaskedImages
    classes: Vocabulary


def check_sources(*, demo: bool, model: str, data: Path | None, lens: Path | None) -> None:
    """Raise `SecondLensError` unless there is the embedded world, or data and a lens."""
    if demo and (data is not None or not model.startswith("demo")):
        raise SecondLensError("--demo has its own model and data: drop --model and --images")
    if not demo and (data is None or lens is None):
        raise SecondLensError("name data with --images and a lens with --lens, or take --demo")


def demo_work(*, images: int, dev: int) -> Work:
    """Scenes of the embedded world, a mask for every visible object."""
    world = World()
    return Work(
        name="embedded world",
        dev=WorldMasks(world, DEV_SEED, dev),
        test=WorldMasks(world, TEST_SEED, images),
        classes=object_names(),
    )


def demo_lens(clip: Clip, images: int) -> Lens:
    """A lens on scenes that are neither tuned nor tested on."""
    return fit(clip, Scenes(World(), FIT_SEED, images), progress=True)


def data_work(
    path: Path,
    layout: str,
    *,
    classes: Path | None,
    names: Path | None,
    ignore: int | None,
    images: int,
    dev: int,
) -> Work:
    """Images from files, some of them set aside for tuning.

    Parameters
    ----------
    path, names, ignore
        What the classes in `data` take.
    layout
        `imagenet-segmentation`, `voc`, `imagenet-s` or `folder`.
    classes
        A file with one class a line; by default the classes that the data name, each as "a photo
        of a ...", or ImageNet's with their 80 prompts where the data name none.

    Raises
    ------
    SecondLensError
        Data that are not there or not laid out so, or too few images.
    """
    found: MaskedImages
    labels: Sequence[str] = ()
    if layout == "imagenet-segmentation":
        found = ImageNetSegmentation(path)
    elif layout == "voc":
        found, labels = VOC(path), VOC.CLASSES
    elif layout == "imagenet-s":
        found = named = ImageNetS(path, names)
        labels = list(named.names.values()) if named.names else ()
    else:
        found = folder = MaskFolder(path, ignore)
        labels = sorted(folder.classes)
    tuning, rest = split(found, dev)
    if labels or classes is not None:
        texts = vocabulary(classes or labels, templates=[TEMPLATE])
    else:
        texts = vocabulary("imagenet")
    return Work(
        name=f"{layout} in {path}",
        dev=tuning,
        test=Part(found, rest.positions[:images]),
        classes=texts,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """All methods measured on some work."""

    rows: list[Row]
    grid: Image.Image
    """Some images with every method's mask."""
    facts: dict[str, Any]
    """What was measured on what, and what was chosen for each method."""


def compare(clip: Clip, lens: Lens, work: Work, *, predicted: bool) -> Compared:
    """Tune all methods on some images and measure them on others."""
    methods = table4(clip, lens)
    classes = Classes(clip, work.classes, predicted)
    with Progress() as progress:
        steps = -(-len(work.dev) // IMAGES_PER_BATCH), -(-len(work.test) // IMAGES_PER_BATCH)
        tuning = progress.track(
            batches(clip, work.dev, classes), total=steps[0], description="tuning"
        )
        choices = tune(methods, tuning)
        testing = progress.track(
            batches(clip, work.test, classes), total=steps[1], description="testing"
        )
        comparison = measure(methods, choices, testing)
    first = Part(work.test, range(min(SHOWN, len(work.test))))
    shown = next(batches(clip, first, classes, size=SHOWN))
    facts = {
        "model": lens.model,
        "data": work.name,
        "dev images": len(work.dev),
        "test images": len(set(comparison.images)),
        "maps": len(comparison.images),
        "predicted classes": predicted,
        "choices": {name: asdict(choice) for name, choice in choices.items()},
    }
    grid = comparison_grid(methods, choices, shown)
    return Compared(rows=rows(comparison), grid=grid, facts=facts)


def run(
    clip: Clip, lens: Lens, work: Work, out: Path, *, predicted: bool, console: Console
) -> Compared:
    """Tune, measure, print the tables, and write them and the picture grid into `out`."""
    found = compare(clip, lens, work, predicted=predicted)
    for table in tables(found.rows):
        console.print(table)
    write(found.rows, found.grid, out, found.facts)
    console.print(f"{out}: table4.csv, table4.json, table4.png", markup=False, highlight=False)
    return found
