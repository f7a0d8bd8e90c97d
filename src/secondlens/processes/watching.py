"""Worker processes do not outlive the process that started them, however that one ends."""

import os
import threading
from multiprocessing import parent_process

import psutil

PAUSE = 1.0
"""Seconds between two looks at a parent whose end is not announced."""


def end_with_parent(*_: object) -> None:
    """Watch the parent of this worker from now on, and end when it has ended; a function that
    libraries may call with arguments of their own, which do not count.

    A parent that is killed says nothing to its workers, which would wait for work for ever.
    """
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = parent_process()
    assert parent is not None
    try:
        process = psutil.Process(parent.pid or 0)
        while parent.is_alive() and process.is_running():
            # a sibling that was forked later holds the pipe that closes with the parent
            parent.join(PAUSE)
    except psutil.NoSuchProcess:
        pass
    os._exit(1)
