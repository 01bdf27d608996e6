"""Performance profiles: by hand, from folders, as rows and as a picture."""

import csv
import json
import math

import pytest

from kfbench.compare.profile import performance_ratios, profile, profile_curve, share_within, write_profile
from kfbench.compare.tables import cost_rows, profile_rows
from kfbench.errors import UsageError
from tests.compare.comparable_runs import STEP, write_method

INF = math.inf


def test_ratios_by_hand():
    assert performance_ratios({"a": 3.0, "b": 6.0, "c": INF}) == {"a": 1.0, "b": 2.0, "c": INF}
    assert performance_ratios({"a": INF, "b": INF}) == {"a": INF, "b": INF}, "a problem that nobody solved has no best"
    assert performance_ratios({"a": 0.0, "b": 0.0, "c": 1e-9}) == {"a": 1.0, "b": 1.0, "c": INF}


@pytest.mark.parametrize("wrong", [-1.0, math.nan])
def test_costs_that_have_no_ratio(wrong):
    with pytest.raises(ValueError, match=r"the cost of b is .*ratios need costs of at least 0"):
        performance_ratios({"a": 1.0, "b": wrong})


def test_curve_by_hand():
    """Four problems: best on one, within 1.5 and 4 on two, one not solved."""
    ratios = [4.0, 1.0, INF, 1.5]
    assert profile_curve(ratios) == [(1.0, 0.25), (1.5, 0.5), (4.0, 0.75)]
    assert [share_within(ratios, tau) for tau in (1, 1.49, 1.5, 3.99, 4, 1e300)] == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75]
    assert profile_curve([2.0, INF]) == [(1.0, 0.0), (2.0, 0.5)], "never the best: it starts at 0"
    assert profile_curve([INF]) == [(1.0, 0.0)]


@pytest.fixture
def problems(tmp_path):
    """Three problems, told apart by their width, of two seeds each; the target is SGD's worst final loss.

    To the target, in evaluations: sgd 4, 3, 2; adam 1, 3, never; foof 2, 1, 2.
    """
    curves = {
        8: {"sgd": (9, 8, 7, 6, 1), "adam": (9, 1, 1, 1, 1), "foof": (9, 9, 1, 1, 0.5)},
        9: {"sgd": (9, 8, 7, 2), "adam": (9, 8, 7, 2), "foof": (9, 1, 1, 1)},
        10: {"sgd": (9, 8, 3), "adam": (9, 9, 9), "foof": (9, 4, 3)},
    }
    for width, methods in curves.items():
        for spec, losses in methods.items():
            folder = tmp_path / f"width-{width}" / spec
            write_method(folder, spec, [losses, losses], width=width, updates=STEP * (len(losses) - 1))
    return [tmp_path / f"width-{width}" for width in curves]


def test_time_to_target_over_three_problems(problems):
    found = profile(problems, "updates")
    assert [row["target"]["loss"] for row in found["problems"]] == [1, 2, 3]
    assert [row["costs"] for row in found["problems"]] == [
        {"adam": STEP, "foof": 2 * STEP, "sgd": 4 * STEP},
        {"adam": 3 * STEP, "foof": STEP, "sgd": 3 * STEP},
        {"adam": INF, "foof": 2 * STEP, "sgd": 2 * STEP},
    ]
    curves = {label: method["curve"] for label, method in found["methods"].items()}
    third = pytest.approx(1 / 3)
    assert curves == {
        "adam": [[1.0, third], [3.0, pytest.approx(2 / 3)]],
        "foof": [[1.0, pytest.approx(2 / 3)], [2.0, 1.0]],
        "sgd": [[1.0, third], [3.0, pytest.approx(2 / 3)], [4.0, 1.0]],
    }
    rows = {row["method"]: row for row in profile_rows(found)}
    assert rows["adam"] == {
        **{"method": "adam", "best": "1 of 3", "within 2x": "1 of 3", "within 10x": "2 of 3", "solved": "2 of 3"},
        "worst ratio": "3",
    }
    assert cost_rows(found)[2] == {
        **{"problem": str(problems[2]), "target loss": "3", "adam": "inf", "foof": "20", "sgd": "20"}
    }
    assert found["status"] == "done" and not found["damaged"]


