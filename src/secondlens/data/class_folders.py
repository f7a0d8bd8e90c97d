"""Labelled sets whose pictures are files: class folders, splits of them, ImageNet's flat `val`."""

import csv
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ..errors import SecondLensError
from .folder import Folder, ImageFolder
from .labelled import KeyedPictures, LabelledSet, imagenet_names
from .sources import Subset
from .splits import (
    PREFERRED,
    TRAIN,
    VALIDATION,
    first_picture,
    folders,
    has_class_folders,
    has_pictures,
    split_folders,
    split_name,
)
from .tar import LARGEST_NOTE, Tar

# --- class folders ---


def class_folders(root: Path) -> LabelledSet | None:
    """The member "class-folders" of `labelled_sets`, which takes any folder."""
    if not root.is_dir():
        return None
    return LabelledSet(test=partial(_in_folders, root, root.name))


def _in_folders(root: Path, name: str) -> KeyedPictures:
    """Pictures in class folders.

    Raises
    ------
    SecondLensError
        No pictures, pictures in no class folder, splits that would be taken for classes, or a
        class folder without pictures.
    """
    found = ImageFolder(root)
    if (root / "SegmentationClass").is_dir() or any((root / "annotations").glob("*.json")):
        raise SecondLensError(
            f"{root} is a set with masks, not with a class for each picture: `secondlens reproduce "
            "table4 --images` reads it"
        )
    if parts := [each for each in split_folders(root).values() if has_class_folders(each)]:
        raise SecondLensError(
            f"{root} holds {parts[0].name} and other folders, which are not classes side by side: "
            f"name the folder that has one folder for each class, such as {parts[0]}"
        )
    if set(map(split_name, found.classes)) <= {*PREFERRED, TRAIN}:
        raise SecondLensError(
            f"{root} holds pictures in {' and '.join(found.classes)}, which are not classes, and "
            f"no labels for them: {NEEDED}"
        )
    below = [each.name for each in folders(root)]
    if empty := [each for each in below if each not in found.classes]:
        raise SecondLensError(
            f"there are no pictures in {root / empty[0]}: add some of that class, or remove it"
        )
    if len(found.classes) == 1 and has_class_folders(root / found.classes[0]):
        raise SecondLensError(
            f"{root} has one folder only, which holds others: name {root / found.classes[0]} if "
            "those are the classes"
        )
    keys = [found.classes[label] for label in found.labels]
    return KeyedPictures(name=name, source=found, keys=keys)


# --- splits of class folders ---


def splits(root: Path) -> LabelledSet | None:
    """The member "splits" of `labelled_sets`: class folders in folders such as train and val.

    A part may be named too: its neighbour train is then what a lens is fitted on.
    """
    if split_name(root.name) and has_class_folders(root):
        training = _training_in(root.parent)
        return LabelledSet(
            test=partial(_split, root),
            training=None if split_name(root.name) == TRAIN else training,
        )
    found = {name: each for name, each in split_folders(root).items() if has_class_folders(each)}
    others = [each for each in folders(root) if split_name(each.name) is None]
    if not found or any(has_pictures(each) or has_class_folders(each) for each in others):
        return None
    chosen = next((found[name] for name in PREFERRED if name in found), None)
    return LabelledSet(
        test=partial(_without_test, root) if chosen is None else partial(_split, chosen),
        training=_training_in(root),
        parts=tuple(each.name for each in split_folders(root).values()),
    )


def _split(root: Path) -> KeyedPictures:
    split = split_name(root.name)
    found = _in_folders(root, f"{root.parent.name} {split}")
    return called_imagenet(found) if split == VALIDATION else found


def called_imagenet(found: KeyedPictures) -> KeyedPictures:
    """With ImageNet's own name if there are pictures of all its classes."""
    if set(found.keys) != set(imagenet_names()):
        return found
    return KeyedPictures(name="ImageNet validation", source=found.source, keys=found.keys)


def _without_test(root: Path) -> KeyedPictures:
    raise SecondLensError(
        f"{root} has no folder val: {NEEDED}; or name {root / 'train'} to measure on that"
    )


def _training_in(root: Path) -> Callable[[], Folder] | None:
    found = split_folders(root).get(TRAIN)
    return None if found is None else partial(Folder, found)


# --- ImageNet with a flat val ---

_FLAT_NAME = re.compile(r"ILSVRC20\d\d_val_(\d{8})")

