"""Costs from windows: medians, intervals with their true coverage, composition, warnings, exponents, the gate."""

import json
import math
import random
from statistics import median

import pytest

from kfbench.errors import UsageError
from kfbench.results.intervals import interquartile_range, median_interval
from kfbench.wallclock.gate import gate, read_percent
from kfbench.wallclock.ratios import (
    CONTROL,
    compose,
    fitted_exponent,
    per_update,
    ratios,
    regressions,
    summarise,
    warnings_of,
)


@pytest.mark.parametrize(("n", "ranks"), [(6, (0, 5)), (9, (1, 7)), (15, (3, 11)), (25, (7, 17))])
def test_interval_is_between_the_tabulated_order_statistics(n, ranks):
    """Ranks of the 95 % interval for a median, as tabulated (for example in Conover 1999)."""
    values = random.Random(0).sample(range(1000), n)
    low, high = median_interval(values)
    assert (low, high) == tuple(sorted(values)[rank] for rank in ranks)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_too_few_values_have_no_interval(n):
    assert median_interval([1.0] * n) == (-math.inf, math.inf)


@pytest.mark.parametrize("draw", ["normal", "skewed", "bursts"])
def test_interval_covers_the_median(draw):
    rng, covered, runs = random.Random(1), 0, 2000
    sample = {
        "normal": lambda: rng.gauss(0, 1),
        "skewed": lambda: rng.expovariate(1.0) - math.log(2),
        "bursts": lambda: rng.gauss(0, 1) + (10 if rng.random() < 0.02 else 0) - 0.025,
    }[draw]
    for _ in range(runs):
        low, high = median_interval([sample() for _ in range(15)])
        covered += low <= 0 <= high
    assert covered / runs >= 0.94


def test_interquartile_range():
    assert interquartile_range([1, 2, 3, 4, 5]) == 2


def _row(round_, method, seconds, updates=1, load=0.5, order=0):
    return dict(round=round_, order=order, method=method, updates=updates, seconds=seconds, load_average=load)


def _rows(costs, rounds=15):
    """Rows of constant costs; the reference is the first."""
    reference = next(iter(costs))
    return [
        _row(r, method, cost * 10, updates=10)
        for r in range(rounds)
        for method, cost in {**costs, reference + CONTROL: costs[reference]}.items()
    ]


def test_ratio_is_to_the_mean_of_both_reference_windows():
    rows = [_row(0, "sgd", 1.0), _row(0, "sgd" + CONTROL, 3.0), _row(0, "foof", 8.0)]
    costs = per_update(rows)
    assert ratios(costs, "foof", "sgd") == [4.0]
    assert ratios(costs, "sgd", "sgd") == [1 / 3]


def test_summary_of_constant_costs():
    summary = summarise(per_update(_rows({"sgd": 0.01, "foof": 0.015})), "sgd")
    assert summary.keys() == {"sgd", "foof"}
    assert summary["foof"]["ratio"] == pytest.approx(1.5)
    assert summary["foof"]["ratio_low"] == pytest.approx(1.5)
    assert summary["sgd"]["ratio"] == pytest.approx(1.0)
    assert summary["foof"]["seconds_per_update"] == pytest.approx(0.015)
    assert summary["foof"]["rounds"] == 15


def test_composition_of_a_period():
    """T = 10, S = 4: six plain, three observing, one that observes and refreshes."""
    costs = {"sgd": {0: 1.0}, "m/plain": {0: 2.0}, "m/observing": {0: 3.0}, "m/refresh": {0: 20.0}}
    assert compose(costs, {"m": (10, 4)}) == {"sgd": {0: 1.0}, "m": {0: pytest.approx((6 * 2 + 3 * 3 + 20) / 10)}}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: [r | {"load_average": 3.0} for r in rows], "other programs run"),
        (
            lambda rows: [
                r | {"seconds": r["seconds"] * (1 + r["round"] % 2)} if r["method"] == "foof" else r for r in rows
            ],
            "foof: half of the windows spread",
        ),
        (
            lambda rows: [
                r | {"seconds": r["seconds"] * 1.5} if r["method"] == "foof" and r["round"] < 3 else r for r in rows
            ],
            "foof: the first rounds were more than",
        ),
    ],
)
def test_warnings_say_what_was_seen(change, sentence):
    rows = _rows({"sgd": 0.01, "foof": 0.015})
    assert warnings_of(rows, per_update(rows), "sgd", cpu_count=2, threads=1) == []
    rows = change(rows)
    found = warnings_of(rows, per_update(rows), "sgd", cpu_count=2, threads=1)
    assert any(sentence in warning for warning in found)


