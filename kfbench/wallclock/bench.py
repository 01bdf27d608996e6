"""The contestants of one `wallclock` table: built, warmed up, and given windows that fit into the time there is."""

import time
from collections.abc import Callable
from typing import Any

import torch

from kfbench.config.schema import Config, Method
from kfbench.config.specs import find_method
from kfbench.errors import KfbenchError, UsageError, described
from kfbench.step_rules.closure import ClosureCalls
from kfbench.training.interruption import Interruption
from kfbench.updates.build import build_data, prepare_torch
from kfbench.updates.schedule import PARTS
from kfbench.updates.timed import DIVERGES, STILL_LR, PartContestant, TraineeContestant, preload
from kfbench.updates.trainee import Trainee
from kfbench.wallclock.child import ChildError
from kfbench.wallclock.memory_probe import probe_memory
from kfbench.wallclock.rounds import plan_updates
from kfbench.wallclock.tasks import measured_tasks, predicted_tasks

Progress = Callable[[str], None]


class Bench:
    """All contestants of one configuration; the first method is the reference.

    Once ``stop`` is requested nothing more is begun: it is left half built, and has no windows.
    """

    def __init__(self, config: Config, progress: Progress, stop: Interruption | None = None) -> None:
        self.config, self.device = config, prepare_torch(config.run)
        self.data = build_data(config, self.device)
        self.began = time.monotonic()
        self.batches = preload(self.data, config.run.batch_size, config.run.seed)
        self.notes: list[str] = []
        self.left_out: list[str] = []
        self.composed: dict[str, tuple[int, int]] = {}
        self.updates: dict[str, int] = {}
        self.timed: list[TraineeContestant] = []
        built = [self._build(method) for method in config.methods]  # whatever is wrong fails first
        # What all ratios refer to; never composed, since it is timed twice a round.
        self.reference = built[0]
        self.wholes: list[TraineeContestant] = []
        self._stop = stop or Interruption()
        for i, contestant in enumerate(built):
            if self._stop.requested:
                return
            progress(f"warming up {contestant.label} ({i + 1}/{len(built)})")
            self._warm(contestant)

    def _build(self, method: Method) -> TraineeContestant:
        settings, options = self.config.wallclock, method.options
        # A step that evaluates the loss itself ends early where it moves nothing, and costs less.
        can_stand_still = options.get("lr") is not None and not find_method(method.opt).needs_closure
        still = method.model_copy(update={"options": {**options, "lr": STILL_LR}})
        return TraineeContestant(
            method.label,
            self._trainee(method),
            self.batches,
            settings.with_data,
            settings.optimizer_only,
            (lambda: self._trainee(still)) if can_stand_still else None,
        )

    def _trainee(self, method: Method) -> Trainee:
        return Trainee(self.config.with_methods([method]), self.data, self.config.run.seed, self.device)

    def _warm(self, contestant: TraineeContestant) -> None:
        # A period that will be composed anyway need not be run whole.
        whole = not self._always_composed(contestant)
        try:
            contestant.warm_up(self.config.wallclock.warmup_periods if whole else 0)
        except (OSError, KfbenchError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a user's method or model may fail in any way, by sys.exit too
            if contestant is self.reference:
                raise UsageError(f"the reference, {contestant.label!r}, cannot be timed: {described(error)}") from error
            self.left_out.append(contestant.label)
            self.notes.append(f"{contestant.label}: cannot be timed, and is left out: {described(error)}")
        else:
            self.wholes.append(contestant)

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
            if self._stop.requested:
                return
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
            elif contestant.label + PARTS[0] in updates:  # it was composed: only its parts have windows
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
        """What the windows do not say, and need not be measured: schedule, predicted ratio; notes on divergence."""
        trainee = contestant.trainee
        if contestant.stands_still:
            self.notes.append(still_note(contestant.label))
        elif any(c.diverged for c in self.timed if c.trainee is trainee):
            self.notes.append(
                f"{contestant.label}: its loss was not finite when a window ended, so something else than training "
                "was timed"
            )
        if isinstance(trainee.rule, ClosureCalls) and trainee.rule.an_update is not None:
            calls = f"{trainee.rule.an_update:.3g}"
            self.notes.append(
                f"{contestant.label}: each update evaluates loss and gradient {calls} times, all of which is timed"
            )
        entry: dict[str, Any] = {
            "composed": contestant.label in self.composed,
            "T": trainee.preconditioning.T,
            "S": trainee.preconditioning.S,
            "predicted_multiply_adds": None,
            "predicted_ratio": None,
        }
        if not self.config.wallclock.optimizer_only:  # the counts are of whole updates
            predicted = predicted_tasks(trainee, self.batches[0])
            base = predicted_tasks(self.reference.trainee, self.batches[0])
            ratio = sum(predicted.values()) / sum(base.values()) if predicted and base else None
            entry |= {"predicted_multiply_adds": predicted, "predicted_ratio": ratio}
        return entry

    def tasks(self, contestant: TraineeContestant) -> dict[str, Any]:
        """Seconds by task; nothing where only steps are timed, or a period is too long to run it whole."""
        if self.config.wallclock.optimizer_only or contestant.label in self.composed:
            return {}
        return {"seconds_by_task": measured_tasks(contestant)}

    def memory(self, contestant: TraineeContestant, stop: Interruption) -> dict[str, Any]:
        """Peak and state; nothing after an interruption or, with a note, where it could not be measured."""
        single = self.config.with_methods([contestant.trainee.method])
        try:
            return dict(probe_memory(single, self.data, self.batches, self.device, stop))
        except (ChildError, *DIVERGES, torch.OutOfMemoryError) as error:
            why = str(error) if isinstance(error, ChildError) else described(error)
            self.notes.append(f"{contestant.label}: its memory could not be measured: {why}")
            return {}


def still_note(label: str) -> str:
    """What is said of a method that diverged, and was timed nevertheless."""
    return (
        f"{label}: it diverged, and was timed with lr {STILL_LR:g} instead, which leaves the weights where they are: "
        "what an update costs does not depend on whether it learns"
    )
