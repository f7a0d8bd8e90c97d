"""Masks of a whole folder in files: label maps, a COCO file, a table and a contact sheet."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import contourpy
import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from ...data.embedding import embed_texts
from ...data.sources import ImageSource
from ...engine.local import Local
from ...engine.pool import Engine
from ...errors import SecondLensError
from ...formatting import counted
from ...lens.lens import Lens
from ...models.view import Clip
from ...report.page import data_uri, write_page
from ...storage.files import save_csv, save_picture, save_text
from ..photo_files import (
    PHOTOS_PER_PASS,
    SHOWN,
    Record,
    file_names,
    opened,
    photo_folder,
    tensor_hash,
    thumbnail,
    work_through,
)
from .heat_maps import colour_of, label_map, label_picture, outlined
from .mixture import MixedMaps, Mixture, maps_of
from .presence import Presence, PresenceReader
from .segmenter import BEST, Recipe, Segmenter
from .segmenting import segmented

MOST_TEXTS = 255
"""That the pixels of a label map tell apart."""


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """How masks of a folder are made and written."""

    texts: tuple[str, ...]
    against: tuple[str, ...] = ()
    """Texts whose mean embedding is taken off that of each text."""
    recipe: Recipe | Mixture = BEST
    colours: bool = False
    """Whether masks follow the colours of a photo, as the model sees it."""
    threshold: float = 0.5
    """The heat from which on a pixel is part of the object."""
    windows: int = 1
    """Along each side of a photo, see `segment`."""
    presence: Presence | None = None
    """Decides which texts are in a photo: the others have no mask there, and the score is the
    log-odds that a text is there."""
    among: tuple[str, ...] = ()
    """Other words for what photos may show, with which `presence` compares texts."""
    polygons: bool = False
    """Whether the COCO file holds polygons, which have no holes, in place of run lengths."""

    def __post_init__(self) -> None:
        if len(self.texts) > MOST_TEXTS:
            raise SecondLensError(
                f"a label map holds at most {MOST_TEXTS} texts, and these are {len(self.texts)}: "
                "give fewer"
            )
        if self.presence is not None and not self.among:
            raise SecondLensError("whether a text is there is told among other words: give among")


def write_masks(
    clip: Clip,
    lens: Lens,
    source: ImageSource,
    settings: MaskSettings,
    out: Path,
    *,
    engine: Engine | None = None,
    progress: bool = False,
) -> list[Record]:
    """Write the masks of all photos of a source into a new folder.

    The folder holds `labels/<photo>.png` (0 where no text is, 1 for the first text, and so on),
    `masks.json` in the format of COCO, with a score beside each mask, `tags.csv` with a row for
    each photo and text, and `index.html`. Work that was stopped goes on when it is called again.

    Parameters
    ----------
    clip, lens
        A model and a lens fitted on it.
    source
        From `as_source`.
    out
        A new folder.
    engine
        Where the work runs; by default in this process.

    Returns
    -------
    For each photo its id under "photo", and either why it cannot be read under "error", or its
    width, height and what was found of each text: share of the picture, and score.

    Raises
    ------
    SecondLensError
        What `segment` raises, or `out` holds other work.
    """
    rows = embed_texts(clip, list(settings.texts))
    among = embed_texts(clip, list(settings.among)) if settings.among else rows[:0]
    presence = settings.presence
    reader = None if presence is None else PresenceReader(clip, lens)
    read = [] if reader is None else reader.layers
    there = _There(presence=presence, reader=reader, rows=rows, among=among)
    if settings.against:
        rows = rows - embed_texts(clip, list(settings.against)).mean(0)
    maps = maps_of(clip, lens, settings.recipe)
    with photo_folder(out) as folder:
        work = _Masks(maps, source, file_names(source.ids), rows, there, settings, folder)
        records = work_through(
            source,
            out,
            {
                "model": [clip.weights_hash, list(clip.image_size)],
                "lens": _used(lens, sorted({*maps.layers, *read})),
                **msgspec.json.decode(msgspec.json.encode(settings)),
            },
            work,
            engine or Local(),
            what="masks",
            progress=progress,
        )
        _write(records, settings, folder, clip)
    return [_told(record) for record in records]


def _used(lens: Lens, layers: Sequence[int]) -> str:
    """What masks take from a lens, as a hash."""
    fitted = [lens[layer] for layer in layers]
    return tensor_hash(*(t for each in fitted for t in (each.directions, each.activation_mean)))


def _told(record: Record) -> Record:
    """What a caller wants to know of a photo: its masks are in files."""
    kept = {key: value for key, value in record.items() if key not in ("thumbnail", "texts")}
    if "texts" in record:
        told = ("text", "share", "score")
        kept["texts"] = [{key: each[key] for key in told} for each in record["texts"]]
    return kept


class _Masks:
    """Makes the masks of some photos: what workers do."""

    def __init__(
        self,
        maps: Segmenter | MixedMaps,
        source: ImageSource,
        names: list[str],
        rows: Float[Tensor, "texts dim"],
        there: "_There",
        settings: MaskSettings,
        folder: Path,
    ) -> None:
        self.maps, self.source, self.names = maps, source, names
        self.rows, self.there, self.settings, self.folder = rows, there, settings, folder

    def __call__(self, some: range) -> list[Record]:
        found: list[Record] = []
        windows = self.settings.windows
        step = max(1, PHOTOS_PER_PASS // windows**2)
        for start in range(some.start, some.stop, step):
            positions = range(start, min(start + step, some.stop))
            pictures, unread = opened(self.source, positions)
            for position in [i for i, each in pictures.items() if min(each.size) < windows]:
                width, height = pictures.pop(position).size
                unread[position] = f"its {width} x {height} pixels have no room for the windows"
            maps: Iterator[tuple[Tensor, Tensor]] = iter(())
            odds: Iterator[list[float]] = iter(())
            if pictures:
                odds = iter(self.there(list(pictures.values())))
                maps = segmented(
                    *(self.maps, list(pictures.values()), self.rows),
                    windows,
                    self.settings.colours,
                )
            for position in positions:
                record: Record = {"photo": self.source.ids[position]}
                if position in unread:
                    record["error"] = unread[position]
                else:
                    heat, peaks = next(maps)
                    scores = next(odds, peaks.tolist())
                    record |= self._record(position, pictures[position], heat, scores)
                found.append(record)
        return found

    def _record(
        self, position: int, picture: Image.Image, heat: Tensor, scores: list[float]
    ) -> Record:
        heat, presence = heat.float().cpu(), self.settings.presence
        if presence is not None:
            here = torch.tensor([score >= presence.level for score in scores])
            heat = torch.where(here[:, None, None], heat, -1.0)  # below every threshold
        labels = label_map(heat, self.settings.threshold)
        name = f"labels/{self.names[position]}.png"
        save_picture(self.folder / name, label_picture(labels))
        texts = []
        for text, one, score in zip(self.settings.texts, heat, scores, strict=True):
            mask = (one >= self.settings.threshold).numpy()
            inside = int(mask.sum())
            texts.append(
                {
                    "text": text,
                    "share": inside / mask.size,
                    "score": score,
                    "area": inside,
                    "box": box_of(mask),
                    "mask": polygons_of(mask) if self.settings.polygons else run_lengths(mask),
                }
            )
        record: Record = {
            "width": picture.width,
            "height": picture.height,
            "labels": name,
            "texts": texts,
        }
        if position < SHOWN:
            small = thumbnail(picture)
            seen = F.interpolate(labels[None, None].float(), small.size[::-1], mode="nearest")
            record["thumbnail"] = data_uri(outlined(small, seen[0, 0].long()), "jpeg", quality=85)
        return record


@dataclass(frozen=True, kw_only=True)
class _There:
    """Says how likely texts are in photos; nothing, without a `Presence`."""

    presence: Presence | None
    reader: PresenceReader | None
    rows: Float[Tensor, "texts dim"]
    among: Float[Tensor, "words dim"]

    def __call__(self, pictures: list[Image.Image]) -> list[list[float]]:
        if self.presence is None or self.reader is None:
            return []
        read = self.reader(pictures, self.rows, self.among, self.presence.windows)
        found: list[list[float]] = self.presence.scores(read).tolist()
        return found


def run_lengths(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    """A mask as COCO writes it: how many pixels are outside, inside, outside, ..., column by
    column, packed into a text."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    ends = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(ends).tolist()
    return {"size": list(mask.shape), "counts": packed([0, *counts] if flat[0] else counts)}


