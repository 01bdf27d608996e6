"""Verdicts: arithmetic on figures that are made up."""

import math

import pytest

from kfbench.claims.verdicts import OPEN, REFUTED, REPRODUCED, judge, outcome, verdict
from kfbench.results.seeds import Ratio

PART = {
    "measure": "final_train_loss",
    "of": "a",
    "to": "b",
    "below": 1.0,
    "above": None,
    "everywhere": False,
    "decides": True,
}


def part(**changes):
    return {**PART, **changes}


@pytest.mark.parametrize(
    ("ratio", "side", "threshold", "expected"),
    [
        (Ratio(0.5, 0.4, 0.6, 3), "below", 1.0, REPRODUCED),
        (Ratio(0.5, 0.4, 1.6, 3), "below", 1.0, OPEN),  # the interval contains the threshold
        (Ratio(2.0, 1.5, 2.5, 3), "below", 1.0, REFUTED),
        (Ratio(2.0, 1.5, 2.5, 3), "above", 1.0, REPRODUCED),
        (Ratio(0.5, 0.4, 0.6, 3), "above", 1.0, REFUTED),
        (Ratio(0.5, None, None, 1), "below", 1.0, OPEN),  # one pair has no interval
        (Ratio(math.nan, None, None, 3), "below", 1.0, OPEN),
        (Ratio(1.0, 1.0, 1.0, 9), "below", 1.0, REFUTED),  # exact, and not below
    ],
)
def test_outcome_of_a_part(ratio, side, threshold, expected):
    assert outcome(ratio, side, threshold) == expected


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([REPRODUCED, REPRODUCED], REPRODUCED),
        ([REPRODUCED, OPEN], OPEN),
        ([OPEN, REFUTED], REFUTED),
        ([], OPEN),
    ],
)
def test_all_parts_must_hold_and_one_refutes(outcomes, expected):
    assert verdict([{"outcome": found, "decides": True} for found in outcomes]) == expected


def test_parts_beside_the_claim_do_not_decide():
    assert verdict([{"outcome": REPRODUCED, "decides": True}, {"outcome": REFUTED, "decides": False}]) == REPRODUCED


def test_ratios_are_paired_by_seed():
    judged = judge(part(), [0.1, 1.0, 10.0], [0.2, 2.0, 20.0])
    assert judged["ratio"] == pytest.approx(0.5)
    assert (judged["low"], judged["high"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert judged["outcome"] == REPRODUCED
    assert "above" not in judged


def test_scatter_between_seeds_leaves_it_open():
    assert judge(part(), [0.1, 1.0, 4.0], [1.0, 1.0, 1.0])["outcome"] == OPEN


def test_everywhere_takes_the_largest_ratio():
    judged = judge(part(everywhere=True, measure="frobenius_error"), [0.1, 0.9, 1.1], [1.0, 1.0, 1.0])
    assert judged["ratio"] == pytest.approx(1.1)
    assert judged["outcome"] == REFUTED


def test_above_everywhere_takes_the_smallest_ratio():
    judged = judge(part(everywhere=True, below=None, above=1.0), [0.9, 5.0], [1.0, 1.0])
    assert (judged["ratio"], judged["outcome"]) == (0.9, REFUTED)


def test_what_a_grid_leaves_open_widens_the_interval():
    wanted = part(measure="least_damping", below=None, above=3.0)
    equal = [10.0, 10.0, 10.0], [1.0, 1.0, 1.0]
    assert judge(wanted, *equal)["outcome"] == REPRODUCED
    assert judge(wanted, *equal, slack=(0.1, 10.0))["outcome"] == OPEN


def test_times_are_medians_over_rounds():
    rounds = [1.5] * 10 + [9.0]
    judged = judge(part(measure="seconds_per_update", below=2.0), rounds, [1.0] * 11)
    assert (judged["ratio"], judged["low"], judged["high"]) == (1.5, 1.5, 1.5)
    assert judged["outcome"] == REPRODUCED
    few = judge(part(measure="seconds_per_update", below=2.0), rounds[:3], [1.0] * 3)
    assert (few["low"], few["high"], few["outcome"]) == (None, None, OPEN)


def test_a_method_that_always_diverges_is_certainly_worse():
    assert judge(part(), [math.inf] * 3, [1.0] * 3)["outcome"] == REFUTED
    assert judge(part(above=1.0, below=None), [math.inf] * 3, [1.0] * 3)["outcome"] == REPRODUCED
    assert judge(part(), [1.0] * 3, [math.inf] * 3)["outcome"] == REPRODUCED
    assert judge(part(), [1.0, math.inf, 1.0], [1.0] * 3)["outcome"] == OPEN  # one seed of three decides nothing
    assert judge(part(), [math.inf] * 3, [math.inf] * 3)["outcome"] == OPEN


def test_steps_that_raise_the_loss_make_less_progress():
    progress = part(measure="progress", below=None, above=1.0, kind="rescaled")
    judged = judge(progress, [-0.042, -0.040, -0.045], [0.027, 0.042, 0.032])
    assert judged["outcome"] == REFUTED and judged["ratio"] == pytest.approx(-0.127 / 0.101)
    assert judge(progress, [0.027, 0.042, 0.032], [-0.042, -0.040, -0.045])["outcome"] == OPEN, "a ratio to a loss"
    assert judge(progress, [-0.3, 0.4, 0.2], [0.1, 0.1, 0.1])["outcome"] == OPEN


def test_a_hair_above_zero_and_a_hair_below_say_the_same_of_progress():
    progress = part(measure="progress", below=None, above=1.0, kind="rescaled")
    below, above = (judge(progress, [hair, 0.09, 0.1], [0.05] * 3) for hair in (-1e-6, 1e-6))
    assert below["ratio"] == pytest.approx(above["ratio"], rel=1e-3)


def test_nothing_measured_decides_nothing():
    assert judge(part(), [], [])["outcome"] == OPEN