def test_threads_beyond_free_cores_warn():
    rows = _rows({"sgd": 0.01})
    assert any("exceed the 2 cores" in w for w in warnings_of(rows, per_update(rows), "sgd", cpu_count=2, threads=4))
    busy = [{**row, "load_average": 5.0} for row in rows]
    found = warnings_of(busy, per_update(busy), "sgd", cpu_count=2, threads=1)
    assert not any("--threads 1" in w for w in found), "that is what was used"


@pytest.mark.parametrize("exponent", [0.5, 1, 2.5])
def test_exponent_of_a_power_law(exponent):
    assert fitted_exponent([(x, 3 * x**exponent) for x in (10, 50, 400)]) == pytest.approx(exponent)
    assert fitted_exponent([(10, 1.0), (10, 2.0)]) is None


def _entry(ratio, spread, seconds=0.01):
    found = {"rounds": 15}
    for key, value in (("ratio", ratio), ("seconds_per_update", seconds)):
        found |= {key: value, key + "_low": value * (1 - spread), key + "_high": value * (1 + spread)}
    return found


@pytest.mark.parametrize(
    ("now", "spread", "failed"),
    [(1.5, 0.01, False), (1.55, 0.01, False), (1.75, 0.01, True), (1.75, 0.2, False), (1.2, 0.01, False)],
)
def test_gate_fails_only_beyond_doubt(now, spread, failed):
    (row,) = regressions({"foof": _entry(now, spread)}, {"foof": _entry(1.5, 0.01)}, allowed=0.1)
    assert row["failed"] is failed
    assert row["change"] == pytest.approx(now / 1.5 - 1)


def test_unbounded_interval_never_fails_the_gate():
    entry = _entry(9.0, 0.0) | {"ratio_low": "-inf", "ratio_high": "inf"}
    assert not regressions({"foof": entry}, {"foof": _entry(1.5, 0.01)}, allowed=0.1)[0]["failed"]


def _folder(path, methods, reference="sgd", **environment):
    path.mkdir()
    cell = {"width": None, "batch_size": 100, "reference": reference, "methods": methods}
    (path / "summary.json").write_text(json.dumps({"status": "done", "cells": [cell]}))
    (path / "environment.json").write_text(json.dumps({"cpu": "A", "threads": 1} | environment))
    return path


def test_gate_compares_ratios_or_milliseconds(tmp_path):
    old = _folder(tmp_path / "old", {"foof": _entry(1.5, 0.01, seconds=0.01)})
    new = _folder(tmp_path / "new", {"foof": _entry(1.5, 0.01, seconds=0.02)}, cpu="B")
    same = _folder(tmp_path / "same", {"foof": _entry(1.5, 0.01, seconds=0.02)})
    assert not any(row["failed"] for row in gate(new, old, 0.1, absolute=False))
    (row,) = gate(same, old, 0.1, absolute=True)
    assert row["failed"] and row["method"] == "foof" and row["change"] == pytest.approx(1.0)


def test_gate_refuses_what_it_cannot_compare(tmp_path):
    new = _folder(tmp_path / "new", {"foof": _entry(1.5, 0.01)})
    with pytest.raises(UsageError, match="no finished wallclock run"):
        gate(new, tmp_path / "nothing", 0.1, False)
    short = _folder(tmp_path / "short", {"foof": _entry(1.5, 0.01) | {"ratio_low": "-inf", "ratio_high": "inf"}})
    with pytest.raises(UsageError, match="has no interval of foof"):
        gate(short, new, 0.1, False)


@pytest.mark.parametrize(("text", "value"), [("10%", 0.1), ("0.1", 0.1), ("0%", 0.0), ("2.5%", 0.025)])
def test_percentages(text, value):
    assert read_percent(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["ten", "", "-5%", "nan", "inf%"])
def test_what_is_no_percentage_is_refused(text):
    with pytest.raises(UsageError, match="takes a percentage"):
        read_percent(text)


def test_median_is_the_standard_one():
    assert median([3, 1, 2]) == 2
