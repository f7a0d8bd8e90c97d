"""What single neurons of CLIP do: second-order effects, described in words.

The public names of the library, in the order one uses them. See arXiv 2406.04341.
"""

from . import sparse
from .ablate import ablate
from .clip import Clip, from_open_clip, from_transformers, load
from .describe import describe
from .dissect import dissect
from .effects import direct, indirect, second_order
from .errors import SecondLensError, UnsupportedModel
from .fit import fit
from .images import Folder, ImageSource
from .lens import Codes, Lens
from .score import score
from .search import Match, search, similar
from .segment import segment
from .stability import stability
from .texts import Vocabulary, vocabulary

__all__ = [
    "Clip",
    "Codes",
    "Folder",
    "ImageSource",
    "Lens",
    "Match",
    "SecondLensError",
    "UnsupportedModel",
    "Vocabulary",
    "ablate",
    "describe",
    "direct",
    "dissect",
    "fit",
    "from_open_clip",
    "from_transformers",
    "indirect",
    "load",
    "score",
    "search",
    "second_order",
    "segment",
    "similar",
    "sparse",
    "stability",
    "vocabulary",
]
