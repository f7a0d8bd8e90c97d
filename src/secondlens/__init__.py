"""What single neurons of CLIP do: second-order effects, described in words.

The public names of the library, in the order one uses them. See arXiv 2406.04341.
"""

from . import sparse
from .ablate import ablate
from .clip import Clip, from_open_clip, from_transformers, load
from .describe import describe
from .effects import direct, indirect, second_order
from .errors import SecondLensError, UnsupportedModel
from .fit import fit
from .images import Folder, ImageSource
from .lens import Codes, Lens
from .search import Match, search, similar
from .segment import segment
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
    "fit",
    "from_open_clip",
    "from_transformers",
    "indirect",
    "load",
    "search",
    "second_order",
    "segment",
    "similar",
    "sparse",
    "vocabulary",
]
