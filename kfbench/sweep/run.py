"""`sweep`: tunes every method with as many trials as every other, whatever crashes on the way.

Rounds: the grid; extensions of it where the best lies at an edge, or near-optimal ones do; further
points, first for the methods that had fewer trials; the best points again with fresh seeds.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kfbench.config.load import dump
from kfbench.config.schema import Config
from kfbench.errors import UsageError
from kfbench.executors.chances import Chances
from kfbench.executors.contract import Executor, Job, Outcome
from kfbench.results.records import SCHEMA_VERSION, write_json, write_yaml
from kfbench.sweep.ledger import Ledger
from kfbench.sweep.losses import Row, key
from kfbench.sweep.plan import Point, Swept, Trial, plan, seeds, trial
from kfbench.sweep.report import write_report
from kfbench.sweep.tuning import Tuning
from kfbench.sweep.watcher import SweepObserver
from kfbench.training.interruption import Interruption
from kfbench.training.places import executor_of_trials

# What runs in other processes, by path: the leader imports no torch.
_RUN, _PROBE = "kfbench.training.worker:run_trial", "kfbench.training.worker:probe_trial"
# A timeout meant for hanging trials does not end the first look at a method before this.
_PROBE_SECONDS = 60.0
# How many of the next best points may take the place of those that diverge with fresh seeds.
_REPLACEMENTS = 10
# How often the leader looks whether it was interrupted.
_LOOK_SECONDS = 1.0


class Sweep:
    """The leader: decides what is tried, keeps the ledger, and trains nothing itself."""

    def __init__(
        self,
        config: Config,
        directory: Path,
        executor: Executor,
        ledger: Ledger,
        observer: SweepObserver,
        stop: Interruption,
    ) -> None:
        self.config, self.directory, self.executor = config, directory, executor
        self.ledger, self.observer, self.stop = ledger, observer, stop
        self.tunings = [Tuning(method) for method in plan(config)]
        self._chances = Chances(executor, observer.note)
        self._running: dict[str, Trial] = {}
        self._done = 0
        self._environment: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """All rounds; returns what summary.json holds."""
        # For the time that is left: which points these will be is not known before the end.
        for tuning in self.tunings:
            tuning.unplanned = self.config.sweep.top * self.config.sweep.final_seeds
        trials = self._planned(((t, point) for t in self.tunings for point in t.method.cells()), "grid")
        # The first look before the first file: a sweep that is refused leaves nothing behind.
        self._probe()
        write_yaml(self.directory / "config.yaml", dump(self.config, "sweep"))
        if self._environment:
            write_json(self.directory / "environment.json", self._environment)
        self._run(trials)
        self._extend()
        self._refine()
        self._repeat_best()
        if self._running:
            self.executor.stop()  # each saves a checkpoint, from which the same command continues
        status = "interrupted" if self.stop.requested else "done"
        return write_report(self.directory, self.config, self.tunings, self.ledger.rows, status)

    def _planned(self, cells: Iterable[tuple[Tuning, Point]], round: str) -> list[Trial]:
        """The trials of these cells, one a seed, also noted with their methods."""
        trials = []
        for tuning, point in cells:
            own = [trial(self.config, tuning.method, point, round, seed) for seed in seeds(self.config, round)]
            (tuning.finals if round == "final" else tuning.trials).extend(own)
            trials += own
        return trials

    def _probe(self) -> None:
        """Build one trial of every method: what does not fit is said before work starts, and how long trials take."""
        for tuning in self.tunings:
            if self.stop.requested or all(self.ledger.find(t) is not None for t in tuning.trials):
                continue
            patience = max(self.config.sweep.trial_timeout or math.inf, _PROBE_SECONDS)
            outcome = _first_look(self.executor, tuning.trials[0], patience, self.stop)
            if outcome is not None:
                self._judge(tuning, outcome)

    def _judge(self, tuning: Tuning, outcome: Outcome) -> None:
        timeout, label = self.config.sweep.trial_timeout, tuning.method.label
        if outcome.kind == "disk":  # every trial would meet it
            raise OSError(*outcome.value)
        if outcome.kind == "late":
            short = f"trial_timeout is {timeout:g} s, too short to build a trial of {label}"
            raise UsageError(f"{short}: it {outcome.value}")
        if outcome.kind == "refused":
            raise UsageError(outcome.value)
        if outcome.kind != "returned":  # the trials will tell whether all do
            self.observer.note(f"the first look at {label}: {outcome.value}")
            return
        slowest = outcome.value["slowest_update"]
        if timeout is not None and timeout < slowest:
            raise UsageError(f"trial_timeout is {timeout:g} s, shorter than one update of {label}, {slowest:.2g} s")
        tuning.predicted = outcome.value["seconds"]
        if timeout is not None and timeout < tuning.predicted:
            self.observer.note(f"Warning: a trial of {label} takes longer than the trial_timeout of {timeout:g} s")
        self._environment = outcome.value["environment"]
        self.observer.began(label, tuning.predicted)

    def _run(self, trials: Iterable[Trial]) -> None:
        """Until all have ended or the sweep is interrupted; lazy iterables are asked when a process is free."""
        waiting = iter(trials)
        while not self.stop.requested:
            while self.executor.free and (next_one := next(waiting, None)):
                self._start_or_find(next_one)
            if not self._running:
                return
            for outcome in self.executor.wait(_LOOK_SECONDS):
                self._take(outcome)

    def _start_or_find(self, wanted: Trial) -> None:
        row = self.ledger.find(wanted)
        # One that runs already was asked for twice, and needs no second process.
        if row is None and wanted.hash not in self._running:
            self._start(wanted)
        elif row is not None:
            self._note_end(row)

    def _start(self, wanted: Trial) -> None:
        self.ledger.begin(wanted, self.config.sweep.sampler)
        self._running[wanted.hash] = wanted
        arguments = (dump(wanted.config), wanted.method, self.config.sweep.checkpoint_seconds)
        timeout = self.config.sweep.trial_timeout or math.inf
        self._chances.start(Job(wanted.hash, _RUN, arguments, timeout, self.directory / wanted.folder))

    def _take(self, outcome: Outcome) -> None:
        """Record a trial that ended; one that crashed gets a second chance, one whose node was lost goes on."""
        wanted = self._running[outcome.key]
        if outcome.kind == "disk":
            raise OSError(*outcome.value)
        if outcome.kind == "returned":
            summary = outcome.value["runs"][0]
        else:
            summary = {"status": "failed", "reason": outcome.value}
        if summary["status"] == "interrupted" and self.stop.requested:
            del self._running[outcome.key]
            return  # it will be continued
        if summary["status"] == "interrupted":  # by somebody else
            summary = {"status": "failed", "reason": "was interrupted"}
        if self._chances.again(outcome, summary["reason"] if summary["status"] == "failed" else None):
            return
        del self._running[outcome.key]
        if summary["status"] == "failed":
            self.observer.note(f"{wanted.folder}: {summary['reason']}")
            write_json(self.directory / wanted.folder / "summary.json", {"schema_version": SCHEMA_VERSION, **summary})
        own = next(tuning for tuning in self.tunings if tuning.method.label == wanted.method)
        own.seconds.append(outcome.seconds)
        self._note_end(self.ledger.record(wanted, summary))

    def _note_end(self, row: Row) -> None:
        self._done += 1
        left = sum(tuning.seconds_left(self.ledger.rows) for tuning in self.tunings) / self.config.sweep.jobs
        self.observer.ended(row, self._done, sum(tuning.total for tuning in self.tunings), left)

    def _extend(self) -> None:
        """Grow every grid where its best lies at an edge, or near-optimal cells do."""
        for _ in range(self.config.sweep.extend):
            cells = []
            for tuning in self.tunings if not self.stop.requested else ():
                new = tuning.grow(self.ledger.rows, self.config.sweep.near)
                cells += [(tuning, point) for point in new]
                if new:
                    ranges = [f"{a.name} {a.values[0]:g} to {a.values[-1]:g}" for a in tuning.method.axes if a.step]
                    self.observer.note(f"extending {tuning.method.label}: {', '.join(ranges)}")
            self._run(self._planned(cells, "extend"))

    def _refine(self) -> None:
        """As many further trials for each as it takes to have had the same number, and --refine more."""
        largest = max(len(tuning.points()) for tuning in self.tunings)
        counts = [largest - len(tuning.points()) + self.config.sweep.refine for tuning in self.tunings]
        for tuning, count in zip(self.tunings, counts, strict=True):
            tuning.unplanned += count * self.config.run.seeds
        # Lazily: what a sampler suggests depends on what has ended by then.
        self._run(t for tuning, n in zip(self.tunings, counts, strict=True) for t in self._refinements(tuning, n))

    def _refinements(self, tuning: Tuning, count: int) -> Iterator[Trial]:
        sampler, seed, rows = self.config.sweep.sampler, self.config.run.seed, self.ledger.rows
        earlier = self._begun(tuning) if sampler == "tpe" else []
        later = tuning.unplanned - count * self.config.run.seeds
        for point in tuning.suggestions(rows, sampler, seed, earlier, count):
            tuning.unplanned -= self.config.run.seeds
            yield from self._planned([(tuning, point)], "refine")
        tuning.unplanned = later  # also where fewer were suggested than asked for

    def _begun(self, tuning: Tuning) -> list[Point]:
        names = [axis.name for axis in tuning.method.axes]
        begun = [content["point"] for content in self.ledger.begun(tuning.method.label, "refine", "tpe")]
        # The folder may hold those of a sweep over other parameters or values.
        fitting = [p for p in begun if list(p) == names and tuning.method.allows(p)]
        return list({key(point): point for point in fitting}.values())

    def _repeat_best(self) -> None:
        """The best points of each method again, with fresh seeds; the next best where one of these diverges."""
        top, rows = self.config.sweep.top, self.ledger.rows
        # They are planned below, so they would count twice.
        for tuning in self.tunings:
            tuning.unplanned = 0
        for _ in range(1 + _REPLACEMENTS):
            cells = [(t, point) for t in self.tunings for point in t.wanting_fresh_seeds(rows, top, _REPLACEMENTS)]
            if not cells or self.stop.requested:
                return
            self._run(self._planned(cells, "final"))


def sweep(
    config: Config,
    directory: Path,
    observer: SweepObserver,
    begin: Callable[[], None] | None = None,
    any_device: bool = False,
) -> dict[str, Any]:
    """Run or continue a sweep in ``directory``, which exists; returns what its summary.json holds.

    ``begin`` makes way for it once everything fits: what lies there until then is not read. Trials there that ended on
    another device count where ``any_device`` says so. UsageError for what does not fit, before the first trial;
    OSError where the disk fails.
    """
    if begin is not None:
        predict(config)
        begin()
    methods = plan(config)
    names = [name for method in methods for axis in method.axes for name in (axis.name, "lr")]
    # A column of lr beside that of alpha.
    swept = [name for name in dict.fromkeys(names) if name != "lr" or "lr" in config.sweep.parameters]
    executor = executor_of_trials(config.sweep, config.sweep.jobs, _first_trial(config, methods[0]).config, directory)
    with Ledger(directory, swept, any_device) as ledger, Interruption() as stop:
        try:
            return Sweep(config, directory, executor, ledger, observer, stop).run()
        finally:
            executor.stop()


def predict(config: Config) -> list[tuple[Swept, int, float]]:
    """Each method, its trials of the grid, and the predicted seconds of one; nothing is written."""
    methods, predicted = plan(config), []
    executor = executor_of_trials(config.sweep, 1, _first_trial(config, methods[0]).config, None)
    try:
        for method in methods:
            outcome = _first_look(executor, _first_trial(config, method))
            assert outcome is not None, "nobody asked it to stop"
            if outcome.kind != "returned":
                raise UsageError(str(outcome.value))
            predicted.append((method, method.size * config.run.seeds, outcome.value["seconds"]))
    finally:
        executor.stop()
    return predicted


def _first_trial(config: Config, method: Swept) -> Trial:
    return trial(config, method, method.cells()[0], "grid", config.run.seed)


def _first_look(
    executor: Executor, wanted: Trial, patience: float = math.inf, stop: Interruption | None = None
) -> Outcome | None:
    """Build that trial and time its parts; None where the sweep was interrupted meanwhile."""
    executor.submit(Job("probe", _PROBE, (dump(wanted.config),), patience))
    while not (outcomes := executor.wait(_LOOK_SECONDS)):
        if stop is not None and stop.requested:
            return None
    return outcomes[0]
