"""Which texts a path, a name or an object stands for."""

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import SecondLensError
from .builtin import BUILTIN
from .files import TABLES, read_column, read_lines
from .vocabulary import Vocabulary


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
        - `"words.csv:column"` or `"words.parquet:column"`;
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
    if table.suffix.lower() in TABLES and column:
        return _from_texts(f"{table.stem}:{column}", read_column(table, column))
    if str(texts) in BUILTIN:
        return BUILTIN[str(texts)]()
    close = difflib.get_close_matches(str(texts).lower(), BUILTIN)
    hint = f" (did you mean {', '.join(close)}?)" if close else ""
    raise SecondLensError(
        f"there is no file {texts} and no vocabulary of that name{hint}: name a text file with "
        f"one text a line, table.csv:column, or one of {', '.join(BUILTIN)}"
    )


def _from_texts(name: str, texts: Iterable[str]) -> Vocabulary:
    labels = tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not labels:
        raise SecondLensError(f"there are no texts in {name}: give at least one")
    return Vocabulary(name=name, labels=labels, prompts=_fill(("{}",), labels))


def _fill(templates: Sequence[str], labels: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    if not templates:
        raise SecondLensError("there are no templates: give at least one, such as 'a photo of {}'")
    if bad := [template for template in templates if "{}" not in template]:
        raise SecondLensError(f"the template {bad[0]!r} has no {{}} where the text goes")
    return tuple(tuple(t.replace("{}", label) for t in templates) for label in labels)
