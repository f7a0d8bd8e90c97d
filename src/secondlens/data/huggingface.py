"""Datasets of the library `datasets`: held, streamed, or saved to disk."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from ..errors import SecondLensError
from .decoding import decode, decode_file

Picture = Image.Image | bytes | Path
"""An image, an encoded one, or the path of a file."""


class HuggingFace:
    """A map-style dataset with a column of pictures; an id is the row's number.

    Parameters
    ----------
    dataset
        One split: a `datasets.Dataset`.
    column
        The column of pictures; by default the only one.
    ids
        A column to take ids from instead.

    Raises
    ------
    SecondLensError
        There is no such column, or no only one.
    """

    def __init__(self, dataset: Any, *, column: str | None = None, ids: str | None = None) -> None:
        self.column = _image_column(dataset, column)
        if ids is not None and ids not in dataset.column_names:
            raise SecondLensError(f"no column {ids!r}: choose from {', '.join(dataset.features)}")
        numbers = range(len(dataset))
        names = numbers if ids is None else dataset.with_format(None)[ids]
        self.ids = [str(each) for each in names]
        self._rows = _encoded(dataset, self.column)

    @classmethod
    def from_disk(cls, folder: str | Path, **options: Any) -> "HuggingFace":
        """A dataset that `save_to_disk` wrote; options as of the class.

        Raises
        ------
        SecondLensError
            The library `datasets` is missing, or the folder holds several splits or a damaged one.
        """
        datasets = _datasets()
        try:
            loaded = datasets.load_from_disk(str(folder))
        except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise SecondLensError(f"{folder} holds a damaged dataset: {reason}") from error
        if isinstance(loaded, datasets.DatasetDict):
            raise SecondLensError(f"{folder} has several splits: name one of {', '.join(loaded)}")
        return cls(loaded, **options)

    def load(self, index: int) -> Image.Image:
        """Picture `index`, upright RGB."""
        encoded = _bytes_or_path(self._rows[index][self.column])
        if isinstance(encoded, bytes):
            return decode(io.BytesIO(encoded))
        return decode_file(encoded)


def streamed(dataset: Any, column: str | None = None) -> Iterator[tuple[str, Picture]]:
    """(row number, picture, or its bytes or path) for each row of a `datasets.IterableDataset`.

    Raises
    ------
    SecondLensError
        As `HuggingFace`.
    """
    if dataset.features is None:
        yield from _without_features(dataset, column)
        return
    column = _image_column(dataset, column)
    for number, row in enumerate(_encoded(dataset, column)):
        yield str(number), _bytes_or_path(row[column])


def _without_features(dataset: Any, column: str | None) -> Iterator[tuple[str, Picture]]:
    """Rows of a stream whose types `map` has forgotten, told by its first row."""
    for number, row in enumerate(dataset):
        if number == 0:
            suited = [name for name, cell in row.items() if _picture_in(cell) is not None]
            column = _chosen(suited, list(row), column)
        picture = _picture_in(row[column])
        yield str(number), b"" if picture is None else picture


def _picture_in(cell: Any) -> Picture | None:
    """The picture in a cell, if there is one: an image, bytes, or a dictionary of both kinds."""
    if isinstance(cell, Image.Image | bytes):
        return cell
    if isinstance(cell, dict) and {"bytes", "path"} <= cell.keys():
        return _bytes_or_path(cell)
    return None


def _bytes_or_path(cell: dict[str, Any] | None) -> bytes | Path:
    """What a cell holds; no bytes if it holds nothing."""
    if cell is None:
        return b""
    if cell["bytes"] is None and cell["path"] is not None:
        return Path(cell["path"])
    content: bytes | None = cell["bytes"]
    return content or b""


def is_held(dataset: Any) -> bool:
    """Whether it is a `datasets.Dataset`; the library is not imported to find out."""
    module = sys.modules.get("datasets")
    return module is not None and isinstance(dataset, module.Dataset)


def is_streamed(dataset: Any) -> bool:
    """Whether it is a `datasets.IterableDataset`."""
    module = sys.modules.get("datasets")
    return module is not None and isinstance(dataset, module.IterableDataset)


def _datasets() -> ModuleType:
    try:
        import datasets
    except ImportError:
        raise SecondLensError(
            "reading a saved dataset needs datasets: pip install 'secondlens[datasets]'"
        ) from None
    library: ModuleType = datasets
    return library


def _image_column(dataset: Any, column: str | None) -> str:
    features = dataset.features or {}
    suited: list[str] = [
        name for name, kind in features.items() if isinstance(kind, _datasets().Image)
    ]
    return _chosen(suited, list(features), column)


def _chosen(suited: list[str], columns: list[str], column: str | None) -> str:
    if column is None and len(suited) == 1:
        return suited[0]
    if column is not None and column in suited:
        return column
    raise SecondLensError(
        f"choose a column of pictures with column= (--column): those of pictures are {suited}, and "
        f"all are {columns}"
    )


def _encoded(dataset: Any, column: str) -> Any:
    """The column alone, as bytes: pictures are decoded in one place for all sources."""
    rows = dataset.select_columns([column]).with_format(None)
    return rows.cast_column(column, _datasets().Image(decode=False))
