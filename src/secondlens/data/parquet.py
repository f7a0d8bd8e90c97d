"""Pictures in Parquet files: a column of encoded pictures, as Hugging Face and LAION keep them."""

import io
from bisect import bisect_right
from itertools import accumulate
from types import ModuleType
from typing import Any

from PIL import Image

from ..errors import SecondLensError
from ..storage.remote import Place, opened
from .decoding import Unreadable, decode
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
        by default the only such column.
    ids
        A column to take ids from instead.

    Raises
    ------
    SecondLensError
        pyarrow is missing, a file does not exist, no file can be read, or there is no such column,
        or no only one.
    """

    SUFFIXES = frozenset({".parquet"})

    def __init__(self, files: Files, *, column: str | None = None, ids: str | None = None) -> None:
        pq = _pyarrow().parquet
        self.files: list[Place] = []
        self.damaged: dict[str, str] = {}
        self._groups: list[tuple[int, int]] = []
        """File and number of each row group."""
        rows: list[int] = []
        row_ids: list[str] = []
        paths = expand(files, ".parquet")
        for path, name in zip(paths, names(paths), strict=True):
            try:
                with opened(path) as raw, pq.ParquetFile(raw) as file:
                    schema, metadata = file.schema_arrow, file.metadata
            except _damage() as error:
                self.damaged[name] = f"is no whole Parquet file: {error}"
                continue
            column = _image_column(schema, column, name)
            counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
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
        encoded = self._cached[1][index - self._starts[group]].as_py()
        return decode(io.BytesIO(encoded or b""))

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
                    found += file.read(columns=[column]).column(column).to_pylist()
                except _damage() as error:
                    raise SecondLensError(
                        f"column {column!r} of {path} is damaged: {error}"
                    ) from error
        return found

    def _read(self, group: int) -> Any:
        """The pictures of a row group, as a column of bytes."""
        number, place = self._groups[group]
        pq = _pyarrow().parquet
        try:
            with opened(self.files[number]) as raw, pq.ParquetFile(raw) as file:
                kind = file.schema_arrow.field(self.column).type
                leaf = f"{self.column}.bytes" if kind.num_fields else self.column
                # threads of a parent process do not exist in a forked one
                table = file.read_row_group(place, columns=[leaf], use_threads=False)
        except _damage() as error:
            raise Unreadable(f"row group {place} of its file is damaged: {error}") from error
        return table.flatten().column(0)


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
    return (OSError, _pyarrow().ArrowException)


def _holds_pictures(kind: Any) -> bool:
    """Whether a column of this type is of bytes, or of structs with a field of them."""
    types = _pyarrow().types
    if types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_pictures(kind.field(place).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _image_column(schema: Any, column: str | None, name: str) -> str:
    suited = [field.name for field in schema if _holds_pictures(field.type)]
    if column is None and len(suited) > 1:
        raise SecondLensError(
            f"{name} has several columns that may hold pictures: choose one of "
            f"{', '.join(suited)} with column="
        )
    chosen = column or "".join(suited)
    if chosen not in suited:
        wanted = f"pictures in a column {column!r}" if column else "column of pictures"
        raise SecondLensError(f"{name} has no {wanted}: its columns are {_columns(schema)}")
    return chosen


def _columns(schema: Any) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
