"""`wallclock`: the amortised cost of one update, with an interval that can be trusted."""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from kfbench.config import dump, load_config
from kfbench.engine.build import build_data, prepare_torch
from kfbench.engine.contestants import PartContestant, TraineeContestant, preload
from kfbench.engine.costs import measured_tasks, predicted_tasks
from kfbench.engine.memory_probe import probe_memory
from kfbench.engine.timing import plan_updates, time_until
from kfbench.engine.trainee import Trainee
from kfbench.errors import UsageError
from kfbench.results.environment import environment
from kfbench.results.records import SCHEMA_VERSION, CsvLog, write_json, write_yaml
from kfbench.results.timings import (
    PARTS,
    WINDOW_COLUMNS,
    compose,
    half_widths,
    per_update,
    summarise,
    warnings_of,
)
from kfbench.sections import Config

# A period longer than this is not run once more only to see where its time goes.
_TASKS_SECONDS = 30.0

Progress = Callable[[str], None]


def wallclock_cells(cells: Sequence[Config], directory: Path, progress: Progress) -> list[dict[str, Any]]:
    """Time every cell of the axes, each in a folder of its own where there are several; one summary for all."""
    summaries = []
    for i, config in enumerate(cells):
        name = f"width={config.problem.width}-batch_size={config.run.batch_size}"
        folder = directory if len(cells) == 1 else directory / name
        if len(cells) > 1:
            progress(f"{name} ({i + 1}/{len(cells)})")
        folder.mkdir(exist_ok=True)
        summaries.append(_one_cell(config, folder, progress))
    if len(cells) > 1:  # the top folder has what every output folder has
        write_yaml(directory / "config.yaml", dump(cells[0], "wallclock"))
        write_json(directory / "environment.json", environment())
    write_json(directory / "summary.json", {"schema_version": SCHEMA_VERSION, "status": "done", "cells": summaries})
    return summaries


def _one_cell(config: Config, directory: Path, progress: Progress) -> dict[str, Any]:
    """Time every method of ``config`` (the first is the reference); windows.csv gets each round as it ends."""
    settings, started = config.wallclock, time.monotonic()
    device = prepare_torch(config.run)
    write_yaml(directory / "config.yaml", dump(config, "wallclock"))
    write_json(directory / "environment.json", environment())
    bench = Bench(config, device, progress)
    bench.plan()
    log = CsvLog(directory / "windows.csv", WINDOW_COLUMNS)
    try:
        rows = _rounds_here(bench, log, progress) if settings.processes == 1 else _rounds_apart(bench, log, progress)
    finally:
        log.close()
    costs = compose(per_update(rows), bench.composed)
    reference = bench.wholes[0].label
    found = summarise(costs, reference)
    methods = {c.label: found[c.label] | bench.describe(c) for c in bench.wholes}
    notes = warnings_of(rows, costs, reference, os.cpu_count() or 1, config.run.threads)
    notes += bench.notes + _precision_notes(rows, config)
    return {
        "reference": reference,
        "width": config.problem.width,
        "batch_size": config.run.batch_size,
        "label": _label(config),
        "seconds_total": time.monotonic() - started,
        "methods": methods,
        "warnings": notes,
        "quick": config.run.quick,
    }


def _label(config: Config) -> str:
    """What was timed."""
    if config.wallclock.optimizer_only:
        return "optimizer step alone, without forward and backward"
    return "whole updates, data included" if config.wallclock.with_data else "whole updates on preloaded batches"