def packed(counts: Sequence[int]) -> str:
    """Run lengths as COCO packs them: from the fourth on what each has more than the one before the
    last, in digits of 5 bits, the lowest first; bit 6 of a digit says that more follow."""
    digits = []
    for place, count in enumerate(counts):
        rest = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            digit = rest & 0x1F
            rest >>= 5
            more = rest != (-1 if digit & 0x10 else 0)
            digits.append(chr(48 + (digit | 0x20 if more else digit)))
    return "".join(digits)


def polygons_of(mask: Bool[np.ndarray, "height width"]) -> list[list[float]]:
    """Outlines of the parts of a mask, [x, y, x, y, ...] each, in pixels; holes are filled."""
    padded = np.pad(mask, 1).astype(float)
    generator = contourpy.contour_generator(z=padded, fill_type="OuterOffset", name="serial")
    points, offsets = generator.filled(0.5, np.inf)[:2]
    found = []
    for own, starts in zip(points, offsets, strict=True):
        assert own is not None and starts is not None
        outer = own[starts[0] : starts[1] - 1]  # its last point is its first one
        # the middle of pixel 0 lies at 0.5, and padding moved it by 1
        outer = (outer - 0.5).clip(0, [mask.shape[1], mask.shape[0]])
        found.append(outer.round(2).ravel().tolist())
    return found