_KAGGLE = ("CLS-LOC", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")
"""The folder with the splits, from whatever folder of Kaggle's tree."""

_ABOVE = 5
"""Folders up from `val` in which labels are looked for; the root of Kaggle's tree is the fourth."""

KAGGLE = "LOC_val_solution.csv"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"

NEEDED = (
    "it needs a folder val with one folder of pictures for each class, such as "
    "val/n01440764/ILSVRC2012_val_00000293.JPEG, or ImageNet's pictures in val and beside it "
    f"Kaggle's {KAGGLE} or the unpacked ILSVRC2012_devkit_t12; and, to fit a lens on, a folder "
    "train with one folder for each class"
)


def imagenet(root: Path) -> LabelledSet | None:
    """The member "imagenet" of `labelled_sets`: all pictures in `val` itself, labels in a file.

    The path may be `val`, the folder that it is in, or any folder of Kaggle's tree.
    """
    trees = [root / place for place in _KAGGLE]
    for val in (root, root / "ILSVRC2012_img_val", *(each / "val" for each in (root, *trees))):
        if _FLAT_NAME.match(first_picture(val)):
            training = _training_in(val.parent)
            parts = (val.name, TRAIN) if val != root and training is not None else ()
            return LabelledSet(test=partial(_flat, val), training=training, parts=parts)
    # somebody may have moved the pictures into class folders, as PyTorch's examples do
    return next((found for each in trees if (found := splits(each)) is not None), None)


def _flat(val: Path) -> KeyedPictures:
    """ImageNet's validation pictures with the labels that lie beside them.

    Raises
    ------
    SecondLensError
        No labels, or not of all pictures.
    """
    folder = Folder(val)
    return by_number(folder, val, f"{val.parent.name} validation")


def by_number(folder: Folder | Tar, val: Path, name: str) -> KeyedPictures:
    """ImageNet's validation pictures of a folder or archive, by the labels that lie beside it.

    Raises
    ------
    SecondLensError
        As `_flat`.
    """
    wnids = _flat_labels(val)
    numbers = {
        position: int(match[1])
        for position, each in enumerate(folder.ids)
        if "/" not in each and (match := _FLAT_NAME.match(each))
    }
    for position, each in enumerate(folder.ids):
        if position not in numbers:
            folder.damaged[each] = "left out: its name is not that of a picture with a label"
    if missing := [number for number in numbers.values() if number not in wnids]:
        raise SecondLensError(f"the labels of {val} have none for picture {missing[0]}")
    found = KeyedPictures(
        name=name,
        source=Subset(folder, list(numbers)),
        keys=[wnids[number] for number in numbers.values()],
    )
    return called_imagenet(found)


def _flat_labels(val: Path) -> dict[int, str]:
    """Number of a picture -> wordnet id."""
    for folder in list(val.parents)[:_ABOVE]:
        if (folder / KAGGLE).is_file():
            return dict(_from_kaggle(folder / KAGGLE))
        for place in (".", "data", "devkit/data", "ILSVRC2012_devkit_t12/data"):
            if (folder / place / GROUND_TRUTH).is_file():
                return _from_devkit(folder / place / GROUND_TRUTH)
        if (folder / DEVKIT).is_file():
            return _from_packed_devkit(folder / DEVKIT)
    raise SecondLensError(
        f"{val} holds pictures and no class folders, and there are no labels: put Kaggle's "
        f"{KAGGLE}, or the ILSVRC2012_devkit_t12, into {val.parent}"
    )


def _from_kaggle(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                # the class and its box, again and again
                yield int(row["ImageId"].rpartition("_")[2]), row["PredictionString"].split()[0]
    except (OSError, UnicodeDecodeError, LookupError, ValueError, csv.Error) as error:
        raise SecondLensError(f"{path} is not Kaggle's table of labels: {error}") from error


def _from_devkit(path: Path) -> dict[int, str]:
    """The labels of a devkit that was unpacked."""
    meta = path.parent / "meta.mat"
    with _devkit_of(path, meta):
        return _explained(path.read_bytes(), meta.read_bytes())


def _from_packed_devkit(path: Path) -> dict[int, str]:
    """The labels of a devkit as it was downloaded."""
    with _devkit_of(path), tarfile.open(path) as archive:
        found = {}
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name in (GROUND_TRUTH, "meta.mat") and member.isfile():
                content = archive.extractfile(member)
                found[name] = b"" if content is None else content.read(LARGEST_NOTE)
        return _explained(found[GROUND_TRUTH], found["meta.mat"])


def _explained(labels: bytes, meta: bytes) -> dict[int, str]:
    """Labels are numbers of the devkit's own, which its `meta.mat` explains."""
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    wnids = {int(each["ILSVRC2012_ID"]): str(each["WNID"]) for each in synsets}
    numbers = [int(line) for line in labels.decode().split()]
    return {number: wnids[label] for number, label in enumerate(numbers, start=1)}


@contextmanager
def _devkit_of(*paths: Path) -> Iterator[None]:
    """Inside it, what fails is that the devkit is damaged, or that scipy is missing."""
    files = " and ".join(map(str, paths))
    try:
        yield
    except ImportError:
        raise SecondLensError(
            f"{files} needs scipy: pip install 'secondlens[imagenet]', or use Kaggle's {KAGGLE}"
        ) from None
    except (
        OSError,
        EOFError,
        tarfile.TarError,
        zlib.error,
        LookupError,
        ValueError,
        TypeError,
    ) as error:
        raise SecondLensError(f"{files} are not those of ILSVRC2012_devkit_t12: {error}") from error
