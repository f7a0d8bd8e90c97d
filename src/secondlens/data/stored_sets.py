"""Labelled sets in object stores: class folders, Parquet files and shards, by split."""

from functools import partial

from ..errors import SecondLensError
from ..storage.remote import Place, reaching
from .archived_sets import parquet, webdataset
from .class_folders import called_imagenet
from .folder import StoredFolder
from .labelled import KeyedPictures, LabelledSet
from .sources import Subset
from .splits import PREFERRED, TRAIN, VALIDATION, split_name


def stored(root: Place) -> LabelledSet:
    """The labelled set at an address in a store.

    Raises
    ------
    SecondLensError
        The store does not answer, nothing is there, or there are only pictures to train on.
    """
    with reaching(root):
        for layout in (parquet, webdataset):
            if (found := layout(root)) is not None:
                return found
        if not root.is_dir():
            raise SecondLensError(
                f"there is no folder {root} with labelled pictures: name one with a folder for "
                "each class, or Parquet files or shards with labels"
            )
        named = {split_name(each.name): each for each in root.iterdir()}
    parts = {name: each for name, each in named.items() if name is not None}
    if not parts:
        split = split_name(root.name)
        return LabelledSet(test=partial(_in_folders, root, split))
    split = next((each for each in PREFERRED if each in parts), None)
    if split is None:
        raise SecondLensError(
            f"{root} has no folder val: add one, or name {parts[TRAIN]} to measure on that"
        )
    training = partial(StoredFolder, parts[TRAIN]) if TRAIN in parts else None
    return LabelledSet(
        test=partial(_in_folders, parts[split], split),
        training=training,
        parts=tuple(each.name for each in parts.values()),
    )


def _in_folders(root: Place, split: str | None) -> KeyedPictures:
    """Pictures in class folders.

    Raises
    ------
    SecondLensError
        None of them lies in a class folder.
    """
    source = StoredFolder(root)
    inside = [place for place, each in enumerate(source.ids) if "/" in each]
    if not inside:
        raise SecondLensError(
            f"{root} has no folders for classes: put the pictures of each class in a folder of "
            "their own in it, named as the class is"
        )
    for each in source.ids:
        if "/" not in each:
            source.damaged[each] = "left out: it lies in no class folder"
    found = KeyedPictures(
        name=root.name if split is None else f"{root.parent.name} {split}",
        source=Subset(source, inside),
        keys=[source.ids[place].partition("/")[0] for place in inside],
    )
    return called_imagenet(found) if split == VALIDATION else found
