"""How this process gives memory back."""

import ctypes

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
