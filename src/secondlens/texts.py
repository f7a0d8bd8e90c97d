"""Where texts come from: vocabularies to describe neurons with, and zero-shot classifiers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .errors import SecondLensError
from .view import Clip

NORMALISATIONS = ("unit", "centred", "official")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Texts with short labels; a text may be several prompts whose embeddings are averaged."""

    name: str
    labels: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.labels)

    def embed(self, clip: Clip) -> Float[Tensor, "texts dim"]:
        """One unit row for each label: the normalised mean of its prompts' embeddings."""
        rows = clip.encode_text([prompt for prompts in self.prompts for prompt in prompts])
        counts = [len(prompts) for prompts in self.prompts]
        return F.normalize(torch.stack([r.mean(0) for r in rows.split(counts)]), dim=-1)


def vocabulary(
    texts: "str | Path | Iterable[str] | Vocabulary",
    *,
    name: str | None = None,
    templates: Sequence[str] = ("{}",),
) -> Vocabulary:
    """A vocabulary from a text file (one text a line) or from texts in memory.

    Blank lines and repeated texts are dropped; the first of each stays in its place.

    Parameters
    ----------
    texts
        The path of a file, any iterable of texts, or a vocabulary, which is returned as it is.
    name
        By default the file's stem, or "texts".
    templates
        Prompts with `{}` where the text goes; their embeddings are averaged.

    Raises
    ------
    SecondLensError
        No such file, a file that is not UTF-8, no texts, or a template without `{}`.
    """
    if isinstance(texts, Vocabulary):
        return texts
    if isinstance(texts, str | Path):
        name = name or Path(texts).stem
        texts = _read_lines(Path(texts))
    labels = tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not labels:
        raise SecondLensError("there are no texts: give at least one")
    if bad := [template for template in templates if "{}" not in template]:
        raise SecondLensError(f"the template {bad[0]!r} has no {{}} where the text goes")
    prompts = tuple(tuple(t.replace("{}", label) for t in templates) for label in labels)
    return Vocabulary(name=name or "texts", labels=labels, prompts=prompts)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise SecondLensError(f"no file {path}: name a text file with one text a line") from None
    except (UnicodeDecodeError, OSError) as error:
        raise SecondLensError(f"{path} cannot be read as UTF-8 text: {error}") from error


def normalise(
    texts: Float[Tensor, "texts dim"], how: str = "centred"
) -> Float[Tensor, "texts dim"]:
    """Text embeddings as atoms for sparse coding.

    `unit`: rows of unit norm. `centred`: the mean text subtracted first, so that what all texts
    share explains nothing. `official`: centred, then each column (not row) scaled to unit norm,
    times 100, as the published code does.

    Raises
    ------
    SecondLensError
        No such normalisation.
    """
    if how not in NORMALISATIONS:
        raise SecondLensError(
            f"no normalisation {how!r}: choose one of {', '.join(NORMALISATIONS)}"
        )
    if how == "unit":
        return F.normalize(texts, dim=-1)
    centred = texts - texts.mean(dim=0)
    if how == "official":
        return 100 * centred / centred.norm(dim=0)
    return F.normalize(centred, dim=-1)
