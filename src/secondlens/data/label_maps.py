"""Sets of images whose every pixel has a class, as they lie on disk, and the embedded world as one.

A set is anything with `len`, `[index]` and `classes`. Label maps hold the number of a class, from 0
on, or -1 (`IGNORE`) where nobody has said. Sets that have a class "background" have it first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int16
from PIL import Image

from ..demo.scenes import World
from ..demo.world import BACKGROUNDS, NAMES
from ..errors import SecondLensError
from . import label_sets
from .decoding import open_picture
from .label_classes import ADE20K, CITYSCAPES, COCO_OBJECTS, COCO_STUFF, CONTEXT, VOC
from .masked import IGNORE, around, pixels_of, text_of
from .vocabularies import Vocabulary, class_names, prompts, read_lines

BACKGROUND = "background"
UNKNOWN = 255
"""Of the values in files, the one that is ignored everywhere."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """An image and the class of each of its pixels.

    Raises
    ------
    SecondLensError
        The label map has another size than the image.
    """

    id: str
    image: Image.Image
    labels: Int16[np.ndarray, "height width"]

    def __post_init__(self) -> None:
        height, width = self.labels.shape
        if (height, width) != (self.image.height, self.image.width):
            raise SecondLensError(
                f"{self.id} is {self.image.width} x {self.image.height} pixels and its label map "
                f"{width} x {height}: give a label map of the image's size"
            )


@runtime_checkable
class LabelledImages(Protocol):
    """A set of images with label maps."""

    @property
    def name(self) -> str:
        """A member of `label_sets`."""

    @property
    def classes(self) -> Sequence[str]:
        """In the order of the labels."""

    def __len__(self) -> int:
        """How many images."""

    def __getitem__(self, index: int, /) -> Labelled:
        """Image `index` with its label map."""


def label_maps(path: str | Path, name: str) -> LabelledImages:
    """A set of images with label maps in a folder.

    Parameters
    ----------
    path
        The folder of the set, or one above or below it.
    name
        A member of `label_sets`: what lies in the folder does not say whether background counts.

    Raises
    ------
    SecondLensError
        No such folder or name, or the folder is laid out in another way.
    """
    member = label_sets[name]
    if not Path(path).is_dir():
        raise SecondLensError(f"there is no folder {path} of images with label maps")
    if (found := member(Path(path).absolute())) is None:
        raise SecondLensError(
            f"{path} is not laid out as {name} ({member.help}): name its folder, or another set of "
            "`secondlens list label-sets`"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Files:
    """Pictures and PNGs of values, and what each value is.

    Raises
    ------
    SecondLensError
        There are no pictures, or a value in a PNG that the set does not have.
    """

    name: str
    classes: Sequence[str]
    pairs: Sequence[tuple[Path, Path]]
    """Of a picture and its PNG."""
    numbers: Mapping[int, int]
    """The number of a class by value; values that are not there are ignored."""
    table: Int16[np.ndarray, " values"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.pairs:
            raise SecondLensError(f"there are no pictures with label maps of {self.name}")
        table = np.full(UNKNOWN + 1, IGNORE, np.int16)
        for value, number in self.numbers.items():
            table[value] = number
        object.__setattr__(self, "table", table)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Labelled:
        picture, values = self.pairs[index]
        pixels = pixels_of(values)
        if pixels.max(initial=0) > UNKNOWN:
            raise SecondLensError(f"{values} holds {pixels.max()}: {self.name} has at most 255")
        return Labelled(
            id=picture.stem, image=open_picture(picture), labels=self.table[pixels.astype(np.uint8)]
        )


def _counted(classes: Sequence[str], *, background: bool) -> dict[int, int]:
    """Values 1, 2, ... by class; with `background`, value 0 is the first class."""
    if background:
        return {value: value for value in range(len(classes))}
    return {value: value - 1 for value in range(1, len(classes) + 1)}


def _listed(
    path: Path, name: str, names: Sequence[str], masks: str, lists: str, *, background: bool
) -> Files | None:
    """A set in the layout of Pascal VOC, whose validation images a file lists."""
    root = around(path, lambda each: (each / masks).is_dir())
    if root is None:
        return None
    listing = root / "ImageSets" / lists / "val.txt"
    if not listing.is_file():
        raise SecondLensError(f"{root} has no {listing.relative_to(root)}: {name} needs it")
    classes = (BACKGROUND, *names) if background else tuple(names)
    return Files(
        name=name,
        classes=classes,
        pairs=[
            (root / "JPEGImages" / f"{each}.jpg", root / masks / f"{each}.png")
            for each in text_of(listing).split()
        ],
        numbers=_counted(classes, background=background),
    )


def voc20(path: Path) -> Files | None:
    """The member "voc20" of `label_sets`: VOCdevkit, a year in it, or a folder in that."""
    return _listed(path, "voc20", VOC, "SegmentationClass", "Segmentation", background=False)


def voc21(path: Path) -> Files | None:
    """The member "voc21" of `label_sets`: as voc20, with background as a class."""
    return _listed(path, "voc21", VOC, "SegmentationClass", "Segmentation", background=True)


CONTEXT_FOLDERS = ("SegmentationClassContext", "SegmentationContext")


def context59(path: Path) -> Files | None:
    """The member "context59" of `label_sets`: VOC2010 with Context's 59 classes."""
    return _listed(path, "context59", CONTEXT, *CONTEXT_FOLDERS, background=False)


