"""Texts with labels and prompts: from files, tables, memory, or under a name of their own."""

import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..arguments import checked
from ..demo.world import BACKGROUNDS, COLOURS, NAMES, PLACES, with_article
from ..errors import SecondLensError
from ..models.view import Clip
from ..storage.regular import read_bounded
from . import named_vocabularies
from .embedding import embed
from .parquet import column_values

JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv", ".parquet", *JSON_LINES)
"""Of texts in columns; `.json` may be one too, or a list of texts."""


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, with or without a byte order mark, of any line ends; of a file
    `.json`, the texts of its list.

    Raises
    ------
    SecondLensError
        A table, a file that cannot be read as UTF-8, or JSON that is not a list of texts.
    """
    if path.suffix.lower() == ".json":
        texts = _parsed(path)
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            raise SecondLensError(
                f"{path} is not a list of texts: name an entry of its objects, as {path}:ENTRY"
            )
        return texts
    if path.suffix.lower() in TABLES:
        raise SecondLensError(f"{path} is a table: name a column of it, as {path}:COLUMN")
    try:
        # not splitlines, which also splits at characters that belong to a text
        # as a file in text mode would, but for no other ends of lines
        text = read_bounded(path, LARGEST_LIST).decode("utf-8-sig")
        return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except (ValueError, OSError) as error:
        raise SecondLensError(f"{path} cannot be read as UTF-8 text: {error}") from error


LARGEST_LIST = 2**28
"""Bytes of a file of texts."""


def _check_length(path: Path) -> None:
    if path.stat().st_size > LARGEST_LIST:
        raise SecondLensError(
            f"{path} has more than {LARGEST_LIST:,} bytes, which is no list of texts: name another"
        )


def read_column(path: Path, column: str) -> list[str]:
    """The texts in a column of a table: CSV or TSV with a header, Parquet, or JSON objects, in a
    list or a line each. Rows without one are dropped.

    Raises
    ------
    SecondLensError
        No such file or column, a column that holds no texts, a table that cannot be read, or
        pyarrow is missing.
    """
    if not path.is_file():
        raise SecondLensError(f"there is no file {path}: name a table that exists")
    _check_length(path)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, column, "," if suffix == ".csv" else "\t")
    if suffix == ".parquet":
        return _read_parquet(path, column)
    return _read_json(path, column)


def _read_json(path: Path, column: str) -> list[str]:
    lines = path.suffix.lower() in JSON_LINES
    rows = _parsed(path, lines=lines)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SecondLensError(f"{path} is not a list of JSON objects: give it without a column")
    _check_column(path, column, list(dict.fromkeys(key for row in rows for key in row)))
    return _texts(path, column, [row.get(column) for row in rows])


def _parsed(path: Path, *, lines: bool = False) -> Any:
    try:
        text = read_bounded(path, LARGEST_LIST).decode("utf-8-sig")
        if lines:
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise SecondLensError(f"{path} cannot be read as JSON: {error}") from error


def _read_csv(path: Path, column: str, delimiter: str) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, delimiter=delimiter)
            _check_column(path, column, list(table.fieldnames or []))
            return [row[column] for row in table if row[column] is not None]
    except (ValueError, OSError, csv.Error) as error:
        raise SecondLensError(f"{path} cannot be read as CSV: {error}") from error


def _read_parquet(path: Path, column: str) -> list[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise SecondLensError(f"{path} needs pyarrow: pip install 'secondlens[parquet]'") from None
    try:
        _check_column(path, column, parquet.read_schema(path).names)
        with parquet.ParquetFile(path) as file:
            values = column_values(file, column)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise SecondLensError(f"{path} cannot be read as Parquet: {error}") from error
    return _texts(path, column, values)


def _texts(path: Path, column: str, values: Sequence[Any]) -> list[str]:
    """Values without gaps, which may be null or, as pandas has them, not a number."""
    texts = [value for value in values if value is not None and value == value]
    if not all(isinstance(text, str) for text in texts):
        raise SecondLensError(f"the column {column!r} of {path} holds no texts: name another one")
    return texts


def _check_column(path: Path, column: str, columns: list[str]) -> None:
    if column not in columns:
        raise SecondLensError(
            f"{path} has no column {column!r}: name one of {', '.join(columns) or 'none'}"
        )


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Texts with short labels; a text may be several prompts whose embeddings are averaged."""

    name: str
    labels: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.labels)

    def embed(self, clip: Clip, *, progress: bool = False) -> Float[Tensor, "texts dim"]:
        """One unit row for each label: the normalised mean of its prompts' embeddings.

        Rows of more prompts than one batch are kept on disk for the next time, under a hash of
        the model's weights and the prompts, in `SECONDLENS_CACHE` or the user's cache folder. A
        prompt longer than the model's context is used without its end, and a warning says how
        many are.
        """
        return embed(clip, self.prompts, progress=progress)


TEMPLATES = ("a photo of {}", "a picture of {}", "{}", "a drawing of {}", "an image of {}")


def prompts(name: str) -> tuple[str, ...]:
    """The texts for an object, a colour or a place."""
    if name in PLACES:
        return (PLACES[name], f"a picture {PLACES[name]}")
    if name in COLOURS:
        return (f"{name} background", f"on a {name} background")
    return tuple(template.format(with_article(name)) for template in TEMPLATES)


def world_vocabulary() -> Vocabulary:
    """Every object, colour and place of the world."""
    labels = (*NAMES, *BACKGROUNDS)
    return Vocabulary(name="world", labels=labels, prompts=tuple(map(prompts, labels)))


