"""Work on each photo of a source, in parts that are kept until all is done.

A part is a range of photos. What came of it is written once it is done, so that work that was
stopped goes on there, with the same result, and several workers share it.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data.decoding import upright_rgb
from ..data.sources import UNREADABLE, ImageSource, dataset_hash
from ..engine.pool import Engine
from ..errors import SecondLensError
from ..naming import distinct
from ..progress import tracked
from ..storage.checkpoints import Checkpoints
from ..storage.files import unfinished

Record = dict[str, Any]
"""What is told of a photo, as JSON."""

PHOTOS_PER_PART = 64
PHOTOS_PER_PASS = 32
SHOWN = 500
"""Photos on a contact sheet, the first ones."""
THUMBNAIL = 320
"""Pixels of its longer side."""


@contextmanager
def photo_folder(out: Path) -> Iterator[Path]:
    """A folder to fill with the files of all photos, which is `out` when the `with` is done.

    Whatever stops it, what is there stays until the same work goes on.
    """
    rest = Path(unfinished(out))
    filled = rest / "out"
    filled.mkdir(parents=True, exist_ok=True)
    yield filled
    shutil.rmtree(rest / "parts")
    filled.replace(out)
    rest.rmdir()


def work_through(
    source: ImageSource,
    out: Path,
    settings: dict[str, Any],
    work: Callable[[range], list[Record]],
    engine: Engine,
    *,
    what: str,
    progress: bool = False,
) -> list[Record]:
    """What came of all photos of a source, in their order.

    Parameters
    ----------
    source
        The photos.
    out
        Where `photo_folder` puts the result; parts lie beside it.
    settings
        What the work depends on besides the photos.
    work
        Does the photos at some positions, one record each.

    Raises
    ------
    SecondLensError
        Other work was begun there, or a part failed.
    """
    parts = Checkpoints(f"{unfinished(out)}/parts")
    count = len(source.ids)
    parts.claim({"photos": dataset_hash(source), **settings}, {"photos per part": PHOTOS_PER_PART})
    ranges = {
        f"{start:09d}": range(start, min(start + PHOTOS_PER_PART, count))
        for start in range(0, count, PHOTOS_PER_PART)
    }
    waiting = [each for name, each in ranges.items() if name not in parts.names()]
    with engine.start(partial(_kept, parts, work)) as workers:
        done = workers.map(waiting)
        for _ in tracked(done, f"{what}, parts of {PHOTOS_PER_PART}", progress, len(waiting)):
            pass
    return [record for name in ranges for record in parts.info(name)["records"]]


def tensor_hash(*tensors: Tensor) -> str:
    """SHA-256 over what tensors hold."""
    found = hashlib.sha256()
    for each in tensors:
        found.update(each.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _kept(parts: Checkpoints, work: Callable[[range], list[Record]], some: range) -> None:
    parts.save(f"{some.start:09d}", {}, {"records": work(some)})


def opened(
    source: ImageSource, positions: Sequence[int]
) -> tuple[dict[int, Image.Image], dict[int, str]]:
    """The photos at some positions, upright and RGB, and why others cannot be read."""
    pictures: dict[int, Image.Image] = {}
    unread: dict[int, str] = {}
    for position in positions:
        try:
            picture = source.load(position)
            if isinstance(picture, Tensor):
                raise SecondLensError(
                    "preprocessed tensors are no photos: give pictures, which have a size"
                )
            pictures[position] = upright_rgb(picture)
        except UNREADABLE as error:
            unread[position] = str(error)
    return pictures, unread


def file_names(ids: Sequence[str]) -> list[str]:
    """A name for a file of each photo, without an ending: its own, as far as that is a place below
    a folder."""
    names = []
    for each in ids:
        parts = PurePosixPath(each.replace("\\", "/")).with_suffix("").parts
        kept = [re.sub(r'[<>:"|?*\x00-\x1f]', "_", part).strip(" .") for part in parts]
        names.append("/".join(part for part in kept if part and part != "/") or "photo")
    return distinct(names)


def thumbnail(picture: Image.Image) -> Image.Image:
    """A small copy for a contact sheet."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small
