"""Ranks, targets and differences, on runs made by hand."""

import csv
import io
import math

import matplotlib
import pytest

from kfbench.compare.comparison import mean_curve, summarise
from kfbench.compare.gathering import gather
from kfbench.compare.plots import records_of
from kfbench.compare.tables import comparison_rows, difference_rows, target_rows, target_sentence
from kfbench.errors import UsageError
from kfbench.results.tables import print_table
from kfbench.training.plots import plot_losses
from tests.compare.comparable_runs import STEP, write_method

INF = math.inf


@pytest.fixture
def comparison(tmp_path):
    """Curves of two seeds each: sgd 1.0, 1.2; adam better; foof diverged once."""
    write_method(tmp_path / "a", "sgd", [(2.0, 1.5, 1.0), (2.0, 1.6, 1.2)])
    write_method(tmp_path / "b", "adam", [(2.0, 1.1, 0.5), (2.0, 0.9, 0.6)])
    write_method(tmp_path / "c", "foof", [(2.0, 0.1, 0.01), (2.0, INF)])
    return gather([tmp_path / "a", tmp_path / "b", tmp_path / "c"])


def test_ranks_put_what_diverged_last(comparison):
    found = summarise(comparison)
    assert {label: method["rank"] for label, method in found["methods"].items()} == {"adam": 1, "sgd": 2, "foof": 3}
    assert list(found["methods"]) == ["adam", "sgd", "foof"], "the best first"
    assert found["methods"]["adam"]["mean"]["final_train_loss"] == pytest.approx(0.55)
    assert found["methods"]["adam"]["std"]["final_train_loss"] == pytest.approx(0.1 / math.sqrt(2))
    assert found["methods"]["foof"]["mean"]["final_train_loss"] == INF
    assert found["status"] == "diverged" and "foof diverged with 1 of 2 seeds" in found["notes"][0]


def test_ties_share_a_rank_and_so_does_all_that_diverged(tmp_path):
    for name, spec, last in (("a", "sgd", 1.0), ("b", "adam", 1.0), ("c", "foof", INF), ("d", "kfac", INF)):
        write_method(tmp_path / name, spec, [(2.0, last)])
    found = summarise(gather(sorted(tmp_path.iterdir())))["methods"]
    assert {label: method["rank"] for label, method in found.items()} == {"sgd": 1, "adam": 1, "foof": 3, "kfac": 3}


def test_the_default_target_is_what_every_seed_of_sgd_reaches(comparison):
    found = summarise(comparison)
    assert found["target"]["loss"] == 1.2 and "sgd" in target_sentence(found)
    reached = {label: method["to_target"] for label, method in found["methods"].items()}
    figures = ("updates", "seconds_updates", "missed", "of")
    assert [reached["sgd"][key] for key in figures] == [2 * STEP, 1.0, 0, 2]
    assert [reached["adam"][key] for key in figures] == [STEP, 0.5, 0, 2]
    assert reached["foof"]["missed"] == 1 and reached["foof"]["updates"] == INF, "the median of 10 and infinity"


def test_time_to_target_has_a_range_and_from_six_seeds_on_an_interval(tmp_path):
    """Seeds reach 1 after 1, 2, 3, 3, 4 evaluations and never: the interval of six is from lowest to highest."""
    curves = [[2.0] * k + [1.0] * (5 - k) for k in (1, 2, 3, 3, 4, 5)]
    write_method(tmp_path / "six", "sgd", curves)
    found = summarise(gather([tmp_path / "six"]), target=1.0)["methods"]["sgd"]["to_target"]
    assert (found["updates"], found["seconds_updates"], found["missed"]) == (3 * STEP, 1.5, 1)
    assert (found["updates_low"], found["updates_high"]) == (STEP, INF) and found["seconds_updates_low"] == 0.5
    write_method(tmp_path / "eight", "sgd", [*curves, curves[0], curves[1]])
    found = summarise(gather([tmp_path / "eight"]), target=1.0)["methods"]["sgd"]["to_target"]
    assert (found["updates_low"], found["updates_high"]) == (STEP, INF), "of eight values still the outermost two"
    write_method(tmp_path / "nine", "sgd", [*curves, *curves[:3]])
    found = summarise(gather([tmp_path / "nine"]), target=1.0)["methods"]["sgd"]["to_target"]
    assert (found["updates_low"], found["updates_high"]) == (STEP, 4 * STEP), "of nine the second from either end"
    write_method(tmp_path / "five", "sgd", curves[:5])
    summary = summarise(gather([tmp_path / "five"]), target=1.0)
    found = summary["methods"]["sgd"]["to_target"]
    assert (found["updates_low"], found["updates_high"]) == (None, None)
    assert (found["updates_lowest"], found["updates_highest"]) == (STEP, 4 * STEP)
    row = target_rows(summary)[0]
    assert row["updates: 95% interval"] == "unknown: 5 seeds, 6 needed" and row["updates: seeds"] == "10 to 40"


def test_without_sgd_the_target_is_that_of_the_last_that_did_not_diverge(tmp_path):
    write_method(tmp_path / "a", "adam", [(2.0, 0.5), (2.0, 0.6)])
    write_method(tmp_path / "b", "kfac", [(2.0, 0.7), (2.0, 0.3)])
    write_method(tmp_path / "c", "foof", [(2.0, INF), (2.0, 0.1)])
    assert summarise(gather(sorted(tmp_path.iterdir())))["target"]["loss"] == 0.6


