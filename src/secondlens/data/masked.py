"""Sets of images with masks: the embedded world, ImageNet-Segmentation, Pascal VOC, ImageNet-S and
plain folders; COCO is in `coco`.

A set is anything with `len` and `[index]` that gives an `Example`. Masks hold 1 where the object
is, 0 where it is not, and -1 (`IGNORE`) where nobody has said.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int8
from PIL import Image
from torch import Tensor

from ..demo.scenes import World
from ..errors import SecondLensError
from ..storage.regular import check_regular, read_bounded
from . import masked_sets
from .decoding import open_picture
from .sources import UNREADABLE
from .splits import folders
from .strays import is_stray

MASKS = ("PNG", "GIF", "BMP", "TIFF")
"""Formats of masks, which lose nothing and start no program."""
IGNORE = -1
"""In masks: what counts nowhere."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image and a mask for each thing that is named in it.

    Raises
    ------
    SecondLensError
        Masks of another size than the image, or not one for each label.
    """

    id: str
    image: Image.Image
    labels: tuple[str | None, ...]
    """Names of classes; None where the set does not say: the model then predicts it."""
    masks: Int8[np.ndarray, "labels height width"]

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.masks):
            raise SecondLensError(
                f"{self.id} has {len(self.labels)} labels and {len(self.masks)} masks: give as many"
            )
        if self.masks.shape[1:] != (self.image.height, self.image.width):
            height, width = self.masks.shape[1:]
            raise SecondLensError(
                f"{self.id} is {self.image.width} x {self.image.height} pixels and its mask "
                f"{width} x {height}: give a mask of the image's size"
            )

    def masks_at(self, size: tuple[int, int]) -> Int8[Tensor, "labels height width"]:
        """Masks at `size` (height, width): each pixel takes the nearest one's value."""
        masks = torch.from_numpy(self.masks)[:, None].float()
        return F.interpolate(masks, size=size, mode="nearest-exact")[:, 0].to(torch.int8)


@runtime_checkable
class MaskedImages(Protocol):
    """A set of examples by position."""

    def __len__(self) -> int:
        """How many images."""

    def __getitem__(self, index: int, /) -> Example:
        """Image `index` with its masks."""


@runtime_checkable
class MaskedSet(MaskedImages, Protocol):
    """A set of examples that says what is labelled in it."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of all labels, in the set's order; none if it does not say."""


def masked(
    path: str | Path,
    layout: str | None = None,
    *,
    names: Path | None = None,
    ignore: int | None = None,
) -> tuple[str, MaskedSet]:
    """A set of images with masks, and the name of its layout.

    Parameters
    ----------
    path
        A file or a folder of the set.
    layout
        A member of `masked_sets`; by default the first that knows what is there.
    names
        For imagenet-s: a file with a wnid and its name on each line.
    ignore
        For folder: the value of ignored pixels.

    Raises
    ------
    SecondLensError
        Nothing is there, no layout or another one; an option that means nothing for it; or what
        the set itself raises.
    """
    if not Path(path).exists():
        raise SecondLensError(f"there is no file or folder {path} of images with masks")
    root = Path(path).absolute()
    asked = reversed([*masked_sets]) if layout is None else [masked_sets[layout]]
    for member in asked:
        if (found := member(root, names=names, ignore=ignore)) is not None:
            return member.name, found
    if layout is None:
        raise SecondLensError(
            f"{path} is not a set of images with masks: name the folder of one that "
            "`secondlens list masked-sets` knows"
        )
    raise SecondLensError(
        f"{path} is not laid out as {layout} ({masked_sets[layout].help}): name its folder, or "
        "drop the layout to have it recognised"
    )


def refuse_options(layout: str, **given: object) -> None:
    """Raise `SecondLensError` for an option that was given and means nothing for a layout."""
    for option, value in given.items():
        if value is not None:
            raise SecondLensError(f"--{option} means nothing for {layout}: drop it")


