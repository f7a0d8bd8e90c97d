"""Semantic adversarial images: pictures of one class that a CLIP takes for another.

The attack of section 5 of arXiv 2406.04341 in four steps, each a small protocol in a file of its
own: `select` words, `write` captions, `draw` pictures, `judge` them. `run` puts them together in a
folder that resumes.
"""

from .attack import attack, attack_pairs
from .attacker import Attacker
from .judge import Exact, Referee
from .methods import METHODS
from .report import Report, Shot
from .select import Neurons, Pair, RandomWords, SimilarWords, Word
from .write import Caption, TemplateWriter

__all__ = [
    "METHODS",
    "Attacker",
    "Caption",
    "Exact",
    "Neurons",
    "Pair",
    "RandomWords",
    "Referee",
    "Report",
    "Shot",
    "SimilarWords",
    "TemplateWriter",
    "Word",
    "attack",
    "attack_pairs",
]
