"""The contestants of one `wallclock` table: built, warmed up, and given windows that fit into the time there is."""

import time
from collections.abc import Callable
from typing import Any

from kfbench.config.load import dump
from kfbench.config.schema import Config
from kfbench.errors import UsageError
from kfbench.updates.build import build_data, prepare_torch
from kfbench.updates.schedule import PARTS
from kfbench.updates.timed import PartContestant, TraineeContestant, preload
from kfbench.updates.trainee import Trainee
from kfbench.wallclock.memory_probe import probe_memory
from kfbench.wallclock.rounds import plan_updates
from kfbench.wallclock.tasks import measured_tasks, predicted_tasks

Progress = Callable[[str], None]


class Bench:
    """All contestants of one configuration; the first method is the reference."""

    def __init__(self, config: Config, progress: Progress) -> None:
        self.config, self.device = config, prepare_torch(config.run)
        self.data = build_data(config, self.device)
        self.began = time.monotonic()
        self.batches = preload(self.data, config.run.batch_size, config.run.seed)
        self.notes: list[str] = []
        self.composed: dict[str, tuple[int, int]] = {}
        self.updates: dict[str, int] = {}
        self.timed: list[TraineeContestant] = []
        self.wholes = [self._build(i) for i in range(len(config.methods))]  # whatever is wrong fails first
        for i, contestant in enumerate(self.wholes):
            progress(f"warming up {contestant.label} ({i + 1}/{len(self.wholes)})")
            self._warm(contestant)

    @property
    def reference(self) -> TraineeContestant:
        """What all ratios refer to; never composed, since it is timed twice a round."""
        return self.wholes[0]

    def _build(self, index: int) -> TraineeContestant:
        settings, method = self.config.wallclock, self.config.methods[index]
        single = self.config.with_methods([method])
        trainee = Trainee(single, self.data, self.config.run.seed, self.device)
        return TraineeContestant(method.label, trainee, self.batches, settings.with_data, settings.optimizer_only)

    def _warm(self, contestant: TraineeContestant) -> None:
        # A period that will be composed anyway need not be run whole.
        whole = not self._always_composed(contestant)
        try:
            contestant.warm_up(self.config.wallclock.warmup_periods if whole else 0)
            diverged = contestant.diverged
        except FloatingPointError:
            diverged = True
        if diverged:
            raise UsageError(f"method {contestant.label!r} diverged during its warm-up; lower its lr")

    def _always_composed(self, contestant: TraineeContestant) -> bool:
        return self.config.wallclock.compose == "always" and self._can_be_composed(contestant)

    def _can_be_composed(self, contestant: TraineeContestant) -> bool:
        """Not on an accelerator: there an inverse is formed at its second use, which no part would show."""
        return contestant.period > 1 and contestant is not self.reference and self.device.type == "cpu"

    def plan(self) -> None:
        """Choose windows, and compose the longest periods until all rounds fit into the time there is."""
        settings = self.config.wallclock
        seconds: dict[str, float] = {}
        for contestant in self.wholes:
            if self._always_composed(contestant):
                self._compose(contestant, seconds)
            else:
                self._plan(contestant, seconds)
        while settings.compose == "auto" and self._total(seconds) > settings.max_time:
            candidates = [c for c in self.timed if self._can_be_composed(c)]
            # Composed, it takes a window for each part: what is shorter than these would gain nothing.
            candidates = [c for c in candidates if seconds[c.label] > len(PARTS) * settings.window_seconds]
            if not candidates:
                break
            longest = max(candidates, key=lambda c: seconds[c.label])
            self.timed.remove(longest)
            del seconds[longest.label], self.updates[longest.label]
            self._compose(longest, seconds)
        if self._total(seconds) > settings.max_time:
            self.notes.append(
                f"{settings.rounds} rounds take about {self._total(seconds):.0f} s, more than --max-time "
                f"{settings.max_time:g}, so fewer may have been run; raise --max-time or lower --rounds"
            )

    def follow(self, updates: dict[str, int]) -> None:
        """Take over the windows that another process planned."""
        self.updates = updates
        for contestant in self.wholes:
            if contestant.label in updates:
                self.timed.append(contestant)
            else:  # it was composed: only its parts have windows
                self.timed += [PartContestant(contestant, part) for part in PARTS]

    def timed_in_order(self) -> list[TraineeContestant]:
        """What is timed, the reference first."""
        return sorted(self.timed, key=lambda c: c is not self.reference)

    def _plan(self, contestant: TraineeContestant, seconds: dict[str, float]) -> None:
        updates, taken = plan_updates(contestant, self.config.wallclock.window_seconds)
        self.updates[contestant.label], seconds[contestant.label] = updates, taken
        self.timed.append(contestant)

    def _compose(self, contestant: TraineeContestant, seconds: dict[str, float]) -> None:
        schedule = contestant.trainee.preconditioning.turn.schedule
        self.composed[contestant.label] = (schedule.T, schedule.S)
        for part in PARTS:
            self._plan(PartContestant(contestant, part), seconds)

    def _total(self, seconds: dict[str, float]) -> float:
        # Once more the reference, which every round times twice.
        return self.config.wallclock.rounds * (sum(seconds.values()) + seconds[self.reference.label])

    def describe(self, contestant: TraineeContestant) -> dict[str, Any]:
        """What the windows do not say: schedule, predicted ratio, tasks, memory."""
        trainee, settings = contestant.trainee, self.config.wallclock
        own = [c for c in self.timed if c.trainee is trainee]
        if any(c.diverged for c in own):
            self.notes.append(
                f"{contestant.label}: its loss was not finite when a window ended, so something else than training "
                "was timed; lower its lr"
            )
        entry: dict[str, Any] = {
            "composed": contestant.label in self.composed,
            "T": trainee.preconditioning.T,
            "S": trainee.preconditioning.S,
            "predicted_multiply_adds": None,
            "predicted_ratio": None,
        }
        if not settings.optimizer_only:  # the counts are of whole updates
            predicted = predicted_tasks(trainee, self.batches[0])
            base = predicted_tasks(self.reference.trainee, self.batches[0])
            ratio = sum(predicted.values()) / sum(base.values()) if predicted and base else None
            entry |= {"predicted_multiply_adds": predicted, "predicted_ratio": ratio}
            # Tasks are timed over a whole period, which of a composed method is too long.
            if not self.config.run.quick and contestant.label not in self.composed:
                entry["seconds_by_task"] = measured_tasks(contestant)
        if not self.config.run.quick:
            entry |= probe_memory(dump(self.config.with_methods([trainee.method])))
        return entry
