"""Paired ratios: by hand, with infinite losses, and how often their intervals hold the truth."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from kfbench.results.seeds import Ratio, paired_ratio, ratio_of_means


def test_by_hand():
    """Logs of the ratios are ln 2, ln 4, ln 8; t of 2 degrees of freedom at 97.5 % is 4.302653."""
    found = paired_ratio([2.0, 4.0, 8.0], [1.0, 1.0, 1.0])
    half = 4.302653 * math.log(2) / math.sqrt(3)
    assert found.mean == pytest.approx(4.0) and found.n == 3
    assert found.low == pytest.approx(4.0 * math.exp(-half), rel=1e-6)
    assert found.high == pytest.approx(4.0 * math.exp(half), rel=1e-6)


def test_pairs_take_out_what_seeds_share():
    easy_and_hard = [1.0, 100.0, 3.0, 0.1, 20.0]
    found = paired_ratio([1.1 * loss for loss in easy_and_hard], easy_and_hard)
    assert found.low == pytest.approx(1.1) and found.high == pytest.approx(1.1) and found.significant
    assert paired_ratio(easy_and_hard, easy_and_hard) == Ratio(1.0, 1.0, 1.0, 5)
    assert not paired_ratio(easy_and_hard, easy_and_hard).significant


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_significance_needs_five_pairs(n):
    found = paired_ratio([3.0 + 0.01 * i for i in range(n)], [1.0] * n)
    assert found.significant == (n == 5)
    assert (found.low is None) == (n == 1)


@pytest.mark.parametrize(
    ("a", "b", "mean"),
    [
        ([1.0, math.inf], [1.0, 1.0], math.inf),
        ([1.0, 1.0], [math.inf, 1.0], 0.0),
        ([0.0, 1.0], [1.0, 1.0], 0.0),
        ([1.0, 1.0], [0.0, 1.0], math.inf),
        ([1e308, 1e308], [1e-308, 1e-308], math.inf),
        ([math.inf, 1.0], [1.0, math.inf], math.nan),
        ([math.inf, math.inf], [math.inf, 1.0], math.nan),
        ([0.0, 1.0], [0.0, 1.0], math.nan),
        ([math.nan, 1.0], [1.0, 1.0], math.nan),
        ([-1.0, 1.0], [1.0, 1.0], math.nan),
    ],
)
def test_losses_that_are_infinite_zero_or_no_losses(a, b, mean):
    found = paired_ratio(a, b)
    assert found.mean == mean or (math.isnan(found.mean) and math.isnan(mean))
    assert not found.significant
    if mean != math.inf or math.inf in a:
        assert found.low is None and found.high is None


def test_nothing_and_unequal_numbers_are_errors():
    for a, b in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError):
            paired_ratio(a, b)


def test_intervals_hold_the_truth_in_95_of_100_cases():
    """4,000 cases: the share of those that hold is within 1.5 % (4 standard errors) of 95 %."""
    random = np.random.default_rng(0)
    logs = math.log(1.5) + 0.4 * random.standard_normal((4000, 5))
    shared = np.exp(random.standard_normal((4000, 5)))
    held = 0
    for log, common in zip(logs, shared, strict=True):
        found = paired_ratio(list(np.exp(log) * common), list(common))
        held += found.low <= 1.5 <= found.high
    assert abs(held / 4000 - 0.95) < 0.015, f"{held / 4000:.3f} of the intervals hold the truth"


def test_fieller_interval_ends_where_the_t_test_just_refuses():
    a, b = [-0.0418, -0.0399, 0.0448], [0.0275, 0.0416, 0.0322]
    found = ratio_of_means(a, b)
    assert found.mean == pytest.approx(sum(a) / sum(b)) and found.low < found.mean < found.high
    for r in (found.low, found.high):
        assert ttest_1samp(np.array(a) - r * np.array(b), 0).pvalue == pytest.approx(0.05, rel=1e-6)


def test_ratio_to_what_is_not_clearly_positive_is_unknown():
    for b in ([-0.1, -0.1, -0.11], [0.1, -0.1, 0.05], [0.0, 0.0, 0.0], [math.nan, 1.0, 1.0], [math.inf, 1.0, 1.0]):
        found = ratio_of_means([0.1, 0.2, 0.3], b)
        assert found.low is None and found.high is None, b
    assert ratio_of_means([-1.0], [2.0]) == Ratio(-0.5, None, None, 1)
    with pytest.raises(ValueError, match="got 1 and 2 figures"):
        ratio_of_means([1.0], [1.0, 2.0])


def test_fieller_intervals_hold_the_truth_in_95_of_100_cases():
    """4,000 cases, figures of both signs: within 1.5 % (4 standard errors) of 95 %."""
    random = np.random.default_rng(0)
    b = 2 + 0.3 * random.standard_normal((4000, 5))
    a = -0.2 * b + random.standard_normal((4000, 5))
    held = sum((r := ratio_of_means(x, y)).low <= -0.2 <= r.high for x, y in zip(a.tolist(), b.tolist(), strict=True))
    assert abs(held / 4000 - 0.95) < 0.015, f"{held / 4000:.3f} of the intervals hold the truth"