def object_names() -> Vocabulary:
    """Every object: the classes of zero-shot experiments."""
    return Vocabulary(name="objects", labels=NAMES, prompts=tuple(map(prompts, NAMES)))


def backgrounds() -> Vocabulary:
    """Every colour and place: what may lead a classifier of objects astray."""
    return Vocabulary(
        name="backgrounds", labels=BACKGROUNDS, prompts=tuple(map(prompts, BACKGROUNDS))
    )


# abbreviations such as "u.s", numbers, and letters such as the "s" of plurals are no words
_WORD = re.compile(r"[ai]|[a-z]+(?:'[a-z]+)+|[a-z]{2,}")


def english(count: int, name: str) -> Vocabulary:
    """The `count` most common English words, most common first.

    Raises
    ------
    SecondLensError
        wordfreq is missing.
    """
    try:
        from wordfreq import top_n_list
    except ImportError:
        raise SecondLensError(f"{name} needs wordfreq: pip install 'secondlens[words]'") from None
    tokens = top_n_list("en", 2 * count, ascii_only=True)
    words = tuple(token for token in tokens if _WORD.fullmatch(token))[:count]
    return Vocabulary(name=name, labels=words, prompts=tuple((word,) for word in words))


def english_10k() -> Vocabulary:
    """The 10,000 most common English words."""
    return english(10_000, "english-10k")


def english_30k() -> Vocabulary:
    """The 30,000 most common English words."""
    return english(30_000, "english-30k")


def imagenet() -> Vocabulary:
    """The 1,000 classes of ImageNet in their order."""
    from open_clip import IMAGENET_CLASSNAMES

    return class_names("imagenet", IMAGENET_CLASSNAMES)


def class_names(name: str, labels: Iterable[str]) -> Vocabulary:
    """Names of classes, each in OpenAI's 80 prompts."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    labels = tuple(labels)
    prompts = tuple(tuple(fill(label) for fill in OPENAI_IMAGENET_TEMPLATES) for label in labels)
    return Vocabulary(name=name, labels=labels, prompts=prompts)


@checked
def vocabulary(
    texts: "str | Path | Iterable[str] | Vocabulary",
    *,
    name: str | None = None,
    templates: Sequence[str] | None = None,
) -> Vocabulary:
    """A vocabulary from a file, a column of a table, a built-in name, or texts in memory.

    Blank and repeated texts are dropped; the first of each stays in its place.

    Parameters
    ----------
    texts
        One of:

        - the path of a text file in UTF-8, one text a line; a file of that path goes before a
          built-in name;
        - a list of texts in a file `.json`;
        - `"words.csv:column"`, or of a file `.tsv`, `.parquet`, `.json` or `.jsonl`; rows without a
          text there are dropped;
        - `"english-10k"` or `"english-30k"`: the most common English words after the `wordfreq`
          package (`pip install 'secondlens[words]'`), made of the letters a to z and apostrophes,
          and of single letters only "a" and "i";
        - `"imagenet"`: the 1,000 class names in their order, each in the 80 prompts that open_clip
          has from OpenAI; two names occur twice;
        - `"world"`: the objects, colours and places of the embedded world;
        - any iterable of texts;
        - a vocabulary.
    name
        By default the built-in name, the file's stem (with the column), or "texts".
    templates
        Prompts with `{}` where the text goes; their embeddings are averaged. By default the text
        itself, or the built-in prompts.

    Raises
    ------
    SecondLensError
        No such file, column or name; a file that cannot be read; a package that is missing; no
        texts; or no template, or one without `{}`.
    """
    found = _find(texts)
    if templates is not None:
        found = replace(found, prompts=_fill(templates, found.labels))
    return found if name is None else replace(found, name=name)


def _find(texts: "str | Path | Iterable[str] | Vocabulary") -> Vocabulary:
    if isinstance(texts, Vocabulary):
        return texts
    if not isinstance(texts, str | Path):
        return _from_texts("texts", texts)
    path = Path(texts)
    # texts themselves may be too long for the name of a file, at which Path.is_file would raise
    if os.path.isfile(path):  # noqa: PTH113
        return _from_texts(path.stem, read_lines(path))
    place, _, column = str(texts).rpartition(":")
    table = Path(place)
    if table.suffix.lower() in (*TABLES, ".json") and column:
        return _from_texts(f"{table.stem}:{column}", read_column(table, column))
    if str(texts) in named_vocabularies:
        return named_vocabularies[str(texts)]()
    hint = named_vocabularies.near(str(texts))
    raise SecondLensError(
        f"there is no file {texts} and no vocabulary of that name{hint}: name a text file with "
        f"one text a line, table.csv:column, or one of {', '.join(named_vocabularies.names)}"
    )


def _from_texts(name: str, texts: Iterable[str]) -> Vocabulary:
    labels = tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not labels:
        raise SecondLensError(f"there are no texts in {name}: give at least one")
    for label in labels:
        try:
            label.encode()
        except UnicodeEncodeError:
            raise SecondLensError(
                f"the text {label!a} in {name} has half a character: write it in UTF-8"
            ) from None
    return Vocabulary(name=name, labels=labels, prompts=_fill(("{}",), labels))


def _fill(templates: Sequence[str], labels: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    if not templates:
        raise SecondLensError("there are no templates: give at least one, such as 'a photo of {}'")
    if bad := [template for template in templates if "{}" not in template]:
        raise SecondLensError(f"the template {bad[0]!r} has no {{}} where the text goes")
    return tuple(tuple(t.replace("{}", label) for t in templates) for label in labels)