def context60(path: Path) -> Files | None:
    """The member "context60" of `label_sets`: as context59, with background as a class."""
    return _listed(path, "context60", CONTEXT, *CONTEXT_FOLDERS, background=True)


def _beside(
    path: Path,
    name: str,
    pictures: str,
    masks: str,
    endings: Mapping[str, Mapping[int, int]],
    classes: Sequence[str],
    ending: str = ".jpg",
) -> Files | None:
    """A set whose PNGs lie in a folder like that of the pictures.

    `endings` says by the end of a PNG's name what its values are; the first that is there counts.
    """
    root = around(path, lambda each: (each / pictures).is_dir() and (each / masks).is_dir())
    if root is None:
        return None
    found = sorted((root / pictures).rglob(f"*{ending}"))
    for end, numbers in endings.items():
        pairs = []
        for picture in found:
            below = picture.relative_to(root / pictures)
            stem = below.name.removesuffix(ending)
            pairs.append((picture, root / masks / below.with_name(f"{stem}{end}")))
        there = [pair for pair in pairs if pair[1].is_file()]
        if len(there) == len(pairs):
            return Files(name=name, classes=classes, pairs=pairs, numbers=numbers)
        if there:
            lost = next(pair[1] for pair in pairs if pair not in there)
            raise SecondLensError(f"there is no label map {lost}: {name} needs one a picture")
    return None


def ade20k(path: Path) -> Files | None:
    """The member "ade20k" of `label_sets`: ADEChallengeData2016."""
    return _beside(
        *(path, "ade20k", "images/validation", "annotations/validation"),
        {".png": _counted(ADE20K, background=False)},
        ADE20K,
    )


CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Of the classes for training, in the PNGs as they are handed out."""


def cityscapes(path: Path) -> Files | None:
    """The member "cityscapes" of `label_sets`: leftImg8bit and gtFine, as handed out or with the
    label maps for training beside."""
    return _beside(
        *(path, "cityscapes", "leftImg8bit/val", "gtFine/val"),
        {
            "_gtFine_labelTrainIds.png": {number: number for number in range(len(CITYSCAPES))},
            "_gtFine_labelIds.png": {value: n for n, value in enumerate(CITYSCAPES_IDS)},
        },
        CITYSCAPES,
        "_leftImg8bit.png",
    )


COCO_FOLDERS = ("images/val2017", "annotations/val2017")
COCO_CLASSES = (*COCO_OBJECTS, *COCO_STUFF)
COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Values that no class has in COCO-Stuff's PNGs as they are handed out."""


