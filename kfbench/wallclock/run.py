"""`wallclock`: the amortised cost of one update, with an interval that can be trusted."""

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kfbench.config.load import configure, dump
from kfbench.config.schema import Config
from kfbench.config.specs import find_method
from kfbench.errors import KfbenchError, UsageError
from kfbench.results.environment import environment
from kfbench.results.records import SCHEMA_VERSION, CsvLog, write_json, write_yaml
from kfbench.training.interruption import Interruption
from kfbench.updates.build import build_data, prepare_torch
from kfbench.wallclock.bench import Bench, Progress, still_note
from kfbench.wallclock.child import ChildError, values_of
from kfbench.wallclock.ratios import WINDOW_COLUMNS, compose, half_widths, per_update, summarise, warnings_of
from kfbench.wallclock.rounds import time_rounds, time_until


def wallclock(cells: Sequence[Config], directory: Path, progress: Progress) -> dict[str, Any]:
    """Time every cell of the axes; returns what summary.json holds, which is written whenever more is known.

    Several cells have a folder each. All are checked before the first window. An interruption ends
    the rounds, or what is measured after them, and keeps what was measured.
    """
    device = prepare_torch(cells[0].run)
    for config in cells:
        _check(config)
        build_data(config, device)  # one for all: cells differ in width and batch size alone
    write_yaml(directory / "config.yaml", dump(cells[0], "wallclock"))
    write_json(directory / "environment.json", environment(device, cells[0].run.amp))
    done: list[dict[str, Any]] = []
    summary: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "status": "interrupted", "cells": done}
    with Interruption() as stop:
        for config, name in zip(cells, _cell_names(cells), strict=True):
            if name:
                progress(name)
            folder = directory / name
            folder.mkdir(exist_ok=True)
            if name:
                write_yaml(folder / "config.yaml", dump(config, "wallclock"))
            for cell in _time_cell(Bench(config, progress, stop), folder, progress, stop):
                summary["cells"] = [*done, cell]
                if name:
                    write_json(folder / "summary.json", summary | {"cells": [cell]})
                write_json(directory / "summary.json", summary)
            if stop.requested:
                break
            done = summary["cells"]
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
    for method in config.methods if settings.optimizer_only else ():
        if find_method(method.opt).needs_closure:
            raise UsageError(f"method {method.opt!r} evaluates the loss within its step: no --optimizer-only")


def _cell_names(cells: Sequence[Config]) -> list[str]:
    """A folder for each cell, named by the axes that vary; none for a single one."""
    values = [{"width": c.problem.width, "batch_size": c.run.batch_size} for c in cells]
    varying = [axis for axis in values[0] if len({v[axis] for v in values}) > 1]
    return ["-".join(f"{axis}={v[axis]}" for axis in varying) for v in values]


def _time_cell(bench: Bench, folder: Path, progress: Progress, stop: Interruption) -> Iterator[dict[str, Any]]:
    """Time every method of a bench; windows.csv gets each round as it ends. What is known of it, again and again.

    First comes what follows from the rounds, before anything else is begun that an interruption could
    meet; then each method's tasks and memory. Nothing if nothing was measured.
    """
    config = bench.config
    if stop.requested:
        return
    bench.plan()
    if stop.requested:
        return
    log = CsvLog(folder / "windows.csv", WINDOW_COLUMNS)
    try:
        apart = config.wallclock.processes > 1
        rows = _rounds_apart(bench, log, progress, stop) if apart else _rounds_here(bench, log, progress, stop)
    finally:
        log.close()
    if not rows:
        return
    costs = compose(per_update(rows), bench.composed)
    reference = bench.reference.label
    summaries = summarise(costs, reference)
    methods = {c.label: summaries[c.label] | bench.describe(c) for c in bench.wholes}
    notes = warnings_of(rows, costs, reference, os.cpu_count() or 1, config.run.threads)
    wanted = config.wallclock.precision
    if wanted is not None and (widest := _widest(bench, rows)) > wanted:
        notes.append(f"inconclusive: after --max-time the widest interval is +-{widest:.1%}, wanted +-{wanted:.1%}")

    def known() -> dict[str, Any]:
        return {
            "reference": reference,
            "width": config.problem.width,
            "batch_size": config.run.batch_size,
            "label": _label(config),
            "seconds_total": time.monotonic() - bench.began,
            "methods": methods,
            "left_out": bench.left_out,
            "warnings": notes + list(dict.fromkeys(bench.notes)),
            "quick": config.run.quick,
        }

    yield known()
    for i, contestant in enumerate([] if config.run.quick else bench.wholes):
        if stop.requested:
            return
        progress(f"tasks and memory of {contestant.label} ({i + 1}/{len(bench.wholes)})")
        methods[contestant.label] |= bench.tasks(contestant)
        if not stop.requested:
            methods[contestant.label] |= bench.memory(contestant, stop)
        yield known()


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


def _rounds_apart(bench: Bench, log: CsvLog, progress: Progress, stop: Interruption) -> list[dict[str, Any]]:
    """The rounds spread over fresh processes, one after another; each warms up anew.

    A process that dies leaves the rounds that it still had out, with a note; KfbenchError where none is left.
    """
    settings = bench.config.wallclock
    rows: list[dict[str, Any]] = []
    tree = dump(bench.config, "wallclock")
    # Not forked, which would inherit what this process has warmed up.
    context = multiprocessing.get_context("spawn")
    for index in range(settings.processes):
        rounds = list(range(index, settings.rounds, settings.processes))
        try:
            for of_round, of_process in values_of(context, _one_process, (tree, bench.updates, rounds), stop):
                log.append(of_round)
                rows += of_round
                bench.notes += of_process
        except ChildError as error:
            bench.notes.append(f"process {index + 1} of {settings.processes}: {error}; its last rounds are missing")
        if stop.requested:
            break
        progress(f"process {index + 1}/{settings.processes}: {len(rounds)} rounds")
    if not rows and not stop.requested:
        raise KfbenchError(f"no round could be timed: {bench.notes[-1]}")
    return rows


def _one_process(
    tree: dict[str, Any], updates: dict[str, int], rounds: list[int]
) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """The rows of each round as it ends, and what is to be said of methods."""
    flags = {**tree["problem"], **tree["run"], **tree["wallclock"]}
    config = configure({}, flags, tree["methods"], commands=("wallclock",))
    bench = Bench(config, lambda line: None)
    # The windows that the leading process planned, so that rounds of all processes are alike.
    bench.follow(updates)
    for r in rounds:
        rows = list(time_rounds(bench.timed_in_order(), bench.updates, 1, config.run.seed, r))
        yield rows, [still_note(c.label) for c in bench.wholes if c.stands_still]


def _widest(bench: Bench, rows: list[dict[str, Any]]) -> float:
    return max(half_widths(compose(per_update(rows), bench.composed), bench.reference.label))