def box_of(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    """Left, top, width and height of the smallest box around a mask, in pixels; zeros if it is
    empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return [0, 0, 0, 0]
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def _write(records: Sequence[Record], settings: MaskSettings, folder: Path, clip: Clip) -> None:
    images: list[Record] = []
    annotations: list[Record] = []
    rows: list[Record] = []
    for number, record in enumerate(records, start=1):
        if "error" in record:
            continue
        images.append(
            {
                "id": number,
                "file_name": record["photo"],
                "width": record["width"],
                "height": record["height"],
                "labels": record["labels"],
            }
        )
        for category, each in enumerate(record["texts"], start=1):
            rows.append(
                {"photo": record["photo"], **{k: each[k] for k in ("text", "share", "score")}}
            )
            if each["area"]:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": category,
                        "segmentation": each["mask"],
                        "area": each["area"],
                        "bbox": each["box"],
                        "iscrowd": 0,
                        "score": each["score"],
                    }
                )
    categories = [{"id": i, "name": text} for i, text in enumerate(settings.texts, start=1)]
    found = {
        "info": {"description": f"by {clip.name}, secondlens {version('secondlens')}"},
        "images": images,
        "categories": categories,
        "annotations": annotations,
    }
    save_text(folder / "masks.json", json.dumps(found, ensure_ascii=False))
    if rows:
        save_csv(folder / "tags.csv", rows)
    texts = [
        {"text": text, "colour": "rgb({}, {}, {})".format(*colour_of(i))}
        for i, text in enumerate(settings.texts)
    ]
    write_page(
        folder / "index.html",
        "masks.html",
        title=f"{counted(len(images), 'photo')}, {counted(len(texts), 'text')}",
        decided=settings.presence is not None,
        records=records[:SHOWN],
        total=len(records),
        unread=sum("error" in record for record in records),
        texts=texts,
        clip=clip,
    )
