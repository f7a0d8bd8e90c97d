"""COCO: instances and panoptic segments, a mask for each class in an image."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from ..errors import SecondLensError
from ..storage.regular import read_bounded
from .decoding import open_picture
from .masked import IGNORE, Example, around, pixels_of, refuse_options

LARGEST_ANNOTATIONS = 2**30
"""Bytes of a file of annotations; COCO's largest has half as many."""


@dataclass(frozen=True)
class Annotations:
    """One file of COCO's annotations, by image."""

    path: Path
    pictures: Path
    images: Sequence[Mapping[str, Any]]
    by_image: Mapping[int, Sequence[Mapping[str, Any]]]
    names: Mapping[int, str]
    """Of categories, by their numbers."""

    @classmethod
    def load(cls, path: Path) -> "Annotations":
        """Read a file, and find its pictures.

        Raises
        ------
        SecondLensError
            The file is not one of COCO's, or its pictures are not beside it.
        """
        try:
            content = json.loads(read_bounded(path, LARGEST_ANNOTATIONS))
            by_image = defaultdict(list)
            for each in content["annotations"]:
                by_image[int(each["image_id"])].append(each)
            categories = sorted(content["categories"], key=lambda each: int(each["id"]))
            names = {int(each["id"]): str(each["name"]) for each in categories}
            images = sorted(content["images"], key=lambda each: int(each["id"]))
            first = str(images[0]["file_name"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise SecondLensError(f"{path} is not a file of COCO's annotations: {error}") from error
        return cls(path, _pictures_of(path, first), images, by_image, names)

    def picture(self, image: Mapping[str, Any]) -> Image.Image:
        """The picture of an image."""
        return open_picture(self.pictures / str(image["file_name"]))


class _Coco:
    def __init__(self, path: str | Path) -> None:
        self.annotations = Annotations.load(Path(path))

    @property
    def classes(self) -> Sequence[str]:
        """Names of all categories, in the order of their numbers."""
        return list(self.annotations.names.values())

    def __len__(self) -> int:
        return len(self.annotations.images)

    def _example(
        self, image: Mapping[str, Any], masks: Mapping[int, np.ndarray], unknown: np.ndarray
    ) -> Example:
        """One mask for each category; pixels of nobody's category are IGNORE in all of them."""
        numbers = [number for number in sorted(masks) if masks[number].any()]
        stacked = [np.where(unknown & ~masks[n], IGNORE, masks[n]).astype(np.int8) for n in numbers]
        return Example(
            id=str(image["file_name"]),
            image=self.annotations.picture(image),
            labels=tuple(self.annotations.names[number] for number in numbers),
            masks=np.stack(stacked) if stacked else np.empty((0, *unknown.shape), np.int8),
        )


class CocoInstances(_Coco):
    """`instances_*.json`: the union of all objects of a class; crowds are ignored, as COCO does.

    Raises
    ------
    SecondLensError
        pycocotools is missing, another file, or no pictures beside it.
    """

    def __init__(self, path: str | Path) -> None:
        _pycocotools()
        super().__init__(path)

    def __getitem__(self, index: int) -> Example:
        image = self.annotations.images[index]
        shape = int(image["height"]), int(image["width"])
        masks: dict[int, np.ndarray] = {}
        unknown = np.zeros(shape, bool)
        for each in self.annotations.by_image.get(int(image["id"]), ()):
            mask = self._mask(each, shape)
            if each.get("iscrowd"):
                unknown |= mask
            else:
                number = int(each["category_id"])
                masks[number] = masks.get(number, np.zeros(shape, bool)) | mask
        return self._example(image, masks, unknown)

    def _mask(self, annotation: Mapping[str, Any], shape: tuple[int, int]) -> np.ndarray:
        """Polygons, or runs that are compressed or not, as pixels."""
        coded: Any = annotation.get("segmentation")
        tools = _pycocotools()
        try:
            if isinstance(coded, list):
                runs = tools.merge(tools.frPyObjects(coded, *shape))
            elif isinstance(coded["counts"], list):
                runs = tools.frPyObjects(coded, *shape)
            else:
                runs = coded
            found = tools.decode(runs).astype(bool)
        except Exception as error:  # the library raises plain ones too
            raise SecondLensError(
                f"{self.annotations.path} has a damaged mask, {annotation.get('id')}: {error}"
            ) from error
        if found.shape != shape:
            raise SecondLensError(
                f"{self.annotations.path} has a mask, {annotation.get('id')}, of another size "
                "than its image"
            )
        return np.asarray(found)


class CocoPanoptic(_Coco):
    """`panoptic_*.json` and a PNG for each image, whose colour says the segment of each pixel.

    A class is the union of its segments; pixels of none and of crowds are ignored.

    Raises
    ------
    SecondLensError
        Another file, or no pictures or PNGs beside it.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        json_file = self.annotations.path
        places = (json_file.parent / json_file.stem, json_file.parent.parent / json_file.stem)
        found = next((each for each in places if each.is_dir()), None)
        if found is None:
            raise SecondLensError(
                f"{json_file} needs its PNGs in a folder {json_file.stem} beside it: unpack "
                f"{json_file.stem}.zip there"
            )
        self.segments = found

    def __getitem__(self, index: int) -> Example:
        image = self.annotations.images[index]
        (annotation,) = self.annotations.by_image[int(image["id"])]
        channels = pixels_of(self.segments / str(annotation["file_name"]), "RGB").astype(np.int32)
        numbers = channels @ np.array([1, 256, 65_536])
        masks: dict[int, np.ndarray] = {}
        known = np.zeros(numbers.shape, bool)
        for segment in annotation["segments_info"]:
            if segment.get("iscrowd"):
                continue
            mask = numbers == int(segment["id"])
            known |= mask
            number = int(segment["category_id"])
            masks[number] = masks.get(number, np.zeros(numbers.shape, bool)) | mask
        return self._example(image, masks, ~known)


def coco(path: Path, *, names: Path | None, ignore: int | None) -> CocoInstances | None:
    """The member "coco" of `masked_sets`: the file, COCO's folder, or one in it."""
    file = _annotations(path, "instances")
    if file is None:
        return None
    refuse_options("coco", names=names, ignore=ignore)
    return CocoInstances(file)


def coco_panoptic(path: Path, *, names: Path | None, ignore: int | None) -> CocoPanoptic | None:
    """The member "coco-panoptic" of `masked_sets`: the file, COCO's folder, or one in it."""
    file = _annotations(path, "panoptic")
    if file is None:
        return None
    refuse_options("coco-panoptic", names=names, ignore=ignore)
    return CocoPanoptic(file)


def _annotations(path: Path, kind: str) -> Path | None:
    """The file of annotations that is named, or that of the validation images in a folder."""
    if path.is_file():
        return path if path.name.startswith(f"{kind}_") and path.suffix == ".json" else None
    root = around(path, lambda each: any((each / "annotations").glob(f"{kind}_*.json")))
    if root is None:
        return None
    found = sorted((root / "annotations").glob(f"{kind}_*.json"))
    return next((each for each in found if "val" in each.stem), found[0])


def _pictures_of(path: Path, first: str) -> Path:
    """The folder of a file's pictures: val2017 for instances_val2017.json."""
    folder = path.stem.partition("_")[2]
    above = path.parent.parent
    places = (above / folder, above / "images" / folder, above / "images", path.parent / folder)
    for place in (*places, above):
        if (place / first).is_file():
            return place
    raise SecondLensError(f"{path} needs its pictures, such as {above / folder / first}")


def _pycocotools() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError:
        raise SecondLensError(
            "masks of COCO need pycocotools: pip install 'secondlens[segmentation]'"
        ) from None
    tools: ModuleType = mask
    return tools
