"""Pictures in Parquet files: a column of encoded pictures, as Hugging Face and LAION keep them."""

import io
import json
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from ..errors import SecondLensError
from ..storage.remote import Place, opened
from .decoding import Unreadable, decode, decode_file
from .tar import Files, expand, names


class Parquet:
    """The pictures in a column of Parquet files, in the order of rows; an id is file/row.

    Rows are read one row group at a time, and the last group is kept: reading in order is fast, and
    memory holds one group for each process.

    Parameters
    ----------
    files
        A file, a folder of them, a pattern such as `data-{000..015}.parquet` or `data-*.parquet`,
        or a list of these.
    column
        Where the pictures are: a column of bytes, or of {bytes, path} as Hugging Face writes it;
        by default the only such column. A column of texts may be named too: they are then paths of
        pictures. Paths count from the folder of their Parquet file.
    ids
        A column to take ids from instead.

    Raises
    ------
    SecondLensError
        pyarrow is missing, a file does not exist, no file can be read, or there is no such column,
        or no only one.
    """

    SUFFIXES = (".parquet",)

    def __init__(self, files: Files, *, column: str | None = None, ids: str | None = None) -> None:
        pq = _pyarrow().parquet
        self.files: list[Place] = []
        self.damaged: dict[str, str] = {}
        self._groups: list[tuple[int, int]] = []
        """File and number of each row group."""
        rows: list[int] = []
        row_ids: list[str] = []
        paths = expand(files, self.SUFFIXES)
        for path, name in zip(paths, names(paths), strict=True):
            try:
                with opened(path) as raw, pq.ParquetFile(raw) as file:
                    schema, metadata = file.schema_arrow, file.metadata
                    counts = _counts(metadata, raw.seek(0, io.SEEK_END))
            except _damage() as error:
                self.damaged[name] = _why_damaged(path, error)
                continue
            column = _image_column(schema, column, name)
            self._groups += [(len(self.files), i) for i in range(len(counts))]
            self.files.append(path)
            rows += counts
            row_ids += [f"{name}/{row}" for row in range(sum(counts))]
        if column is None or not row_ids:
            reasons = "".join(f"; {name} {why}" for name, why in self.damaged.items())
            raise SecondLensError(f"no rows in {files}: name Parquet files with some{reasons}")
        self.column = column
        self._starts = list(accumulate(rows, initial=0))
        self._cached: tuple[int, Any] | None = None
        self.ids = row_ids if ids is None else [str(each) for each in self.values(ids)]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_cached": None}

    def load(self, index: int) -> Image.Image:
        """Picture `index`, upright RGB."""
        group = bisect_right(self._starts, index) - 1
        if self._cached is None or self._cached[0] != group:
            self._cached = group, self._read(group)
        cell = self._cached[1][index - self._starts[group]].as_py()
        if not isinstance(cell, dict):
            cell = {"path": cell} if isinstance(cell, str) else {"bytes": cell}
        content, place = cell.get("bytes"), cell.get("path")
        if content is None and place is not None:
            return decode_file(Path(str(self.files[self._groups[group][0]])).parent / place)
        return decode(io.BytesIO(content or b""))

    def sizes(self) -> list[int]:
        """Bytes of each file."""
        return [path.stat().st_size for path in self.files]

    def values(self, column: str) -> list[Any]:
        """Another column, such as labels or captions: one value for each picture.

        Raises
        ------
        SecondLensError
            There is no such column, or it is damaged.
        """
        pq = _pyarrow().parquet
        found: list[Any] = []
        for path in self.files:
            with opened(path) as raw, pq.ParquetFile(raw) as file:
                if column not in file.schema_arrow.names:
                    raise SecondLensError(
                        f"{path} has no column {column!r}: its columns are "
                        f"{_columns(file.schema_arrow)}"
                    )
                try:
                    found += column_values(file, column)
                except _damage() as error:
                    raise SecondLensError(
                        f"column {column!r} of {path} is damaged: {error}"
                    ) from error
        return found

    def class_names(self, column: str) -> list[str] | None:
        """Names of the numbers in a column, if Hugging Face has noted them in the file."""
        pq = _pyarrow().parquet
        with opened(self.files[0]) as raw, pq.ParquetFile(raw) as file:
            notes = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        try:
            feature = json.loads(notes)["info"]["features"][column]
        except (ValueError, LookupError, TypeError):
            return None
        found = feature.get("names") if isinstance(feature, dict) else None
        return [str(each) for each in found] if isinstance(found, list) else None

    def _read(self, group: int) -> Any:
        """The column of pictures of a row group."""
        number, place = self._groups[group]
        pq = _pyarrow().parquet
        try:
            with opened(self.files[number]) as raw, pq.ParquetFile(raw) as file:
                batches = list(bounded(file, self.column, PICTURES_AT_A_TIME, place))
                table = _pyarrow().Table.from_batches(batches)
        except _damage() as error:
            raise Unreadable(f"row group {place} of its file is damaged: {error}") from error
        return table.column(0)


