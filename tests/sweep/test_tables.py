"""Maps, rows and notes of a sweep, from a summary made by hand; and that its plots are drawn."""

import math

import pytest

from kfbench.results.tables import print_rich
from kfbench.sweep.losses import best_of, near_edge, robustness, tuned_curve
from kfbench.sweep.plots import plot_sweep
from kfbench.sweep.tables import cell_rows, colour, map_of, maps, notes, sweep_rows

AXES = {"alpha": [0.1, 0.3, 1.0], "damping": [1.0, 10.0]}
LOSSES = [[0.1, 1.0, 0.5], [0.3, 1.0, 0.2], [1.0, 1.0, math.inf], [0.1, 10.0, 0.4], [0.3, 10.0, 0.3], [1.0, 10.0, None]]


def method(**changes):
    return {
        "opt": "foof",
        "axes": AXES,
        "left_out": [],
        "trials": 6,
        "cells": 6,
        "diverged": 1,
        "failed": 1,
        "seconds_tuning": 12.0,
        "best": {"alpha": 0.3, "damping": 1.0, "lr": 0.3, "T": 100},
        "tuned_loss": 0.2,
        "final": {"mean": 0.25, "std": 0.01, "losses": [0.24, 0.26], "seeds": [1, 2], "test_accuracy": 0.8},
        "fragile": 0,
        "at_edges": ["lower damping"],
        "robustness": {"within": 3, "of": 5},
        "losses": LOSSES,
        "per_epoch": [[0.0, 2.3], [1.0, 0.5], [2.0, 0.2]],
    } | changes


def summary(**methods):
    return {
        "status": "done",
        "quick": False,
        "problem": {"dataset": "fashion-mnist-1k", "model": "mlp"},
        "run": {"batch_size": 100, "epochs": 2},
        "methods": methods,
    }


SGD = method(
    opt="sgd", axes={"lr": [0.1, 1.0]}, losses=[[0.1, 0.3], [1.0, math.inf]], best={"lr": 0.1}, left_out=["damping"]
)


def test_map_has_the_step_across_and_the_damping_down():
    row, column, rows, columns, losses = map_of(method())
    assert (row, column, rows, columns) == ("damping", "alpha", [1.0, 10.0], [0.1, 0.3, 1.0])
    assert losses[(1.0, 0.3)] == 0.2 and losses[(10.0, 1.0)] is None and best_of(losses) == (1.0, 0.3)


def test_third_parameter_is_minimised_over_and_points_off_the_grid_are_left_out():
    axes = {"lr": [0.1, 1.0], "T": [1, 10], "fisher": ["sampled"]}
    losses = [[0.1, 1, "sampled", 0.5], [0.1, 1, "full", 0.4], [0.1, 10, "sampled", 0.3], [0.5, 1, "sampled", 0.1]]
    assert map_of(method(axes=axes, losses=losses))[4] == {(1, 0.1): 0.4, (10, 0.1): 0.3}


def test_maps_mark_the_best_the_diverged_and_the_missing(capsys):
    print_rich(maps(summary(foof=method(), sgd=SGD)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "foof: training loss, alpha across, damping down"
    assert lines[2].split() == ["1", "0.5", "0.2*", "inf"] and lines[3].split() == ["10", "0.4", "0.3", "-"]
    assert lines[5:7] == ["sgd: training loss, lr across", lines[6]] and lines[7].split() == ["0.3*", "inf"]


def test_rows_say_what_was_spent_and_found():
    (row,) = sweep_rows(summary(foof=method()))
    assert row["best"] == "alpha 0.3, damping 1, lr 0.3" and row["within 2x"] == "3 of 5"
    assert (row["trials"], row["s tuning"], row["tuned loss"], row["final loss"]) == (6, "12", "0.2", "0.25")
    (row,) = sweep_rows(summary(foof=method(best=None, final=None, tuned_loss=None, robustness=None)))
    assert (row["best"], row["final loss"], row["seeds"]) == ("", "", 0)


def test_notes_say_what_makes_a_comparison_doubtful():
    text = "\n".join(notes(summary(foof=method(), sgd=method(**{**SGD, "trials": 7, "failed": 0, "at_edges": []}))))
    assert "foof is optimal or near optimal at the lower damping edge of its grid" in text
    assert "1 trials of foof failed" in text and "sgd has no damping; it was tuned over lr" in text
    assert "not fair: foof 6, sgd 7" in text
    fair = method(failed=0, at_edges=[])
    assert notes(summary(foof=fair, kfac=fair)) == []
    assert "3 best points of foof diverged" in notes(summary(foof=method(fragile=3, failed=0, at_edges=[])))[0]
    assert "no cell of foof came to a finite loss" in notes(summary(foof=method(best=None, failed=0, at_edges=[])))[0]


def test_colour_is_light_at_the_best_and_dark_from_a_thousandfold_on():
    assert colour(0.1, 0.1) == (253, 231, 37)
    assert colour(100.0, 0.1) == colour(1e9, 0.1) == (68, 1, 84)
    assert sum(colour(0.2, 0.1)) > sum(colour(2.0, 0.1))


def test_cells_list_alpha_and_lr():
    rows = cell_rows(
        [("foof", [{"alpha": 0.1, "damping": 10.0}], lambda point: {"lr": 1.0}), ("sgd", [{"lr": 0.1}], dict)]
    )
    assert rows[0] == {"method": "foof", "alpha": "0.1", "damping": "10", "lr": "1"}
    assert rows[1] == {"method": "sgd", "alpha": "", "damping": "", "lr": "0.1"}


def test_arithmetic_over_cells():
    losses = {(0.1, 1.0): 0.5, (0.3, 1.0): 0.2, (1.0, 1.0): math.inf, (0.3, 10.0): 0.3, (1.0, 10.0): None}
    assert best_of({(1,): math.inf, (2,): None}) is None
    assert near_edge(losses, 1, 10.0, 1.4, True) is False and near_edge(losses, 1, 10.0, 1.6, True) is True
    assert near_edge(losses, 0, 1.0, 1e9, True) is False, "what diverged is never near"
    assert robustness(losses, 0.2) == {"within": 2, "of": 4}
    assert tuned_curve(losses, 1) == [(1.0, (0.3, 1.0), 0.2), (10.0, (0.3, 10.0), 0.3)]


@pytest.mark.parametrize(
    "methods", [{"foof": method()}, {"foof": method(), "sgd": SGD, "kfac": method()}, {"sgd": SGD}]
)
def test_plots_are_drawn(tmp_path, methods):
    plot_sweep(summary(**methods), tmp_path)
    drawn = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(drawn) == {"heatmap.png", "tuned.png", "per-epoch.png"} and min(drawn.values()) > 5000


def test_nothing_is_drawn_of_nothing(tmp_path):
    plot_sweep(summary(foof=method(best=None)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_pictures_leave_out_what_tells_no_methods_apart(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("kfbench.sweep.plots._curves", lambda summary, methods, path: shown.extend(methods))
    rest = "weight_decay=1e-05-step=rescale-T=20"
    methods = {f"kfac-{rest}": method(), f"kflr-{rest}-fisher_columns=10": method(), "sgd": SGD}
    plot_sweep(summary(**methods), tmp_path)
    assert shown == ["kfac", "kflr-fisher_columns=10", "sgd"]
