import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from secondlens.intervals import of_mean, of_median, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (7, 7), (3, 11), (812, 1000)])
def test_wilson_equals_scipys(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high))


def test_no_trials():
    assert wilson(0, 0) == (0, 1)


def test_bootstraps_equal_scipys():
    values = np.random.default_rng(0).exponential(size=200)
    for ours, statistic in ((of_mean, np.mean), (of_median, np.median)):
        found = bootstrap([values], statistic, method="percentile", rng=np.random.default_rng(1))
        expected = found.confidence_interval
        assert ours(values) == pytest.approx((expected.low, expected.high), rel=0.05)


@pytest.mark.parametrize("interval", [of_mean, of_median])
def test_no_values(interval):
    assert np.isnan(interval([])).all()
