import pytest
from scipy.stats import binomtest

from secondlens.intervals import wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (7, 7), (3, 11), (812, 1000)])
def test_wilson_equals_scipys(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high))


def test_no_trials():
    assert wilson(0, 0) == (0, 1)
