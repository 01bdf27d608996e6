"""`wallclock`: the amortised cost of one update, with an interval that can be trusted."""

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from kfbench.config.load import configure, dump
from kfbench.config.schema import Config
from kfbench.errors import UsageError
from kfbench.results.environment import environment
from kfbench.results.records import SCHEMA_VERSION, CsvLog, write_json, write_yaml
from kfbench.training.interruption import Interruption
from kfbench.updates.build import build_data, prepare_torch
from kfbench.wallclock.bench import Bench, Progress
from kfbench.wallclock.ratios import WINDOW_COLUMNS, compose, half_widths, per_update, summarise, warnings_of
from kfbench.wallclock.rounds import time_rounds, time_until


def wallclock(cells: Sequence[Config], directory: Path, progress: Progress) -> dict[str, Any]:
    """Time every cell of the axes; returns what summary.json holds, which is written as each cell ends.

    Several cells have a folder each. All are checked before the first window. An interruption ends
    the rounds and keeps what was measured.
    """
    device = prepare_torch(cells[0].run)
    for config in cells:
        _check(config)
        build_data(config, device)  # one for all: cells differ in width and batch size alone
    write_yaml(directory / "config.yaml", dump(cells[0], "wallclock"))
    write_json(directory / "environment.json", environment(device))
    summary: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "status": "interrupted", "cells": []}
    with Interruption() as stop:
        for config, name in zip(cells, _cell_names(cells), strict=True):
            if name:
                progress(name)
            folder = directory / name
            folder.mkdir(exist_ok=True)
            cell = _time_cell(Bench(config, progress), folder, progress, stop)
            if cell is None:
                break
            summary["cells"].append(cell)
            if name:
                write_yaml(folder / "config.yaml", dump(config, "wallclock"))
                write_json(folder / "summary.json", summary | {"cells": [cell]})
            write_json(directory / "summary.json", summary)
    if not stop.requested:
        summary["status"] = "done"
    write_json(directory / "summary.json", summary)
    return summary


def _check(config: Config) -> None:
    settings = config.wallclock
    if settings.processes > 1 and settings.precision is not None:
        raise UsageError(f"--precision needs --processes 1, got {settings.processes}")
    if settings.processes > settings.rounds:
        raise UsageError(f"--processes is {settings.processes}, above the {settings.rounds} rounds")
    if settings.compose == "always" and config.run.device != "cpu" and not config.run.quick:
        raise UsageError(f"--compose always is for the CPU, got --device {config.run.device}")


def _cell_names(cells: Sequence[Config]) -> list[str]:
    """A folder for each cell, named by the axes that vary; none for a single one."""
    values = [{"width": c.problem.width, "batch_size": c.run.batch_size} for c in cells]
    varying = [axis for axis in values[0] if len({v[axis] for v in values}) > 1]
    return ["-".join(f"{axis}={v[axis]}" for axis in varying) for v in values]


def _time_cell(bench: Bench, folder: Path, progress: Progress, stop: Interruption) -> dict[str, Any] | None:
    """Time every method of a bench; windows.csv gets each round as it ends. None if nothing was measured."""
    config = bench.config
    bench.plan()
    log = CsvLog(folder / "windows.csv", WINDOW_COLUMNS)
    try:
        apart = config.wallclock.processes > 1
        rows = _rounds_apart(bench, log, progress) if apart else _rounds_here(bench, log, progress, stop)
    except FloatingPointError as error:
        raise UsageError(f"a method diverged while it was timed ({error}); lower its lr") from error
    finally:
        log.close()
    if not rows:
        return None
    costs = compose(per_update(rows), bench.composed)
    reference = bench.reference.label
    summaries = summarise(costs, reference)
    methods = {c.label: summaries[c.label] | bench.describe(c) for c in bench.wholes}
    notes = warnings_of(rows, costs, reference, os.cpu_count() or 1, config.run.threads) + bench.notes
    wanted = config.wallclock.precision
    if wanted is not None and (widest := _widest(bench, rows)) > wanted:
        notes.append(f"inconclusive: after --max-time the widest interval is +-{widest:.1%}, wanted +-{wanted:.1%}")
    return {
        "reference": reference,
        "width": config.problem.width,
        "batch_size": config.run.batch_size,
        "label": _label(config),
        "seconds_total": time.monotonic() - bench.began,
        "methods": methods,
        "warnings": notes,
        "quick": config.run.quick,
    }


def _label(config: Config) -> str:
    """What was timed."""
    if config.wallclock.optimizer_only:
        return (
            "the step alone, without forward and backward; preconditioned methods form the weight gradient "
            "within it, the others before it"
        )
    return "whole updates, data included" if config.wallclock.with_data else "whole updates on preloaded batches"


def _rounds_here(bench: Bench, log: CsvLog, progress: Progress, stop: Interruption) -> list[dict[str, Any]]:
    settings, began = bench.config.wallclock, time.monotonic()
    done = 0

    def record(rows: list[dict[str, Any]]) -> None:
        nonlocal done
        log.append(rows)
        done += 1
        spent = time.monotonic() - began
        left = max(spent / done * (settings.rounds - done), 0)
        progress(f"round {done}/{settings.rounds}  {spent:.0f} s, about {left:.0f} s left")

    def enough(rows: list[dict[str, Any]]) -> bool:
        return settings.precision is None or _widest(bench, rows) <= settings.precision

    def time_left() -> float:
        # A request to stop reads as no time left, which ends after whole rounds.
        return -1.0 if stop.requested else settings.max_time - (time.monotonic() - began)

    seed = bench.config.run.seed
    return time_until(bench.timed_in_order(), bench.updates, settings.rounds, seed, enough, time_left, record)


def _rounds_apart(bench: Bench, log: CsvLog, progress: Progress) -> list[dict[str, Any]]:
    """The rounds spread over fresh processes, one after another; each warms up anew."""
    settings = bench.config.wallclock
    rows: list[dict[str, Any]] = []
    tree = dump(bench.config, "wallclock")
    # Not forked, which would inherit what this process has warmed up.
    context = multiprocessing.get_context("spawn")
    for index in range(settings.processes):
        rounds = list(range(index, settings.rounds, settings.processes))
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            of_process = pool.submit(_one_process, tree, bench.updates, rounds).result()
        log.append(of_process)
        rows += of_process
        progress(f"process {index + 1}/{settings.processes}: {len(rounds)} rounds")
    return rows


def _one_process(tree: dict[str, Any], updates: dict[str, int], rounds: list[int]) -> list[dict[str, Any]]:
    flags = {**tree["problem"], **tree["run"], **tree["wallclock"]}
    config = configure({}, flags, tree["methods"], commands=("wallclock",))
    bench = Bench(config, lambda line: None)
    # The windows that the leading process planned, so that rounds of all processes are alike.
    bench.follow(updates)
    seed = config.run.seed
    return [row for r in rounds for row in time_rounds(bench.timed_in_order(), bench.updates, 1, seed, r)]


def _widest(bench: Bench, rows: list[dict[str, Any]]) -> float:
    return max(half_widths(compose(per_update(rows), bench.composed), bench.reference.label))