def test_by_seconds_and_by_final_loss(problems):
    seconds = profile(problems, "seconds")
    assert seconds["problems"][0]["costs"] == {"adam": 0.5, "foof": 1.0, "sgd": 2.0}
    losses = profile(problems, "loss")
    assert [row["costs"]["foof"] for row in losses["problems"]] == [0.5, 1, 3]
    assert losses["problems"][2]["ratios"] == {"adam": 3.0, "foof": 1.0, "sgd": 1.0}


def test_a_seed_that_diverged_has_no_final_loss(problems):
    write_method(problems[0] / "kfac", "kfac", [(9, 1, 1, 1, 0.1), (9, INF)], width=8, updates=4 * STEP)
    for folder, width, evaluations in ((problems[1], 9, 3), (problems[2], 10, 2)):
        curve = (9, *[1] * evaluations)
        write_method(folder / "kfac", "kfac", [curve, curve], width=width, updates=STEP * evaluations)
    found = profile(problems, "loss")
    assert found["methods"]["kfac"]["solved"] == 2 and found["status"] == "diverged"
    assert any("kfac diverged with 1 of 2 seeds" in note for note in found["notes"])


def test_a_method_that_is_not_everywhere_is_left_out_and_said_so(problems):
    write_method(problems[1] / "kfac", "kfac", [(9, 0.1, 0.1, 0.1)], width=9, updates=3 * STEP)
    found = profile(problems, "updates")
    assert list(found["methods"]) == ["foof", "sgd", "adam"], "most often the best first, then within 2, within 10"
    assert f"kfac is left out: it is not in {problems[0]}, {problems[2]}" in found["notes"]
    assert found["problems"][1]["costs"].keys() == {"adam", "foof", "sgd"}, "what is left out is nobody's best"


def test_one_label_is_one_method_however_it_was_tuned(problems, tmp_path):
    for i, lr in enumerate((0.1, 0.2)):
        for spec in ("sgd", "foof"):
            flags = {"width": 20 + i, "updates": STEP, "lr": lr}
            write_method(tmp_path / f"tuned-{i}" / spec, spec, [(2.0, 1.0)], **flags)
    assert profile([tmp_path / "tuned-0", tmp_path / "tuned-1"], "loss")["methods"].keys() == {"sgd", "foof"}


def test_a_problem_that_nobody_solved_counts(tmp_path):
    for i, last in enumerate((1.0, 5.0)):
        for spec in ("adam", "foof"):
            flags = {"width": 20 + i, "updates": STEP}
            folder = write_method(tmp_path / f"p{i}" / spec, spec, [(9.0, last)], **flags)
            summary = folder / "seed-0" / "summary.json"
            summary.write_text(json.dumps(json.loads(summary.read_text()) | {"target_loss": 2.0}))
    found = profile([tmp_path / "p0", tmp_path / "p1"], "updates")
    assert [method["solved"] for method in found["methods"].values()] == [1, 1]
    assert found["methods"]["adam"]["of"] == 2
    assert f"no method has a finite cost on {tmp_path / 'p1'}: it counts as solved by none" in found["notes"]


def test_what_makes_no_profile_is_one_sentence(problems, tmp_path):
    with pytest.raises(UsageError, match="a profile is over at least two problems, one folder each, got 1"):
        profile([problems[0], problems[0]], "updates")
    write_method(tmp_path / "again" / "sgd", "sgd", [(9, 8, 7, 6, 1)], width=8, updates=4 * STEP)
    with pytest.raises(UsageError, match=r"width-8 and .*again hold the same problem, which a profile counts once"):
        profile([problems[0], tmp_path / "again"], "updates")
    write_method(tmp_path / "other" / "kfac", "kfac", [(9, 1)], width=30)
    with pytest.raises(UsageError, match=r"at least two methods that are on every problem, got .*other: kfac"):
        profile([problems[0], tmp_path / "other"], "updates")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty holds no run to compare"):
        profile([problems[0], tmp_path / "empty"], "updates")


def test_records_and_picture(problems, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_profile(profile(problems, "updates"), {"profile_by": "updates"}, out, plot=True)
    with (out / "profile.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["tau"] for row in rows if row["method"] == "sgd"] == ["1.0", "3.0", "4.0"]
    assert json.loads((out / "summary.json").read_text())["measure"] == "updates"
    assert (out / "profile.png").read_bytes().startswith(b"\x89PNG")