def around(path: Path, is_root: Callable[[Path], bool]) -> Path | None:
    """The root of a set: a path itself, up to two folders above it, or up to two below.

    Raises
    ------
    SecondLensError
        Several folders below it are roots.
    """
    above = [each for each in (path, *path.parents[:2]) if is_root(each)]
    if above or not path.is_dir():
        return above[0] if above else None
    children = folders(path)
    for level in (children, [below for each in children for below in folders(each)]):
        if found := [each for each in level if is_root(each)]:
            if len(found) > 1:
                several = " and ".join(str(each.relative_to(path)) for each in found)
                raise SecondLensError(f"{path} holds {several}: name one of them")
            return found[0]
    return None


@dataclass(frozen=True)
class Part:
    """Some examples of a set, by position."""

    whole: MaskedImages
    positions: Sequence[int]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Example:
        return self.whole[self.positions[index]]


def split(images: MaskedImages, development: int, seed: int = 0) -> tuple[Part, Part]:
    """Some images for tuning, drawn at random, and all others.

    Raises
    ------
    SecondLensError
        Nothing would be left.
    """
    if development >= len(images):
        raise SecondLensError(
            f"{development} development images of {len(images)} leave none to test on: take fewer"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator).tolist()
    return Part(images, sorted(order[:development])), Part(images, sorted(order[development:]))


def iterate(images: MaskedImages) -> Iterator[Example]:
    """All examples that have anything labelled in them."""
    for index in range(len(images)):
        if (example := images[index]).labels:
            yield example


@dataclass(frozen=True)
class WorldMasks:
    """Scenes of the embedded world; an object is labelled if it is visible somewhere."""

    world: World
    seed: int
    count: int
    single: bool = False
    """Whether every scene shows one object only."""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        scene = self.world.scene(self.seed, index, count=1 if self.single else None)
        visible = [i for i, mask in enumerate(scene.masks) if mask.any()]
        return Example(
            id=f"scene-{self.seed}-{index}",
            image=scene.image,
            labels=tuple(scene.objects[i] for i in visible),
            masks=scene.masks[visible].astype(np.int8),
        )


class ImageNetSegmentation:
    """`gtsegs_ijcv.mat` of Guillaumin et al. 2014: 4,276 images, one unnamed object in each.

    Raises
    ------
    SecondLensError
        No such file, another file, or h5py is not installed.
    """

    classes: Sequence[str] = ()

    def __init__(self, path: str | Path) -> None:
        try:
            import h5py
        except ImportError:
            raise SecondLensError(
                "reading gtsegs_ijcv.mat needs h5py: pip install 'secondlens[segmentation]'"
            ) from None
        try:
            check_regular(Path(path))
            self.file = h5py.File(path)
            self._images, self._masks = self.file["value/img"], self.file["value/gt"]
        except (OSError, KeyError, ValueError):
            raise SecondLensError(
                f"{path} is not the file gtsegs_ijcv.mat of ImageNet-Segmentation: name that file"
            ) from None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        # MATLAB writes cells as references, and its arrays column by column
        pixels = np.asarray(self.file[self._images[index, 0]]).transpose(2, 1, 0)
        mask = np.asarray(self.file[self.file[self._masks[index, 0]][0, 0]]).T
        return Example(
            id=f"image-{index}",
            image=Image.fromarray(pixels),
            labels=(None,),
            masks=_known(mask, 1, np.isin(mask, (0, 1)))[None],
        )


class VOC:
    """Pascal VOC: JPEGImages, SegmentationClass and ImageSets/Segmentation under one folder.

    An image has a mask for each class in it; the other classes are then background, and the
    outlines (255) are ignored.

    Raises
    ------
    SecondLensError
        A part of the layout is missing.
    """

    classes: Sequence[str] = (
        *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
        *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
        *("train", "tvmonitor"),
    )
    """By the values 1 to 20 of its masks."""

    def __init__(self, root: str | Path, split: str = "val") -> None:
        self.root = Path(root)
        listing = self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not listing.is_file():
            raise SecondLensError(f"{root} has no {listing.relative_to(root)}: name a VOC folder")
        self.ids = text_of(listing).split()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        name = self.ids[index]
        values = pixels_of(self.root / "SegmentationClass" / f"{name}.png")
        found = [value for value in np.unique(values).tolist() if 1 <= value <= len(self.classes)]
        return Example(
            id=name,
            image=open_picture(self.root / "JPEGImages" / f"{name}.jpg"),
            labels=tuple(self.classes[value - 1] for value in found),
            masks=_stack([_known(values, value, values != 255) for value in found], values),
        )


