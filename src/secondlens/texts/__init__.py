"""Where texts come from: vocabularies to describe neurons with, and zero-shot classifiers."""

from .embedding import NORMALISATIONS, normalise
from .vocabulary import Vocabulary, vocabulary

__all__ = ["NORMALISATIONS", "Vocabulary", "normalise", "vocabulary"]
