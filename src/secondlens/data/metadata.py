"""Labelled sets in a table: `metadata.csv` beside the pictures, as WILDS and Waterbirds have it.

One row a picture: its file, its class, its part, and whatever else is known of it, such as the
place that a bird stands in. These other columns are attributes, by which groups are made.
"""

import csv
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from ..errors import SecondLensError
from .folder import Folder
from .labelled import KeyedPictures, LabelledSet
from .sources import Subset
from .vocabularies import read_lines

TABLE = "metadata.csv"
CLASSES = "classnames.txt"
"""Names of classes that are numbers, one a line, from 0."""
FILES = ("img_filename", "file_name", "filename", "image_id")
"""Columns that name the picture; the first that is there."""
LABELS = ("y", "label", "class")
SPLIT = "split"
PARTS = {"0": "train", "1": "val", "2": "test"}
"""What WILDS calls its parts."""
PREFERRED = ("test", "val", "train", "")
"""Parts to measure on, the best first; an empty text where the table has no parts."""
BOOKKEEPING = frozenset({"", "img_id", "place_filename"})
"""Columns that say nothing of what a picture shows."""


def metadata_table(root: Path) -> LabelledSet | None:
    """The member "metadata" of `labelled_sets`: a folder with a `metadata.csv`, or that file."""
    table = root if root.name == TABLE else root / TABLE
    if not table.is_file():
        return None
    rows = _rows(table)
    parts = [part for part in PREFERRED if any(row[SPLIT] == part for row in rows)]
    return LabelledSet(
        test=partial(_part, table, parts[0]),
        training=partial(_training, table) if "train" in parts[1:] else None,
        parts=tuple(part for part in parts if part),
    )


def _training(table: Path) -> Subset:
    found = _part(table, "train").source
    assert isinstance(found, Subset)
    return found


def _part(table: Path, part: str) -> KeyedPictures:
    """The pictures of one part.

    Raises
    ------
    SecondLensError
        A picture that is not there, or a class that the list of classes does not have.
    """
    rows = [row for row in _rows(table) if row[SPLIT] == part]
    first = rows[0]
    file, label = _column(table, first, FILES), _column(table, first, LABELS)
    folder = Folder(table.parent)
    place = {name: number for number, name in enumerate(folder.ids)}
    if missing := [row[file] for row in rows if row[file] not in place]:
        raise SecondLensError(
            f"{table} names {missing[0]}, which is not a picture in {table.parent}: correct the "
            "table, or put the picture there"
        )
    attributes = {
        name: tuple(row[name] for row in rows)
        for name in first
        if name not in BOOKKEEPING | {file, label, SPLIT}
    }
    keys = [row[label] for row in rows]
    return KeyedPictures(
        name=f"{table.parent.name} {part}".strip(),
        source=Subset(folder, [place[row[file]] for row in rows]),
        keys=keys,
        names=_names(table, keys),
        attributes=attributes,
    )


def _names(table: Path, keys: Sequence[str]) -> Mapping[str, str] | None:
    """Number -> name of each class, where a list lies beside the table."""
    listed = table.parent / CLASSES
    if not listed.is_file():
        return None
    lines = [line.strip() for line in read_lines(listed) if line.strip()]
    names = {str(number): name for number, name in enumerate(lines)}
    if set(keys) <= set(lines):
        names = {name: name for name in lines}
    if unknown := [key for key in keys if key not in names]:
        raise SecondLensError(
            f"{table} has the class {unknown[0]!r}, which {listed.name} does not have: its lines "
            "name the classes, from 0"
        )
    return names


def _column(table: Path, row: Mapping[str, str], names: Sequence[str]) -> str:
    for name in names:
        if name in row:
            return name
    raise SecondLensError(f"{table} has no column {' or '.join(names)}: add one")


def _rows(table: Path) -> list[dict[str, str]]:
    """Rows with the name of their part under `SPLIT`, which is empty where there are no parts.

    Raises
    ------
    SecondLensError
        The table cannot be read, has no rows, or one that is cut off or of an unknown part.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [dict(row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise SecondLensError(f"{table} cannot be read as a table: {error}") from error
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise SecondLensError(f"line {number} of {table} has another number of columns")
        part = row.get(SPLIT, "").strip()
        row[SPLIT] = PARTS.get(part, part)
        if row[SPLIT] not in PREFERRED:
            raise SecondLensError(
                f"line {number} of {table} is of the part {part!r}: parts are 0, 1 and 2, or "
                "train, val and test"
            )
    if not rows:
        raise SecondLensError(f"{table} has no rows: give one for each picture")
    return rows
