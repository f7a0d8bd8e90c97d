"""How thorough the tests are: `make test-all` tries each property many more times."""

import os

TIMES = int(os.environ.get("TEST_TIMES", "1"))
"""By which the number of random examples is multiplied."""

PATIENCE = 3600.0
"""Seconds after which what does not come is taken to be lost, however busy the machine is."""
