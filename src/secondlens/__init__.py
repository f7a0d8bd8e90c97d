"""What single neurons of CLIP do: second-order effects, described in words.

The public names of the library are those of `__init__.pyi`. Each is imported when it is first used:
the command line says what it can do before torch is there. See arXiv 2406.04341.
"""

import warnings
from typing import Any

import lazy_loader

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

RENAMED = {"Cut": "AblatedClip"}
"""Names of version 0.1, which are understood until 0.3."""


def __getattr__(name: str) -> Any:
    if name in RENAMED:
        new = RENAMED[name]
        message = f"secondlens.{name} is called secondlens.{new} now; the old name ends with 0.3"
        warnings.warn(message, FutureWarning, stacklevel=2)
        return _public(new)
    return _public(name)