class Bench:
    """All contestants of one configuration, warmed up, with their windows planned."""

    def __init__(self, config: Config, device: torch.device, progress: Progress) -> None:
        self.config, self.device = config, device
        self.data = build_data(config, device)
        self.batches = preload(self.data, config.run.batch_size, config.run.seed)
        self.notes: list[str] = []
        self.composed: dict[str, tuple[int, int]] = {}
        self.updates: dict[str, int] = {}
        self.timed: list[TraineeContestant] = []
        self.wholes = []
        for i, method in enumerate(config.methods):
            progress(f"warming up {method.label} ({i + 1}/{len(config.methods)})")
            self.wholes.append(self._warm(i))

    def _warm(self, index: int) -> TraineeContestant:
        config, settings = self.config, self.config.wallclock
        single = config.model_copy(update={"methods": (config.methods[index],)})
        trainee = Trainee(single, self.data, config.run.seed, self.device)
        label = config.methods[index].label
        contestant = TraineeContestant(label, trainee, self.batches, settings.with_data, settings.optimizer_only)
        # A period is too long to run whole where it will be composed anyway; a few updates warm it up.
        if settings.compose == "always" and trainee.preconditioning is not None:
            trainee.warm_up()
            contestant.run(min(contestant.period, 3))
            contestant.keep()
        else:
            contestant.warm_up(settings.warmup_periods)
        if contestant.diverged:
            raise UsageError(f"method {label!r} diverged during its warm-up; lower its lr")
        return contestant

    def plan(self) -> None:
        """Choose windows, and compose the longest periods until all rounds fit into the time there is."""
        settings = self.config.wallclock
        always = settings.compose == "always"
        seconds: dict[str, float] = {}
        for contestant in self.wholes:
            if always and contestant.period > 1:
                self._compose(contestant)
            else:
                self._plan_whole(contestant, seconds)
        if settings.compose == "auto":
            while self._total(seconds) > settings.max_time:
                longest = max((c for c in self.timed if c.period > 1), key=lambda c: seconds[c.label], default=None)
                if longest is None:
                    break
                self.timed.remove(longest)
                del seconds[longest.label]
                self._compose(longest)
                seconds |= {longest.label + part: settings.window_seconds for part in PARTS}
        if self._total(seconds) > settings.max_time:
            self.notes.append(
                f"{settings.rounds} rounds take about {self._total(seconds):.0f} s, more than --max-time "
                f"{settings.max_time:g}: fewer rounds may be run; raise --max-time or lower --rounds"
            )

    def _plan_whole(self, contestant: TraineeContestant, seconds: dict[str, float]) -> None:
        window = self.config.wallclock.window_seconds
        contestant.prepare()
        once = contestant.run(contestant.period)
        periods = max(1, round(window / once + 0.5))
        self.updates[contestant.label] = contestant.period * periods
        seconds[contestant.label] = once * periods
        self.timed.append(contestant)

    def _compose(self, contestant: TraineeContestant) -> None:
        preconditioning = contestant.trainee.preconditioning
        assert preconditioning is not None
        self.composed[contestant.label] = (preconditioning.schedule.T, preconditioning.schedule.S)
        for part in PARTS:
            made = PartContestant(contestant, part)
            self.updates[made.label] = plan_updates(made, self.config.wallclock.window_seconds)
            self.timed.append(made)

    def follow(self, updates: dict[str, int]) -> None:
        """Take over the windows that another process planned."""
        self.updates = updates
        for contestant in self.wholes:
            if contestant.label in updates:
                self.timed.append(contestant)
            else:
                self.timed += [PartContestant(contestant, part) for part in PARTS]

    def timed_in_order(self) -> list[TraineeContestant]:
        """What is timed, the reference first."""
        return sorted(self.timed, key=lambda c: c.label != self.wholes[0].label)

    def _total(self, seconds: dict[str, float]) -> float:
        reference = seconds.get(self.wholes[0].label, 0.0)  # runs twice
        return self.config.wallclock.rounds * (sum(seconds.values()) + reference)

    def describe(self, contestant: TraineeContestant) -> dict[str, Any]:
        """What the windows do not say: predicted ratio, tasks, memory, composition."""
        predicted = predicted_tasks(contestant.trainee, self.batches[0])
        base = predicted_tasks(self.wholes[0].trainee, self.batches[0])
        single = self.config.model_copy(
            update={"methods": tuple(m for m in self.config.methods if m.label == contestant.label)}
        )
        found: dict[str, Any] = {
            "composed": contestant.label in self.composed,
            "T": contestant.trainee.method.options.get("T"),
            "S": contestant.trainee.preconditioning.schedule.S if contestant.trainee.preconditioning else None,
            "predicted_multiply_adds": predicted,
            "predicted_ratio": sum(predicted.values()) / sum(base.values()) if predicted and base else None,
        }
        if contestant.diverged:
            self.notes.append(
                f"{contestant.label}: its loss was not finite when a window ended, so something else than training "
                "was timed; lower its lr"
            )
        if not self.config.run.quick:
            whole = contestant.label not in self.composed
            found["seconds_by_task"] = measured_tasks(contestant) if whole else None
            found |= probe_memory(dump(single))
        return found


def _rounds_here(bench: Bench, log: CsvLog, progress: Progress) -> list[dict[str, Any]]:
    settings, began = bench.config.wallclock, time.monotonic()
    done = 0

    def record(rows: list[dict[str, Any]]) -> None:
        nonlocal done
        log.append(rows)
        done += 1
        spent = time.monotonic() - began
        left = spent / done * (settings.rounds - done)
        progress(f"round {done}/{settings.rounds}  {spent:.0f} s, about {max(left, 0):.0f} s left")

    return time_until(
        bench.timed_in_order(),
        bench.updates,
        settings.rounds,
        bench.config.run.seed,
        settings.precision,
        lambda: settings.max_time - (time.monotonic() - began),
        record,
    )


def _rounds_apart(bench: Bench, log: CsvLog, progress: Progress) -> list[dict[str, Any]]:
    """The rounds spread over fresh processes, one after another; each warms up anew."""
    settings = bench.config.wallclock
    rows: list[dict[str, Any]] = []
    tree = dump(bench.config, "wallclock")
    context = multiprocessing.get_context("spawn")
    for index in range(settings.processes):
        rounds = range(index, settings.rounds, settings.processes)
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found = pool.submit(_one_process, tree, bench.updates, list(rounds)).result()
        log.append(found)
        rows += found
        progress(f"process {index + 1}/{settings.processes}: {len(rounds)} rounds")
    return rows


def _one_process(tree: dict[str, Any], updates: dict[str, int], rounds: list[int]) -> list[dict[str, Any]]:
    from kfbench.engine.timing import time_rounds

    flags = {**tree["problem"], **tree["run"], **tree["wallclock"]}
    config = load_config(flags=flags, specs=tree["methods"])
    bench = Bench(config, prepare_torch(config.run), lambda line: None)
    bench.follow(updates)
    seed = config.run.seed
    return [row for r in rounds for row in time_rounds(bench.timed_in_order(), bench.updates, 1, seed, r)]


def _precision_notes(rows: list[dict[str, Any]], config: Config) -> list[str]:
    wanted = config.wallclock.precision
    if wanted is None:
        return []
    widest = max(half_widths(rows, config.methods[0].label))
    if widest <= wanted:
        return []
    return [f"inconclusive: after --max-time the widest interval is +-{widest:.1%}, wanted +-{wanted:.1%}"]
