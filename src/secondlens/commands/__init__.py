"""The command line: each command in a file of its own, which parses, calls and prints.

Nothing here may import torch before a command runs: help and completion have to be fast.
"""

from .process import INTERRUPTED, told

with told():  # click, rich and the commands take long enough for a Ctrl-C
    from .group import main

__all__ = ["INTERRUPTED", "main"]
