"""What Ctrl-C says. It needs nothing, so that it is there before anything else is imported."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""The exit code that shells give to what SIGINT ended."""


@contextmanager
def told() -> Iterator[None]:
    """Inside it, an interruption ends the program with one sentence."""
    try:
        yield
    except KeyboardInterrupt:
        said = "Interrupted: what is finished stays; give the same command again to go on."
        print(said, file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
