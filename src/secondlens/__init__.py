"""What single neurons of CLIP do: second-order effects, described in words.

The public names of the library, in the order one uses them. See arXiv 2406.04341.
"""

from . import sparse
from .ablate import ablate
from .attack import attack
from .audit import Audit, audit
from .budget import budget
from .clip import Clip, from_open_clip, from_transformers, load
from .cut import Cut
from .defend import Defence, defend
from .describe import describe
from .discover import discover
from .dissect import dissect
from .effects import direct, second_order
from .errors import SecondLensError, UnsupportedModel
from .first_order import ablate_attention
from .fit import fit
from .images import Folder, ImageSource
from .indirect import indirect
from .lens import Codes, Lens
from .resize import resized
from .score import score
from .search import Match, search, similar
from .segment import segment
from .stability import stability
from .texts import Vocabulary, vocabulary

__all__ = [
    "Audit",
    "Clip",
    "Codes",
    "Cut",
    "Defence",
    "Folder",
    "ImageSource",
    "Lens",
    "Match",
    "SecondLensError",
    "UnsupportedModel",
    "Vocabulary",
    "ablate",
    "ablate_attention",
    "attack",
    "budget",
    "audit",
    "defend",
    "describe",
    "direct",
    "discover",
    "dissect",
    "fit",
    "from_open_clip",
    "from_transformers",
    "indirect",
    "load",
    "resized",
    "score",
    "search",
    "second_order",
    "segment",
    "similar",
    "sparse",
    "stability",
    "vocabulary",
]