class ImageNetS:
    """ImageNet-S: pictures in `validation/<wnid>`, masks in `validation-segmentation/<wnid>`.

    A mask's red + 256 * green is the number of a class, from 1 in the order of the wnids, 0 for
    the rest, or 1000, which is ignored. Every image has one mask: that of its folder's class.

    Parameters
    ----------
    root
        The folder of one edition, such as ImageNetS919.
    names
        A file with a wnid and its name on each line, such as ImageNet's LOC_synset_mapping.txt;
        of several names between commas, the first is taken. Without it, classes are unnamed.

    Raises
    ------
    SecondLensError
        A part of the layout is missing, or a wnid has no name.
    """

    IGNORED = 1000

    def __init__(
        self, root: str | Path, names: str | Path | None = None, split: str = "validation"
    ) -> None:
        self.pictures, masks = Path(root) / split, Path(root) / f"{split}-segmentation"
        if not masks.is_dir() or not self.pictures.is_dir():
            raise SecondLensError(
                f"{root} has no {split} and {masks.name}: name an ImageNet-S folder"
            )
        self.masks = sorted(masks.glob("*/*.png"))
        self.wnids = sorted(folder.name for folder in masks.iterdir() if folder.is_dir())
        self.names = None if names is None else _wnid_names(Path(names), self.wnids)
        self.classes = list(self.names.values()) if self.names else []

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> Example:
        path = self.masks[index]
        wnid = path.parent.name
        channels = pixels_of(path, "RGB").astype(np.int32)
        values = channels[..., 0] + 256 * channels[..., 1]
        number = self.wnids.index(wnid) + 1
        return Example(
            id=f"{wnid}/{path.stem}",
            image=open_picture(self.pictures / wnid / f"{path.stem}.JPEG"),
            labels=(None if self.names is None else self.names[wnid],),
            masks=_known(values, number, values != self.IGNORED)[None],
        )


class MaskFolder:
    """Pictures under `images` and masks of the same name, as PNG, under `masks`.

    In a mask, 0 is background, `ignore` is ignored, and anything else is the object. A picture in
    a folder, such as `images/dog/1.jpg` with `masks/dog/1.png`, has that folder's name as its
    class; others are unnamed.

    Raises
    ------
    SecondLensError
        There are no masks, or one has no picture or several.
    """

    def __init__(self, root: str | Path, ignore: int | None = None) -> None:
        self.root, self.ignore = Path(root), ignore
        masks = (self.root / "masks").rglob("*.png")
        self.masks = sorted(
            each for each in masks if not is_stray(str(each.relative_to(self.root)))
        )
        if not self.masks:
            raise SecondLensError(f"{root} has no masks/*.png: name a folder of images and masks")
        by_name: defaultdict[Path, list[Path]] = defaultdict(list)
        for picture in (self.root / "images").rglob("*"):
            by_name[picture.with_suffix("")].append(picture)
        self.pictures = [self._picture_of(mask, by_name) for mask in self.masks]

    @property
    def classes(self) -> Sequence[str]:
        """Names of all folders that masks are in, sorted."""
        folders = {mask.parent for mask in self.masks} - {self.root / "masks"}
        return sorted({folder.name for folder in folders})

    def _picture_of(self, mask: Path, by_name: Mapping[Path, list[Path]]) -> Path:
        place = self.root / "images" / mask.relative_to(self.root / "masks").with_suffix("")
        found = by_name[place]
        if len(found) != 1:
            raise SecondLensError(
                f"{mask} has {len(found)} pictures in {place.parent}: it needs one"
            )
        return found[0]

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> Example:
        values = pixels_of(self.masks[index], "L" if self.ignore is None else None)
        folder = self.masks[index].parent.relative_to(self.root / "masks").name
        known = values != self.ignore if self.ignore is not None else np.ones_like(values, bool)
        return Example(
            id=str(self.masks[index].relative_to(self.root / "masks").with_suffix("")),
            image=open_picture(self.pictures[index]),
            labels=(folder or None,),
            masks=_known((values != 0).astype(np.uint8), 1, known)[None],
        )


