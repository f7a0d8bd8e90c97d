"""Texts as vectors: embedded once for a model and kept on disk, and made into atoms."""

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import platformdirs
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..devices import undisturbed
from ..errors import SecondLensError
from ..models.view import TEXTS_PER_BATCH, Clip
from ..progress import tracked
from ..storage.checkpoints import load_tensors, save_tensors
from ..storage.validation import DAMAGED

NORMALISATIONS = ("unit", "centred", "official")

Prompts = Sequence[Sequence[str]]


@undisturbed
def embed(clip: Clip, prompts: Prompts, *, progress: bool = False) -> Float[Tensor, "texts dim"]:
    """The normalised mean of the embeddings of each text's prompts; see `Vocabulary.embed`."""
    count = sum(map(len, prompts))
    if count <= TEXTS_PER_BATCH:
        rows, cut = _embed(clip, prompts, progress)
    else:
        path = cache_folder() / f"{_content_hash(clip, prompts)}.safetensors"
        known = _load(path, (len(prompts), clip.dim))
        rows, cut = known or _embed(clip, prompts, progress)
        if known is None:
            # a cache that cannot be written costs time only
            with suppress(SecondLensError):
                save_tensors(path, {"rows": rows, "cut": torch.tensor(cut)})
    if cut:
        warnings.warn(
            f"{cut:,} of {count:,} prompts are longer than the context of {clip.name}, which does "
            "not see their ends",
            stacklevel=3,
        )
    return rows.to(clip.device)


def cache_folder() -> Path:
    """Where embeddings are kept: `SECONDLENS_CACHE`, or the user's cache folder."""
    chosen = os.environ.get("SECONDLENS_CACHE")
    return (Path(chosen) if chosen else platformdirs.user_cache_path("secondlens")) / "texts"


def _content_hash(clip: Clip, prompts: Prompts) -> str:
    # the same weights make other rows with another activation function or, by name, tokenizer
    content = [
        clip.weights_hash,
        clip.activation,
        clip.origin or clip.name,
        str(clip.compute_dtype),
        prompts,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _load(path: Path, shape: tuple[int, int]) -> tuple[Tensor, int] | None:
    """Rows and the number of prompts that were cut; None if the file is missing or damaged."""
    try:
        tensors = load_tensors(path)
        rows, cut = tensors["rows"], int(tensors["cut"])
        known = rows.shape == shape and rows.is_floating_point() and bool(rows.isfinite().all())
    except DAMAGED:
        return None
    return (rows, cut) if known and cut >= 0 else None


def _embed(clip: Clip, prompts: Prompts, progress: bool) -> tuple[Tensor, int]:
    """One unit row for each text, and the number of prompts that were cut."""
    flat = [prompt for of_text in prompts for prompt in of_text]
    starts = range(0, len(flat), TEXTS_PER_BATCH)
    batches = [
        clip.encode_text(flat[start : start + TEXTS_PER_BATCH])
        for start in (tracked(starts, "texts", progress))
    ]
    rows = torch.cat(batches)
    means = [each.mean(dim=0) for each in rows.split([len(of_text) for of_text in prompts])]
    return F.normalize(torch.stack(means), dim=-1), len(_cut(clip, flat, rows))


def embed_texts(clip: Clip, texts: str | Sequence[str]) -> Float[Tensor, "texts dim"]:
    """Unit rows for one text or several, which the model must read to their end.

    Raises
    ------
    SecondLensError
        No texts, an empty one, or one longer than the model's context.
    """
    texts = [text.strip() for text in ([texts] if isinstance(texts, str) else texts)]
    if not texts:
        raise SecondLensError("there are no texts: give at least one")
    if not all(texts):
        raise SecondLensError("there is a text with nothing in it: give a word or a sentence")
    rows = clip.encode_text(texts)
    if unread := _cut(clip, texts, rows):
        raise SecondLensError(
            f"the text {texts[unread[0]][:30]!r}… is longer than {clip.name} can read: shorten it"
        )
    return rows


def cut_texts(clip: Clip, texts: Sequence[str]) -> list[str]:
    """Return the texts whose ends the model does not see; only long ones are embedded for that."""
    long = [text for text in texts if len(text.encode()) > clip.context_length - 2]
    return [long[each] for each in _cut(clip, long, clip.encode_text(long))] if long else []


def _cut(clip: Clip, texts: Sequence[str], rows: Float[Tensor, "texts dim"]) -> list[int]:
    """The texts that embed as well without their last word: the model does not see their ends."""
    # a token is a byte at least, and two are left for the marks of start and end
    long = [i for i, text in enumerate(texts) if len(text.encode()) > clip.context_length - 2]
    if not long:
        return []
    # not without the last letter: a word that a model does not know may be as good as another
    shorter = [" ".join(texts[i].split()[:-1]) or texts[i][:-1] for i in long]
    distances = (clip.encode_text(shorter) - rows[long]).norm(dim=1)
    # equal up to rounding, which depends on the batch
    tolerance = torch.finfo(clip.dtype).eps ** 0.5
    return [i for i, distance in zip(long, distances.tolist(), strict=True) if distance < tolerance]


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
        No such normalisation, or a single text for one that subtracts the mean.
    """
    if how not in NORMALISATIONS:
        raise SecondLensError(
            f"no normalisation {how!r}: choose one of {', '.join(NORMALISATIONS)}"
        )
    if how == "unit":
        return F.normalize(texts, dim=-1)
    if len(texts) < 2:
        raise SecondLensError(
            f"{how} texts are what differs from their mean, and there is one text: give more"
        )
    centred = texts - texts.mean(dim=0)
    if how == "official":
        scaled: Tensor = 100 * centred / centred.norm(dim=0)
        return scaled
    return F.normalize(centred, dim=-1)
