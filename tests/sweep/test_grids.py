"""Grids: the published ones, extension, refinement, and every wrong text in one sentence."""

import datetime
import math

import pytest

from kfbench.errors import UsageError
from kfbench.sweep.grids import Axis, default_axis, parse_axis


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-3:1e1:half-decades", (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
        ("2e-3:5e-2:half-decades", (0.003, 0.01, 0.03)),
        ("3e-1:3e-1:half-decades", (0.3,)),
        ("1e-6:1e6:2-decades", (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)),
        ("2e-3:2:decades", (0.002, 0.02, 0.2, 2.0)),
        ("1:8:4", (1.0, 2.0, 4.0, 8.0)),
        ("0.1,0.5,1", (0.1, 0.5, 1.0)),
    ],
)
def test_values_of_a_grid(text, values):
    assert parse_axis("lr", text).values == values


def test_whole_numbers_stay_whole():
    assert parse_axis("T", "1:1000:decades", 100).values == (1, 10, 100, 1000)
    assert all(type(value) is int for value in parse_axis("T", "1:1000:decades", 100).values)
    assert parse_axis("T", "1,10", 100) == Axis("T", (1, 10))
    assert parse_axis("damping_kind", "heuristic,standard", "heuristic").values == ("heuristic", "standard")
    assert parse_axis("nesterov", [False, True], False).values == (False, True)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is empty"),
        (",", "is empty"),
        ("1.5e0:2e0:half-decades", "is empty"),
        ("1:0.1:decades", "is reversed"),
        ("a:1:decades", "got 'a'"),
        ("0:1:decades", "got '0'"),
        ("1:inf:decades", "got 'inf'"),
        ("-1:1:decades", "got '-1'"),
        ("1:10:0-decades", "unknown step '0-decades'"),
        ("1:10:steps", "unknown step 'steps'"),
        ("1:10:1", "2 to 10000"),
        ("1:1:5", "START below STOP"),
        ("1,1.0", "twice"),
    ],
)
def test_wrong_grids_are_one_sentence(text, part):
    with pytest.raises(UsageError) as error:
        parse_axis("lr", text)
    assert part in str(error.value) and "--grid lr" in str(error.value)


def test_extension_continues_the_grid():
    halves = parse_axis("lr", "1e-1:1:half-decades")
    assert halves.extended("upper").values == (0.1, 0.3, 1.0, 3.0)
    assert halves.extended("lower").extended("lower").values == (0.01, 0.03, 0.1, 0.3, 1.0)
    assert parse_axis("damping", "1:100:2-decades").extended("lower").values == (0.01, 1.0, 100.0)
    assert parse_axis("lr", "0.1,0.5,1").extended("upper").values == (0.1, 0.5, 1.0, 2.0)


def test_extension_of_a_fine_grid_is_half_a_decade():
    fine = parse_axis("lr", "1e-3:1:49")
    more = fine.extended("upper").values
    assert 2.9 < more[-1] < 3.5 and len(more) == 49 + 8


def test_only_scales_are_extended():
    assert parse_axis("damping", "1:10:decades").extendable
    assert not parse_axis("momentum", "0.5,0.9", 0.0).extendable
    assert not parse_axis("T", "1:100:decades", 100).extendable
    assert not parse_axis("lr", "0.1").extendable


def test_finer_grid_spans_the_same_range():
    fine = default_axis("lr", (1e-3, 1.0)).finer(49)
    assert len(fine.values) == 49 and (fine.values[0], fine.values[-1]) == (1e-3, 1.0)
    assert default_axis("damping_kind", (1e-3, 1.0)).finer(9).values == (
        "heuristic",
        "standard",
        "standard-as-released",
    )


def test_neighbourhood_is_one_step_to_each_side():
    assert parse_axis("lr", "1e-2:1:half-decades").neighbourhood(0.1) == (0.03, 0.3)
    assert parse_axis("damping", "1e-2:1:decades").neighbourhood(0.1) == pytest.approx((0.01, 1.0))


def test_every_option_of_ours_has_a_default_grid_or_says_so():
    assert default_axis("alpha", (1.0, 2.0)).values[0] == 0.01
    assert default_axis("nesterov", (1.0, 2.0)).values == (False, True)
    with pytest.raises(UsageError, match="no default grid; give --grid betas="):
        default_axis("betas", (1.0, 2.0))


@pytest.mark.parametrize(
    ("given", "part"),
    [
        *(("banana", "takes numbers, got 'banana'"), ("a,b", "takes numbers, got 'a'"), ([0.1, "a"], "got 'a'")),
        *(([None, 1], "takes numbers, got None"), (None, "holds no value"), ([True], "takes numbers, got True")),
        *(([datetime.date(2020, 1, 1)], "takes numbers, got datetime.date"), ([[1]], "takes numbers, got (1,)")),
        *(([1, 10**400], "takes 0 and numbers from 1e-100 to 1e+100"), ([5e-324, 1.0], "takes 0 and numbers")),
        *(([float("nan")], "takes 0 and numbers"), ("1:30", "takes numbers, got '1:30'"), ("1:2:3:4", "takes numbers")),
        *(("1e-308:1e308:decades", "must be numbers from 1e-100 to 1e+100"), ("text:text:3", "must be numbers from")),
        *((f"1e-3:1:{'9' * 400}-decades", "unknown step '999"), ("1:2:51-decades", "unknown step '51-decades'")),
        *((f"1:2:{'9' * 5000}", "2 to 10000 values"), (f"1,{'9' * 5000}", "takes numbers, got '999")),
    ],
    ids=lambda value: repr(value)[:30],
)
@pytest.mark.parametrize("name", ["lr", "damping", "momentum"])
def test_what_is_no_number_is_one_short_sentence(name, given, part):
    with pytest.raises(UsageError) as error:
        parse_axis(name, given, 0.0)
    assert part in str(error.value) and f"--grid {name}" in str(error.value) and len(str(error.value)) < 800


def test_other_options_take_text_and_lists_but_no_mappings():
    assert parse_axis("betas", [[0.9, [1, 2]]]).values == ((0.9, (1, 2)),)
    for value in ({"a": 1}, datetime.date(2020, 1, 1)):
        with pytest.raises(UsageError, match="is no number, text, true or false, nor a list of these"):
            parse_axis("betas", [value])


def test_the_widest_grids_are_extended_without_overflow():
    for text in ("1e-100:1e100:50-decades", "1e-100:1e100:half-decades", "1e-100:1e100:3", "1e-100,1e100"):
        axis = parse_axis("lr", text)
        assert all(map(math.isfinite, axis.values))
        if axis.extendable:
            assert all(map(math.isfinite, axis.extended("upper").extended("lower").values))