def test_without_any_finite_loss_there_is_no_target(tmp_path):
    found = summarise(gather([write_method(tmp_path / "a", "adam", [(2.0, INF)])]))
    assert found["target"]["loss"] is None and "diverged" in target_sentence(found)
    assert found["methods"]["adam"]["to_target"]["missed"] == 1


def test_a_target_that_nobody_reaches(comparison):
    found = summarise(comparison, target=1e-9)
    assert {m["to_target"]["updates"] for m in found["methods"].values()} == {INF}
    assert [row["missed"] for row in comparison_rows(found)] == ["2 of 2"] * 3


def test_differences_are_paired_by_seed_with_the_best(comparison):
    first, second = summarise(comparison)["differences"]
    assert (first["method"], first["reference"], first["seeds"]) == ("sgd", "adam", [0, 1])
    assert first["ratio"] == pytest.approx(math.sqrt(1.0 / 0.5 * 1.2 / 0.6)) and not first["significant"]
    assert first["low"] < 2.0001 and first["high"] > 1.9999
    assert second["ratio"] == INF and second["low"] is None


def test_only_common_seeds_are_paired(tmp_path):
    write_method(tmp_path / "a", "sgd", [(2.0, 1.0)] * 3)
    write_method(tmp_path / "b", "adam", [(2.0, 0.5), (2.0, 0.25)], first_seed=2)
    write_method(tmp_path / "c", "foof", [(2.0, 2.0)], first_seed=9)
    found = summarise(gather(sorted(tmp_path.iterdir())), reference="sgd")
    by_method = {row["method"]: row for row in found["differences"]}
    assert by_method["adam"]["seeds"] == [2] and by_method["adam"]["ratio"] == pytest.approx(0.5)
    assert by_method["foof"]["ratio"] is None and difference_rows(found)[1]["final loss / sgd"] == ""
    assert any("different seeds" in note for note in found["notes"])


def test_five_seeds_can_be_significant(tmp_path):
    write_method(tmp_path / "a", "sgd", [(2.0, 1.0 + 0.1 * i) for i in range(5)])
    write_method(tmp_path / "b", "adam", [(2.0, 0.9 + 0.1 * i) for i in range(5)])
    write_method(tmp_path / "c", "foof", [(2.0, (0.5, 1.9, 0.6, 1.8, 0.7)[i]) for i in range(5)])
    found = summarise(gather(sorted(tmp_path.iterdir())), reference="sgd")
    assert {row["method"]: row["significant"] for row in difference_rows(found)} == {"adam": "yes", "foof": "no"}


def test_reference_is_a_label_or_the_name_of_one_method(tmp_path, comparison):
    assert summarise(comparison, reference="sgd")["reference"] == "sgd"
    with pytest.raises(UsageError, match="did you mean 'adam'"):
        summarise(comparison, reference="adm")
    for lr in (0.1, 0.2):
        write_method(tmp_path / f"{lr}", f"kfac:lr={lr}", [(2.0, lr)])
    two = gather([tmp_path / "0.1", tmp_path / "0.2"])
    assert summarise(two, reference="kfac-lr=0.2")["reference"] == "kfac-lr=0.2"
    with pytest.raises(UsageError, match=r"may be any of kfac-lr=0\.1, kfac-lr=0\.2"):
        summarise(two, reference="kfac")


def test_seconds_of_other_machines_are_said_not_to_compare(tmp_path):
    write_method(tmp_path / "a", "sgd")
    write_method(tmp_path / "b", "adam")
    (tmp_path / "b" / "environment.json").write_text('{"cpu": "slide rule", "threads": 1}')
    assert any("seconds do not compare" in note for note in summarise(gather(sorted(tmp_path.iterdir())))["notes"])


def test_a_mean_curve_ends_where_a_seed_diverged(comparison):
    curves = {method.label: mean_curve(method) for method in comparison.methods}
    assert [row["update"] for row in curves["foof"]] == [0]
    assert [row["mean"] for row in curves["adam"]] == [2.0, 1.0, 0.55]
    assert [(row["low"], row["high"]) for row in curves["adam"]] == [(2.0, 2.0), (0.9, 1.1), (0.5, 0.6)]


def test_tables_for_pipes(comparison, capsys):
    found = summarise(comparison)
    print_table(comparison_rows(found), "csv", found)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["method"] for row in rows] == ["adam", "sgd", "foof"] and rows[2]["final train loss"] == "inf"
    assert rows[0]["trials"] == "-"


def test_curves_are_plotted(comparison, tmp_path):
    plot_losses(records_of(comparison), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 10_000


def test_losses_within_a_decade_are_plain_numbers(comparison, tmp_path):
    """Adam's and SGD's lie between 50 and 200, so 100 is the only power of ten; FOOF's reach down to 10."""
    records = [record for record in records_of(comparison) if "foof" not in set(record.epochs["method"])]
    for record in records:
        record.epochs["train_loss"] *= 100
        record.updates["loss"] *= 100
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_losses(records, tmp_path / "loss.svg")
    drawn = (tmp_path / "loss.svg").read_text()
    assert ">100<" in drawn and ">60<" in drawn and "\u00d7" not in drawn
