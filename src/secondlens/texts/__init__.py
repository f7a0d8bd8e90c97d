"""Where texts come from: vocabularies to describe neurons with, and zero-shot classifiers."""

from .choose import vocabulary
from .embedding import NORMALISATIONS, embed_texts, normalise
from .vocabulary import Vocabulary

__all__ = ["NORMALISATIONS", "Vocabulary", "embed_texts", "normalise", "vocabulary"]
