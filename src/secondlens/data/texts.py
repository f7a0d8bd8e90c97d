"""Texts where other sources hold pictures, for the text tower of a model."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import SecondLensError, SecondLensWarning
from ..models.open_clip.texts import TextClip
from ..models.view import Clip
from .embedding import cut_texts
from .sources import Choice, ImageSource, as_source


class Texts:
    """A source whose items are texts, each of which is its own id.

    Parameters
    ----------
    texts
        In a list, none twice.

    Raises
    ------
    SecondLensError
        Something in it is not a text, or is an empty one.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.ids = list(texts)
        for place, text in enumerate(self.ids):
            if not isinstance(text, str) or not text.strip():
                raise SecondLensError(f"text {place} is {text!r}: give texts with words in them")

    def load(self, index: int) -> Any:
        """Text `index`, which a text tower's preprocessing takes where others take pictures."""
        return self.ids[index]


def source_for(clip: Clip, images: Any, choice: Choice | None = None) -> ImageSource:
    """What a model reads: `as_source` of pictures, or for a text tower the texts that are given.

    Parameters
    ----------
    clip
        The model.
    images
        What `as_source` takes; for a text tower texts in a list, the path of a file with one text a
        line (empty lines and repeated texts are left out), or a source of texts.
    choice
        As for `as_source`.

    Raises
    ------
    SecondLensError
        As `as_source`; or there is no such file, it is not UTF-8, no texts are in it, or the model
        came without a tokenizer.
    """
    if not isinstance(clip, TextClip):
        return as_source(images, choice)
    if clip.preprocess is None:
        raise SecondLensError(
            f"{clip.name} came without a tokenizer: pass tokenizer= when wrapping the model"
        )
    if isinstance(images, str | Path):
        images = texts_in(Path(images))
    source = as_source(images if isinstance(images, ImageSource) else Texts(images))
    if isinstance(source, Texts) and (cut := cut_texts(clip, source.ids)):
        warnings.warn(
            f"{len(cut):,} of {len(source.ids):,} texts are longer than the context of "
            f"{clip.name}, which does not see their ends, such as {cut[0][:40]!r}",
            SecondLensWarning,
            stacklevel=2,
        )
    return source


def texts_in(path: Path) -> Texts:
    """Return the texts of a file, one a line; empty lines and repeated texts are left out.

    Raises
    ------
    SecondLensError
        There is no such file, it is not UTF-8, or no texts are in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SecondLensError(
            f"the text tower reads a file with one text a line, and {path} is not one: {error}"
        ) from error
    texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if left_out := len(lines) - len(texts):
        warnings.warn(
            f"{left_out:,} of {len(lines):,} lines of {path} are empty or repeat another: they are "
            "left out",
            SecondLensWarning,
            stacklevel=2,
        )
    return Texts(texts)
