import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from secondlens.intervals import of_mean, of_median, of_ratio, wilson


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


def test_a_ratio_is_drawn_in_pairs():
    random = np.random.default_rng(0)
    wholes = random.exponential(size=200)
    parts = wholes * random.normal(0.3, 0.5, size=200)
    found = bootstrap(
        (parts, wholes),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    expected = found.confidence_interval
    assert of_ratio(parts, wholes) == pytest.approx((expected.low, expected.high), rel=0.05)
    assert np.isnan(of_ratio([], [])).all()


@pytest.mark.parametrize("interval", [of_mean, of_median])
def test_no_values(interval):
    assert np.isnan(interval([])).all()
