"""Verdicts: arithmetic on figures that are made up."""

import math

import pytest

from kfbench.claims.evidence import Figures
from kfbench.claims.verdicts import OPEN, REFUTED, REPRODUCED, outcome, verdict
from kfbench.claims.verdicts import judge as judge_figures

PART = {
    "measure": "final_train_loss",
    "of": "a",
    "to": "b",
    "below": 1.0,
    "above": None,
    "everywhere": False,
    "decides": True,
}


SEEDS = 5


def part(**changes):
    return {**PART, **changes}


def judge(part, of, to, **more):
    return judge_figures(part, Figures(of, to, **more))


def judged_part(ratio, low, high, n=SEEDS, side="below", **changes):
    record = {**part(), "ratio": ratio, "low": low, "high": high, "n": n, "below": None, side: 1.0}
    return {key: value for key, value in {**record, **changes}.items() if value is not None or key in ("low", "high")}


@pytest.mark.parametrize(
    ("figures", "side", "expected"),
    [
        ((0.5, 0.4, 0.6), "below", REPRODUCED),
        ((0.5, 0.4, 1.6), "below", OPEN),  # the interval contains the threshold
        ((2.0, 1.5, 2.5), "below", REFUTED),
        ((2.0, 1.5, 2.5), "above", REPRODUCED),
        ((0.5, 0.4, 0.6), "above", REFUTED),
        ((0.5, None, None), "below", OPEN),  # one pair has no interval
        ((math.nan, None, None), "below", OPEN),
        ((1.0, 1.0, 1.0), "below", REFUTED),  # exact, and not below
    ],
)
def test_outcome_of_a_part(figures, side, expected):
    assert outcome(judged_part(*figures, side=side)) == expected


SMALL, LARGE, UNCLEAR = (0.5, 0.4, 0.6), (2.0, 1.5, 2.5), (1.0, 0.5, 2.0)


@pytest.mark.parametrize("side", ["below", "above"])
@pytest.mark.parametrize(
    ("edge", "figures", "withheld"),
    [
        ("edges_of", LARGE, True),  # an upper bound: a wider grid could bring it down to the threshold
        ("edges_of", SMALL, False),
        ("edges_to", SMALL, True),  # a lower bound
        ("edges_to", LARGE, False),
        ("edges_of", UNCLEAR, False),
        ("edges_to", UNCLEAR, False),
    ],
)
def test_a_best_point_at_an_edge_bounds_the_ratio_on_one_side(side, edge, figures, withheld):
    free = outcome(judged_part(*figures, side=side))
    label = "a" if edge == "edges_of" else "b"
    expected = f"withheld (edge: {label}, lower damping, upper alpha)" if withheld else free
    assert outcome(judged_part(*figures, side=side, **{edge: ["lower damping", "upper alpha"]})) == expected


@pytest.mark.parametrize("measure", ["final_train_loss", "seconds_to_loss"])
def test_fewer_than_five_seeds_decide_nothing_on_losses(measure):
    assert outcome(judged_part(*SMALL, n=4, measure=measure)) == "withheld (4 of 5 seeds)"
    assert outcome(judged_part(*SMALL, n=5, measure=measure)) == REPRODUCED
    assert outcome(judged_part(*UNCLEAR, n=4, measure=measure)) == OPEN
    assert outcome(judged_part(*SMALL, n=4, measure="progress")) == REPRODUCED


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([REPRODUCED, REPRODUCED], REPRODUCED),
        ([REPRODUCED, OPEN], OPEN),
        ([OPEN, REFUTED], REFUTED),
        ([], OPEN),
        ([REPRODUCED, "withheld (edge: a, lower damping)"], "withheld (edge: a, lower damping)"),
        (["withheld (edge: a, lower damping)", "withheld (3 of 5 seeds)", OPEN], None),
        (["withheld (edge: a, lower damping)", REFUTED], REFUTED),
    ],
)
def test_all_parts_must_hold_and_one_refutes(outcomes, expected):
    expected = expected or "withheld (edge: a, lower damping; 3 of 5 seeds)"
    assert verdict([{"outcome": found, "decides": True} for found in outcomes]) == expected


def test_at_another_size_it_is_a_trend():
    words = {}
    for one in (REPRODUCED, REFUTED, OPEN, "withheld (3 of 5 seeds)"):
        words[one] = verdict([{"outcome": one, "decides": True}], trend=True)
    assert list(words.values()) == ["trend (as claimed)", "trend (against)", "trend (open)", "withheld (3 of 5 seeds)"]


def test_parts_beside_the_claim_do_not_decide():
    assert verdict([{"outcome": REPRODUCED, "decides": True}, {"outcome": REFUTED, "decides": False}]) == REPRODUCED


def test_ratios_are_paired_by_seed():
    judged = judge(part(), [0.1, 1.0, 10.0, 1.0, 1.0], [0.2, 2.0, 20.0, 2.0, 2.0])
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
    judged = judge(part(everywhere=True, measure="frobenius_error", below=None, above=1.0), [0.9, 5.0], [1.0, 1.0])
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
    assert judge(part(), [math.inf] * SEEDS, [1.0] * SEEDS)["outcome"] == REFUTED
    assert judge(part(above=1.0, below=None), [math.inf] * SEEDS, [1.0] * SEEDS)["outcome"] == REPRODUCED
    assert judge(part(), [1.0] * SEEDS, [math.inf] * SEEDS)["outcome"] == REPRODUCED
    assert (
        judge(part(), [1.0, math.inf, 1.0, 1.0, 1.0], [1.0] * SEEDS)["outcome"] == OPEN
    )  # one of five decides nothing
    assert judge(part(), [math.inf] * SEEDS, [math.inf] * SEEDS)["outcome"] == OPEN


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
