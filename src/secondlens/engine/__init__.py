"""Where long work runs: in this process, in several here, or on the machines of a Ray cluster.

An engine maps a `Work` over tasks; which worker does which task, and when, changes nothing about
what comes out. `Local` and `Ray` start workers, and a `Pool` keeps them busy: a worker that dies is
replaced, a task that fails is tried again, and what always fails is reported when the rest is done.
"""

from .local import Local
from .pool import Engine
from .ray import Ray

__all__ = ["Engine", "Local", "Ray"]