def coco_object(path: Path) -> Files | None:
    """The member "coco-object" of `label_sets`: PNGs `*_instanceTrainIds.png`, background first."""
    classes = (BACKGROUND, *COCO_OBJECTS)
    endings = {"_instanceTrainIds.png": _counted(classes, background=True)}
    return _beside(path, "coco-object", *COCO_FOLDERS, endings, classes)


def coco_stuff(path: Path) -> Files | None:
    """The member "coco-stuff" of `label_sets`: PNGs as handed out, or `*_labelTrainIds.png`."""
    values = [value for value in range(182) if value not in COCO_GAPS]
    endings = {
        "_labelTrainIds.png": {number: number for number in range(len(COCO_CLASSES))},
        ".png": {value: number for number, value in enumerate(values)},
    }
    return _beside(path, "coco-stuff", *COCO_FOLDERS, endings, COCO_CLASSES)


@dataclass(frozen=True, kw_only=True)
class WorldLabels:
    """Scenes of the embedded world: every pixel is of an object, or of what is behind.

    What is behind is one class "background", or with `background=False` ignored.
    """

    world: World
    seed: int
    count: int
    background: bool = True
    single: bool = False
    """Whether every scene shows one object only."""

    @property
    def name(self) -> str:
        """As `label_sets` would call it."""
        return "world" if self.background else "world-objects"

    @property
    def classes(self) -> Sequence[str]:
        """All objects of the world."""
        return (BACKGROUND, *NAMES) if self.background else NAMES

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Labelled:
        scene = self.world.scene(self.seed, index, count=1 if self.single else None)
        behind = 0 if self.background else IGNORE
        labels = np.full(scene.masks.shape[1:], behind, np.int16)
        for name, mask in zip(scene.objects, scene.masks, strict=True):
            labels[mask] = self.classes.index(name)
        return Labelled(id=f"scene-{self.seed}-{index}", image=scene.image, labels=labels)


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Texts for the classes of a set: a class may have several, of which the best counts."""

    vocabulary: Vocabulary
    classes: tuple[int, ...]
    """Of each text of the vocabulary."""

    def __post_init__(self) -> None:
        if len(self.vocabulary) != len(self.classes):
            raise SecondLensError("every text needs the number of its class")


def world_queries(classes: Sequence[str]) -> Queries:
    """Texts for the embedded world's classes; background is every colour and place."""
    names = [BACKGROUNDS if label == BACKGROUND else (label,) for label in classes]
    labels, numbers = _every(names)
    prompted = tuple(map(prompts, labels))
    return Queries(
        vocabulary=Vocabulary(name="classes", labels=labels, prompts=prompted), classes=numbers
    )


def named(classes: Sequence[str], expansions: Path | None = None) -> Queries:
    """Texts for the classes of a set, each in OpenAI's 80 prompts.

    Parameters
    ----------
    classes
        As the set has them; without `expansions`, their own names.
    expansions
        A file with one line for each class, in their order: names for it, between commas.

    Raises
    ------
    SecondLensError
        The file has not one line for each class, or cannot be read.
    """
    lines = list(classes)
    if expansions is not None:
        lines = [line for line in read_lines(expansions) if line.strip(" ,")]
        if len(lines) != len(classes):
            raise SecondLensError(
                f"{expansions} has {len(lines)} lines and the set {len(classes)} classes: give a "
                "line for each class, in their order"
            )
    labels, numbers = _every([line.split(",") for line in lines])
    return Queries(vocabulary=class_names("classes", labels), classes=numbers)


def _every(names: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """All names of all classes, and the number of the class of each."""
    pairs = [
        (name.strip(), number) for number, some in enumerate(names) for name in some if name.strip()
    ]
    return tuple(name for name, _ in pairs), tuple(number for _, number in pairs)
