"""What this process does about Ctrl-C and about memory that it no longer needs.

It needs next to nothing, so that it is there before anything else is imported.
"""

import ctypes
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


_MMAP_MAX, _TRIM_THRESHOLD = -4, -1
"""Parameters of glibc's mallopt, see its malloc.h."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory that tensors free, for the tensors that come next.

    glibc asks the system for every large tensor anew and the system clears its pages, which costs
    about a tenth of a captured forward pass. Other C libraries are left as they are.

    Returns
    -------
    Whether it took effect.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def give_back_memory() -> bool:
    """Give what was freed so far back to the system: loading leaves holes of hundreds of megabytes.

    Returns
    -------
    Whether there was something to give back.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    return bool(trim(0))
