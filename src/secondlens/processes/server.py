"""What workers are forked from: a process that imports everything once, and this module first.

The imports take seconds. If the process that wants the workers is killed meanwhile, nothing else
would notice before they are done.
"""

import importlib
import os
import threading

IMPORTED = ("lens.shards", "words.describing", "applications.adversarial.attacks")
"""What work is made of."""
PAUSE = 0.2
"""Seconds between two looks at the parent."""


def _watch(parent: int, done: threading.Event) -> None:
    while not done.wait(PAUSE):
        if os.getppid() != parent:
            os._exit(1)


def _import_all() -> None:
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(os.getppid(), done))
    watch.start()
    try:
        for name in IMPORTED:
            importlib.import_module(f"secondlens.{name}")
    finally:
        done.set()
        watch.join()  # a process with threads is no good one to fork


_import_all()
