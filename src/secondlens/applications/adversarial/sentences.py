"""A judge of words by sentence embeddings: any model of sentence-transformers."""

from collections.abc import Sequence

from ...errors import SecondLensError
from ...models.strangers import UNLOADABLE, check_model, no_code_runs
from ...naming import shown_place

THRESHOLD = 0.6
"""Cosine from which on the published code counts words as close; its model is
all-distilroberta-v1."""


class Sentences:
    """Words whose embedding has a cosine of at least `threshold` with the class's are too close.

    Parameters
    ----------
    model
        Folder or hub name of a sentence-transformers model.

    Raises
    ------
    SecondLensError
        sentence-transformers is missing, there is no such model, or it names code to run.
    """

    def __init__(self, model: str, threshold: float = THRESHOLD) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise SecondLensError(
                "a sentence model needs sentence-transformers: pip install 'secondlens[attack]'"
            ) from None
        try:
            check_model(model)
            with no_code_runs():
                self._model = SentenceTransformer(model, trust_remote_code=False)
        except UNLOADABLE as error:
            raise SecondLensError(
                f"{model} is no sentence model that can be loaded: name a folder or a hub name"
            ) from error
        self.name, self.threshold = f"sentences:{shown_place(model)}", threshold
        self.facts = {"threshold": threshold}

    def similarity(self, words: Sequence[str], to: str) -> list[float]:
        """Cosine of each word with `to`."""
        rows = self._model.encode(
            [to, *words], normalize_embeddings=True, show_progress_bar=False, convert_to_tensor=True
        )
        return (rows[1:] @ rows[0]).tolist()

    def too_close(self, words: Sequence[str], to: str) -> list[bool]:
        """For each word, whether it says nearly the same as `to`."""
        return [cosine >= self.threshold for cosine in self.similarity(words, to)] if words else []
