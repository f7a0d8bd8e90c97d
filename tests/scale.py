"""How thorough the tests are: `make test-all` tries each property many more times."""

import os

TIMES = int(os.environ.get("TEST_TIMES", "1"))
