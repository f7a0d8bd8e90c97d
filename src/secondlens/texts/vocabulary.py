"""Texts with labels and prompts."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..clip.view import Clip
from .embedding import embed


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