GTSEGS = "gtsegs_ijcv.mat"


def imagenet_segmentation(
    path: Path, *, names: Path | None, ignore: int | None
) -> ImageNetSegmentation | None:
    """The member "imagenet-segmentation" of `masked_sets`: the file, or its folder."""
    file = path / GTSEGS if path.is_dir() else path
    if not file.is_file() or file.suffix != ".mat":
        return None
    refuse_options("imagenet-segmentation", names=names, ignore=ignore)
    return ImageNetSegmentation(file)


def voc(path: Path, *, names: Path | None, ignore: int | None) -> VOC | None:
    """The member "voc" of `masked_sets`: VOCdevkit, a year in it, or a folder in that."""
    root = around(path, lambda each: (each / "SegmentationClass").is_dir())
    if root is None:
        return None
    refuse_options("voc", names=names, ignore=ignore)
    return VOC(root)


def imagenet_s(path: Path, *, names: Path | None, ignore: int | None) -> ImageNetS | None:
    """The member "imagenet-s" of `masked_sets`: an edition, or a folder in it."""
    root = around(path, lambda each: (each / "validation-segmentation").is_dir())
    if root is None:
        return None
    refuse_options("imagenet-s", ignore=ignore)
    return ImageNetS(root, names)


def mask_folder(path: Path, *, names: Path | None, ignore: int | None) -> MaskFolder | None:
    """The member "folder" of `masked_sets`: a folder with images and masks, or one of these."""
    if path.name in ("images", "masks"):
        path = path.parent
    if not ((path / "images").is_dir() and (path / "masks").is_dir()):
        return None
    refuse_options("folder", names=names)
    return MaskFolder(path, ignore)


def _known(values: np.ndarray, object_value: int, known: np.ndarray) -> np.ndarray:
    """1 where `values` is the object's, 0 elsewhere, and IGNORE where nothing is known."""
    return np.where(known, values == object_value, IGNORE).astype(np.int8)


def _stack(masks: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    return np.stack(masks) if masks else np.empty((0, *like.shape), np.int8)


def pixels_of(path: Path, mode: str | None = None) -> np.ndarray:
    """Pixels of a mask, in a mode of PIL's; by default one number each, palettes as indices."""
    try:
        check_regular(path)
        with Image.open(path, formats=MASKS) as image:
            values = np.asarray(image if mode is None else image.convert(mode))
    except UNREADABLE as error:
        raise SecondLensError(f"{path} cannot be read as a mask: {error}") from error
    if mode is None and values.ndim != 2:
        raise SecondLensError(f"{path} is a mask in colours: save one with a number for each pixel")
    return values


LARGEST_LIST = 2**26
"""Bytes of a list of images or names."""


def text_of(path: Path) -> str:
    """The text of a list of images or names, in UTF-8."""
    try:
        return read_bounded(path, LARGEST_LIST).decode()
    except (OSError, ValueError) as error:
        raise SecondLensError(f"{path} cannot be read: {error}") from error


def _wnid_names(path: Path, wnids: list[str]) -> dict[str, str]:
    lines = [line.split(maxsplit=1) for line in text_of(path).splitlines() if line.strip()]
    names = {line[0]: line[-1].split(",")[0].strip() for line in lines}
    if missing := [wnid for wnid in wnids if wnid not in names]:
        raise SecondLensError(f"{path} has no name for {missing[0]}: add a line for it")
    return names
