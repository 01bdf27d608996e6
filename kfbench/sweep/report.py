"""What a sweep leaves behind beside trials.csv: summary.json, and the best configurations as YAML."""

import math
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kfbench.config.load import dump
from kfbench.config.schema import Config
from kfbench.results.reading import DamagedError, read_table, record_or_empty, unlike
from kfbench.results.records import EPOCH_COLUMNS, SCHEMA_VERSION, write_json, write_yaml
from kfbench.results.schemas import SeedSummary
from kfbench.results.seeds import mean_and_deviation
from kfbench.sweep.losses import Row, key, robustness
from kfbench.sweep.plan import Point, Swept, Trial, trial
from kfbench.sweep.tuning import Rows, Tuning


def write_report(directory: Path, config: Config, tunings: Sequence[Tuning], rows: Rows, status: str) -> dict[str, Any]:
    """Write summary.json, METHOD/best.yaml and best.yaml; returns the summary."""
    methods = {tuning.method.label: _method_summary(directory, config, tuning, rows) for tuning in tunings}
    best = [(tuning.method, point) for tuning in tunings if (point := tuning.best(rows)) is not None]
    for method, point in best:
        (directory / method.label).mkdir(exist_ok=True)  # trials known from a committed trials.csv have no folders
        write_yaml(directory / method.label / "best.yaml", best_config(config, [(method, point)]))
    if best:
        write_yaml(directory / "best.yaml", best_config(config, best))
    failed = sum(method["failed"] for method in methods.values())
    summary = {
        "schema_version": SCHEMA_VERSION,
        "status": "failed" if status == "done" and failed else status,
        "parameters": list(config.sweep.parameters),
        "near": config.sweep.near,
        "quick": config.run.quick,
        "problem": dump(config)["problem"],
        "run": dump(config)["run"],
        "methods": methods,
    }
    write_json(directory / "summary.json", summary)
    return summary


def best_config(config: Config, best: Sequence[tuple[Swept, Point]]) -> dict[str, Any]:
    """The YAML that train, compare and wallclock take: the problem, each method at its best point, the full budget."""
    # Of the final round, whose budget is the full one.
    trees = [dump(trial(config, method, point, "final", config.run.seed).config) for method, point in best]
    # Without seeds, of which each command has its own number.
    run = {name: value for name, value in trees[0]["run"].items() if name not in ("seed", "seeds")}
    return {"problem": trees[0]["problem"], "methods": [tree["methods"][0] for tree in trees], "run": run}


def _method_summary(directory: Path, config: Config, tuning: Tuning, rows: Rows) -> dict[str, Any]:
    method, losses = tuning.method, tuning.losses(rows)
    tuned = [t for t in tuning.trials if t.hash in rows]
    ended = [rows[t.hash] for t in tuned]
    # Refinements lie around the best, so with them robustness would say how many there were.
    on_grid = tuning.losses(rows, rounds=("grid", "extend"))
    repeated = [rows[t.hash] for t in tuning.finals if t.hash in rows]
    best, leading = tuning.best(rows), tuning.leading(rows, 1)
    # Not that of ``best``, which fresh seeds may have preferred to it.
    lowest = losses[key(leading[0])] if leading else None
    return {
        "opt": method.opt,
        "axes": {axis.name: list(axis.values) for axis in method.axes},
        "left_out": list(method.left_out),
        "trials": len(ended),
        "cells": len(tuning.points()),
        "diverged": sum(row["status"] == "diverged" for row in ended),
        "failed": sum(row["status"] == "failed" for row in (*ended, *repeated)),
        "seconds_tuning": sum(_seconds(directory, row) for row in ended),
        "best": {**best, **method.options(best)} if best is not None else None,
        "tuned_loss": losses[key(best)] if best is not None else None,
        "final": _final(tuning, rows, best),
        "fragile": sum(loss == math.inf for loss in tuning.losses(rows, final=True).values()),
        "at_edges": [f"{side} {name}" for name, side in tuning.edges(rows, config.sweep.near)],
        "best_edges": tuning.best_edges(rows),
        "robustness": robustness(on_grid, lowest) if lowest is not None else None,
        "losses": [[*cell, loss] for cell, loss in losses.items()],
        "losses_by_seed": [[*t.point.values(), t.seed, rows[t.hash]["final_train_loss"]] for t in tuned],
        "per_epoch": _per_epoch(directory, tuned),
    }


def _final(tuning: Tuning, rows: Rows, best: Point | None) -> dict[str, Any] | None:
    """Mean and deviation over the fresh seeds of the best point; None where it was not run again."""
    all_own = [rows[t.hash] for t in tuning.finals if best is not None and t.point == best and t.hash in rows]
    own = [row for row in all_own if row["final_train_loss"] is not None]
    losses = [row["final_train_loss"] for row in own]
    if not losses:
        return None
    mean, std = mean_and_deviation(losses)
    accuracies = [row["test_accuracy"] for row in own if row["test_accuracy"] is not None]
    return {
        "mean": mean,
        "std": std,
        "seeds": [int(row["seed"]) for row in own],
        "losses": losses,
        "run_dirs": [row["run_dir"] for row in own],
        "test_accuracy": statistics.fmean(accuracies) if len(accuracies) == len(own) else None,
        "seconds_updates": statistics.fmean(row["seconds_updates"] for row in own),
    }


def _seconds(directory: Path, row: Row) -> float:
    """Of a whole trial: warm-up, updates, evaluation; of one that left no summary, none."""
    try:
        path = directory / row["run_dir"] / f"seed-{int(row['seed'])}" / "summary.json"
        summary = record_or_empty(path, SeedSummary)
        noted = row["seconds_updates"]
        if summary and noted is not None and unlike(summary.get("seconds_updates"), noted):
            raise DamagedError(f"{path} is of another run than trials.csv tells of")
    except DamagedError as error:
        warnings.warn(f"{error}; the seconds of tuning are without this trial", stacklevel=2)
        return 0.0
    return sum(summary.get(key) or 0.0 for key in ("seconds_warmup", "seconds_updates", "seconds_elsewhere"))


def _per_epoch(directory: Path, trials: Sequence[Trial]) -> list[list[float]]:
    """[epoch, lowest training loss of any trial at its end]: selection for each epoch (EKFAC paper, section 4)."""
    lowest: dict[float, float] = {}
    for tried in trials:
        path = directory / tried.folder / f"seed-{tried.seed}" / "epochs.csv"
        try:
            rows = read_table(path, EPOCH_COLUMNS, numbers=("epoch", "train_loss")) if path.exists() else []
        except DamagedError as error:
            warnings.warn(f"{error}; the losses per epoch are without this trial", stacklevel=2)
            continue
        for row in rows:
            epoch, loss = float(row["epoch"] or "nan"), float(row["train_loss"] or "nan")
            lowest[epoch] = min(lowest.get(epoch, math.inf), loss if math.isfinite(loss) else math.inf)
    return [[epoch, loss] for epoch, loss in sorted(lowest.items())]
