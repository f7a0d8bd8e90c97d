"""What this process does about Ctrl-C, about what libraries say, and about memory that it no longer
needs.

It needs next to nothing, so that it is there before anything else is imported.
"""

import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import SecondLensWarning

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


@contextmanager
def quiet_libraries(say: Callable[[str], None], *, bars: bool) -> Iterator[None]:
    """Inside it, libraries log and warn of nothing, and what secondlens warns of is said.

    Whoever asks for warnings, with `python -W` or `PYTHONWARNINGS`, sees those of libraries too.

    Parameters
    ----------
    say
        Gets each sentence, once.
    bars
        Whether libraries may draw progress bars.
    """
    # read when the libraries are imported, which is later; a value of the user's own stays
    for name in ("DATASETS", "DIFFUSERS", "HF_HUB", "TRANSFORMERS"):
        os.environ.setdefault(f"{name}_VERBOSITY", "error")
    if not bars:
        for name in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    said: set[str] = set()

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        if not isinstance(message, SecondLensWarning):
            before(message, *rest, **more)
        elif str(message) not in said:
            said.add(str(message))
            say(str(message))

    # without a handler, the first library that logs makes one that prints
    silent = logging.NullHandler()
    logging.root.addHandler(silent)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            warnings.simplefilter("always", SecondLensWarning)
            before, warnings.showwarning = warnings.showwarning, show
            yield
    finally:
        logging.root.removeHandler(silent)


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
