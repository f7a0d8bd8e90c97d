"""What single neurons of CLIP do: second-order effects, described in words.

The public names of the library are those of `__init__.pyi`. Each is imported when it is first used:
the command line says what it can do before torch is there. See arXiv 2406.04341.
"""

import sys
from types import ModuleType
from typing import Any

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


class _Package(ModuleType):
    """A package whose functions are not hidden by the modules that are named after them."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in __all__):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
