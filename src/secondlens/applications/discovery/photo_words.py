"""Words of a whole folder in files: a table and a contact sheet."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ...data.sources import ImageSource
from ...engine.local import Local
from ...engine.pool import Engine
from ...errors import SecondLensError
from ...report.page import data_uri, write_page
from ...storage.files import save_csv
from ..photo_files import (
    PHOTOS_PER_PASS,
    SHOWN,
    Record,
    opened,
    photo_folder,
    tensor_hash,
    thumbnail,
    work_through,
)
from .finding import Discoverer
from .paper_sum import PaperSum
from .words import FoundWord

NEURONS = 3
"""Of a word, in files."""

Table = Literal["csv", "parquet"]


def write_words(
    discoverer: Discoverer,
    source: ImageSource,
    out: Path,
    *,
    top: int = 10,
    table: Table = "csv",
    engine: Engine | None = None,
    progress: bool = False,
) -> list[Record]:
    """Write the words of all photos of a source into a new folder.

    The folder holds `words.csv` or `words.parquet`, with a row for each photo and word, and
    `index.html`. Work that was stopped goes on when it is called again.

    Returns
    -------
    For each photo its id under "photo", and either why it cannot be read under "error", or its
    words with their weights and strongest neurons.

    Raises
    ------
    SecondLensError
        `top` out of range, `out` holds other work, or pyarrow is missing for Parquet.
    """
    if table == "parquet":
        _pyarrow()
    discoverer.check_top(top)
    lens = discoverer.lens
    settings = {
        "model": discoverer.clip.weights_hash,
        "lens": tensor_hash(*_used(discoverer)),
        "paths": lens.paths,
        "layers": discoverer.layers,
        "paper": discoverer.paper,
        "words": list(discoverer.texts.labels),
        "top": top,
        "table": table,
    }
    with photo_folder(out) as folder:
        records = work_through(
            source,
            out,
            settings,
            _Words(discoverer, source, top),
            engine or Local(),
            what="words",
            progress=progress,
        )
        _write(records, discoverer, folder, table)
    return [{k: v for k, v in record.items() if k != "thumbnail"} for record in records]


def _used(discoverer: Discoverer) -> list[Tensor]:
    """What words take from a lens."""
    fitted = [discoverer.lens[layer] for layer in discoverer.layers]
    if isinstance(discoverer.source, PaperSum):
        codes = discoverer.source.codes
        own = [codes.indices[n] for n in discoverer.layers]
        own += [codes.coefficients[n] for n in discoverer.layers]
        return [*own, *(t for each in fitted for t in (each.mean, each.threshold))]
    return [each.activation_mean for each in fitted]


class _Words:
    """Finds the words of some photos: what workers do."""

    def __init__(self, discoverer: Discoverer, source: ImageSource, top: int) -> None:
        self.discoverer, self.source, self.top = discoverer, source, top

    def __call__(self, some: range) -> list[Record]:
        found: list[Record] = []
        for start in range(some.start, some.stop, PHOTOS_PER_PASS):
            positions = range(start, min(start + PHOTOS_PER_PASS, some.stop))
            pictures, unread = opened(self.source, positions)
            words: list[list[FoundWord]] = []
            if pictures:
                words = self.discoverer(list(pictures.values()), self.top)
            of = dict(zip(pictures, words, strict=True))
            for position in positions:
                record: Record = {"photo": self.source.ids[position]}
                if position in unread:
                    record["error"] = unread[position]
                else:
                    record["words"] = [entry(word) for word in of[position]]
                    if position < SHOWN:
                        small = thumbnail(pictures[position])
                        record["thumbnail"] = data_uri(small, "jpeg", quality=85)
                found.append(record)
        return found


def entry(word: FoundWord) -> Record:
    """A word as JSON."""
    return {
        "text": word.text,
        "synonyms": list(word.synonyms),
        "weight": word.weight,
        "neurons": [asdict(each) for each in word.neurons[:NEURONS]],
    }


def _write(records: list[Record], discoverer: Discoverer, folder: Path, table: Table) -> None:
    rows: list[dict[str, Any]] = []
    for record in records:
        for rank, word in enumerate(record.get("words", ()), start=1):
            row = {"photo": record["photo"], "rank": rank, "word": word["text"]}
            row["synonyms"] = ", ".join(word["synonyms"])
            row["weight"] = word["weight"]
            names = (f"L{each['layer']} #{each['neuron']}" for each in word["neurons"])
            rows.append(row | {"neurons": ", ".join(names)})
    if rows and table == "csv":
        save_csv(folder / "words.csv", rows)
    elif rows:
        arrow, parquet = _pyarrow()
        parquet.write_table(arrow.Table.from_pylist(rows), folder / "words.parquet")
    write_page(
        folder / "index.html",
        "words.html",
        title=f"What {len(records):,} photos show",
        records=records[:SHOWN],
        total=len(records),
        unread=sum("error" in record for record in records),
        clip=discoverer.clip,
        whose="second-order" if discoverer.lens.paths == "value" else "total",
    )


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise SecondLensError(
            "a Parquet table needs pyarrow: pip install 'secondlens[parquet]', or take csv"
        ) from error
    return pyarrow, parquet
