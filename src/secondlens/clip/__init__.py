"""One view over any CLIP: where models come from, what the mathematics reads, and whether it is so.

`load` and its like make a `Clip` of a model of open_clip or transformers, with one module for each
family. A tower that computes anything else than the mathematics describes is refused, with the
reason, and every view is checked against the model's own forward pass before it is handed out.
"""

from .block import Block
from .loading import PRECISIONS, load
from .open_clip_view import from_open_clip
from .parity import check_parity
from .pretrained import DEMOS
from .transformers_view import from_transformers
from .view import Clip

__all__ = [
    "DEMOS",
    "PRECISIONS",
    "Block",
    "Clip",
    "check_parity",
    "from_open_clip",
    "from_transformers",
    "load",
]