def _pyarrow() -> ModuleType:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SecondLensError(
            "reading Parquet needs pyarrow: pip install 'secondlens[parquet]'"
        ) from None
    library: ModuleType = pyarrow
    return library


def _damage() -> tuple[type[Exception], ...]:
    return (OSError, ValueError, _pyarrow().ArrowException)


LEAST_ROOM, INFLATION, LARGEST_COLUMN = 2**28, 64, 2**32
"""Bytes that a column may always take, how many it may take for each byte of its file, for pictures
and texts that say something do not shrink further, and the most of a column in a row group."""
PICTURES_AT_A_TIME, VALUES_AT_A_TIME = 16, 1024


def _counts(metadata: Any, size: int) -> list[int]:
    """Rows of each row group of a file of some bytes; raises `ValueError` if they cannot be."""
    counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) > INFLATION * size:
        raise ValueError(f"it is said to have {sum(counts):,} rows in {size:,} bytes")
    return counts


def bounded(file: Any, leaf: str, rows: int, group: int | None = None) -> Iterator[Any]:
    """Batches of a column of an open file, or of one row group of it.

    Raises
    ------
    ValueError
        It would take much more memory than the file takes room.
    """
    metadata, packed = file.metadata, 0
    groups = range(metadata.num_row_groups) if group is None else [group]
    for each in groups:
        columns = (metadata.row_group(each).column(i) for i in range(metadata.num_columns))
        sizes = [c.total_compressed_size for c in columns if c.path_in_schema.startswith(leaf)]
        if not all(0 <= size <= LARGEST_COLUMN for size in sizes):
            raise ValueError(f"a row group of {leaf} is said to have {max(sizes):,} bytes")
        packed += sum(sizes)
    left = LEAST_ROOM + INFLATION * packed
    # threads of a parent process do not exist in a forked one
    for batch in file.iter_batches(
        rows, row_groups=list(groups), columns=[leaf], use_threads=False
    ):
        left -= batch.nbytes
        if left < 0:
            raise ValueError(f"{leaf} takes {INFLATION} times the memory of its file and more")
        yield batch


def column_values(file: Any, column: str) -> list[Any]:
    """The values in a column of an open file; raises `ValueError` as `bounded`."""
    batches = bounded(file, column, VALUES_AT_A_TIME)
    return [value for batch in batches for value in batch.column(0).to_pylist()]


def _why_damaged(path: Place, error: Exception) -> str:
    with suppress(OSError, ValueError), opened(path) as file:
        if file.read(len(_POINTER)) == _POINTER:
            return "is a pointer of Git LFS: fetch the file itself with git lfs pull"
    return f"is no whole Parquet file: {error}"


_POINTER = b"version https://git-lfs"


def _holds_pictures(kind: Any) -> bool:
    """Whether a column of this type is of bytes, or of structs with a field of them."""
    types = _pyarrow().types
    if types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_pictures(kind.field(place).type)
    kind = _entries(kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _holds_texts(kind: Any) -> bool:
    types = _pyarrow().types
    kind = _entries(kind)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _entries(kind: Any) -> Any:
    """The type of the entries of a dictionary, or the type itself."""
    return kind.value_type if _pyarrow().types.is_dictionary(kind) else kind


def _image_column(schema: Any, column: str | None, name: str) -> str:
    suited = [field.name for field in schema if _holds_pictures(field.type)]
    if column is None and len(suited) > 1:
        raise SecondLensError(
            f"{name} has several columns that may hold pictures: choose one of "
            f"{', '.join(suited)} with column= (--column)"
        )
    chosen = column or "".join(suited)
    texts = [field.name for field in schema if _holds_texts(field.type)]
    if column is not None and column in texts:
        return column
    if chosen not in suited:
        wanted = f"pictures in a column {column!r}" if column else "column of pictures"
        paths = f"; if {', '.join(texts)} holds their paths, say so with --column" if texts else ""
        raise SecondLensError(f"{name} has no {wanted}: its columns are {_columns(schema)}{paths}")
    return chosen


def _columns(schema: Any) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
