"""Texts in files: the lines of a text file, or a column of a CSV or Parquet table."""

import csv
from pathlib import Path

from ..errors import SecondLensError

TABLES = (".csv", ".parquet")


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, with or without a byte order mark, of any line ends.

    Raises
    ------
    SecondLensError
        A table, or a file that cannot be read as UTF-8.
    """
    if path.suffix.lower() in TABLES:
        raise SecondLensError(f"{path} is a table: name a column of it, as {path}:COLUMN")
    try:
        # not splitlines, which also splits at characters that belong to a text
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise SecondLensError(f"{path} cannot be read as UTF-8 text: {error}") from error


def read_column(path: Path, column: str) -> list[str]:
    """The texts in a column of a CSV file with a header, or of a Parquet file; nulls are dropped.

    Raises
    ------
    SecondLensError
        No such file or column, a column that holds no texts, a table that cannot be read, or
        pyarrow is missing.
    """
    if not path.is_file():
        raise SecondLensError(f"there is no file {path}: name a CSV or Parquet file that exists")
    read = _read_csv if path.suffix.lower() == ".csv" else _read_parquet
    return read(path, column)


def _read_csv(path: Path, column: str) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            _check_column(path, column, list(table.fieldnames or []))
            return [row[column] for row in table if row[column] is not None]
    except (UnicodeDecodeError, OSError, csv.Error) as error:
        raise SecondLensError(f"{path} cannot be read as CSV: {error}") from error


def _read_parquet(path: Path, column: str) -> list[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise SecondLensError(f"{path} needs pyarrow: pip install 'secondlens[parquet]'") from None
    try:
        _check_column(path, column, parquet.read_schema(path).names)
        values = parquet.ParquetFile(path).read([column])[column].to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise SecondLensError(f"{path} cannot be read as Parquet: {error}") from error
    texts = [value for value in values if value is not None]
    if not all(isinstance(text, str) for text in texts):
        raise SecondLensError(f"the column {column!r} of {path} holds no texts: name another one")
    return texts


def _check_column(path: Path, column: str, columns: list[str]) -> None:
    if column not in columns:
        raise SecondLensError(
            f"{path} has no column {column!r}: name one of {', '.join(columns) or 'none'}"
        )
