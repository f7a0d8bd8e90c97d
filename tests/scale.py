"""How thorough the tests are: `make test-all` tries each property many more times."""

import os

import pytest

TIMES = int(os.environ.get("TEST_TIMES", "1"))
"""By which the number of random examples is multiplied."""

PATIENCE = 3600.0
"""Seconds after which what does not come is taken to be lost, however busy the machine is."""


def sampled(names, often):
    """All names as parameters; those that are not tried often are left to `make test-all`."""
    return [pytest.param(name, marks=[] if name in often else pytest.mark.long) for name in names]
