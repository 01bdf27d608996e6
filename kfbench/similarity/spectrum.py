"""How well each method's curvature stands for the Fisher of a layer, along a trajectory, between its refreshes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kfbench.curvature.approximations import (
    Approximation,
    SampleFisher,
    cosine_distance,
    relative_error,
    spectrum_distance,
)
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import Statistics
from kfbench.errors import UsageError
from kfbench.preconditioners.contract import vectors_of
from kfbench.similarity.panel import Panel
from kfbench.updates.batches import SPECTRUM_LABELS, held_out_batch, stream_seed
from kfbench.updates.preconditioning import Preconditioning
from kfbench.updates.schedule import AtLooks
from kfbench.updates.turn import Turn

# A Gram matrix of so many rows takes 128 MB, and its eigenvalues some ten seconds at every look.
MAX_ROWS = 4000


class RowKeeper:
    """Meets the contract of a method, but only keeps the newest rows of one kind of labels."""

    orders: tuple[str, ...] = ("same",)
    apply_remembers = False
    per_sample = True

    def __init__(self, fisher: str) -> None:
        self.fisher = fisher
        self.statistics: Statistics = {}

    def observe(self, statistics: Statistics) -> None:
        """Keep them."""
        self.statistics = statistics

    def refresh(self, damping: float) -> None:
        """Nothing."""

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """Never asked."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Nothing: it lives for one run."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


class _Tracked:
    """One method: its curvature in force, and since when."""

    def __init__(self, turn: Turn, layers: Sequence[str]) -> None:
        assert turn.traits.approximation is not None
        self.turn, self._layers, self._approximation = turn, layers, turn.traits.approximation
        self._seen = 0
        self.first_use = 0  # of the refresh in force: the update whose direction it gave first
        self.age = 0  # updates since then, at the last look
        self._refreshed: dict[str, Approximation] = {}
        self.in_force: dict[str, Approximation] = {}

    def notice(self, first_use: int) -> None:
        """After anything that may have refreshed: what is in force until the next refresh is kept as it is now."""
        if self.turn.refreshes == self._seen:
            return
        self._seen, self.first_use = self.turn.refreshes, first_use
        if self.turn.traits.approximation_of_refresh:
            self._refreshed = self._now()

    def applied(self, step: int) -> None:
        """Right after it gave the direction of update ``step``."""
        self.notice(step)
        self.age = step - self.first_use
        self.in_force = self._refreshed if self.turn.traits.approximation_of_refresh else self._now()

    def _now(self) -> dict[str, Approximation]:
        return {name: known for name in self._layers if (known := self._approximation(name)) is not None}


class Spectrum:
    """Errors of every method that has an approximation of the Fisher, in the named layers, at every look.

    The exact Fisher is that of the current batch, with labels of the method's kind: those that some method
    observes in the same forward, or drawn by a generator of its own. ``held_out`` makes it that of as many other
    points: what was measured on the batch itself, such as EKFAC's scales, fits that one better than any other.
    UsageError for layers that there are not, for methods without such an approximation, and for more rows than a
    Gram matrix is made for.
    """

    def __init__(self, panel: Panel, layers: Sequence[str], every: int, held_out: bool = False) -> None:
        self.panel, self.layers, self.held_out = panel, layers, held_out
        trainee = panel.trainee
        for name in layers:
            if name not in panel.layers:
                raise UsageError(f"--spectrum {name}: no such layer is captured; there are {', '.join(panel.layers)}")
        self.tracked = {
            label: _Tracked(turn, layers) for label, turn in panel.turns.items() if turn.traits.approximation
        }
        if not self.tracked:
            labels = ", ".join(each.label for each in panel.asked)
            raise UsageError(
                f"--spectrum needs a method with an approximation, such as kfac, ekfac, natural, gn-cg, got {labels}"
            )
        self.keepers: dict[str, RowKeeper] = {}
        self._observers: dict[str, Preconditioning] = {}
        self._first_use: dict[str, int] = {}
        for tracked in self.tracked.values():
            fisher, batch_size = _exact(tracked.turn), trainee.run.batch_size
            # Two Fishers are formed: of the current batch, and by some methods of their own points.
            points = max(batch_size, tracked.turn.points_of_a_refresh(batch_size))
            _check_rows(points * vectors_of(fisher, math.prod(trainee.data.output_shape)), fisher)
            if fisher not in self.keepers:
                self._add_keeper(fisher, every)
        panel.listen(self._listen)

    @property
    def periods(self) -> dict[str, int]:
        """T of every method."""
        return {label: tracked.turn.schedule.T for label, tracked in self.tracked.items()}

    def _add_keeper(self, fisher: str, every: int) -> None:
        trainee, keeper = self.panel.trainee, RowKeeper(fisher)
        # A stream of its own, so that looking changes no method's labels.
        seed = stream_seed(trainee.seed, SPECTRUM_LABELS)
        observer = Preconditioning(trainee.model, keeper, damping=0.0, T=1, likelihood=trainee.likelihood, seed=seed)
        observer.turn.reschedule(AtLooks(every))
        self.keepers[fisher], self._observers[fisher] = keeper, observer
        if not self.held_out:
            self.panel.add_observer(observer)

    def warmed_up(self) -> None:
        """After the warm-up."""
        for tracked in self.tracked.values():
            # The warm-up ends with a refresh, which gives the direction of update 0.
            tracked.notice(0)

    def before_turns(self) -> None:
        """Before the turns of an update: which methods will refresh before they apply."""
        # Asked before: whoever applies first will use its refresh one update later.
        step = self.panel.trainee.step
        self._first_use = {label: step + (not tracked.turn.observes_first) for label, tracked in self.tracked.items()}

    def after_turns(self) -> None:
        """After them: whoever refreshed."""
        for label, tracked in self.tracked.items():
            tracked.notice(self._first_use[label])

    def _listen(self, label: str) -> None:
        if label in self.tracked:
            self.tracked[label].applied(self.panel.trainee.step)

    @torch.no_grad()
    def rows(self) -> list[dict[str, Any]]:
        """Of one look: layer, method, updates_since_refresh, and tensors []: error and distances."""
        if self.held_out:
            self._observe_others()
        rows = []
        for name in self.layers:
            # One for all methods with these labels: it keeps its norm and eigenvalues.
            fishers = {f: SampleFisher(k.statistics[name]) for f, k in self.keepers.items() if name in k.statistics}
            for label, tracked in self.tracked.items():
                fisher = fishers.get(_exact(tracked.turn))
                approximation = tracked.in_force.get(name)
                if fisher is None or approximation is None:  # turned out not to be captured; a warning said so
                    continue
                rows.append(
                    {
                        "layer": name,
                        "method": label,
                        "updates_since_refresh": tracked.age,
                        "frobenius_error": relative_error(fisher, approximation),
                        "spectrum_distance": spectrum_distance(fisher, approximation),
                        "fisher_cosine_distance": cosine_distance(fisher, approximation),
                    }
                )
        return rows

    @torch.enable_grad()
    def _observe_others(self) -> None:
        """The keepers' rows are those of one other batch for all, at the same weights."""
        trainee = self.panel.trainee
        batch = held_out_batch(trainee.data, trainee.run.batch_size, trainee.seed, trainee.step)
        for fisher, observer in self._observers.items():
            statistics = self.panel.leader.forward.statistics_of_others(observer.turn, lambda: [batch])
            self.keepers[fisher].statistics = statistics or {}


def _exact(turn: Turn) -> str:
    """The labels of the Fisher that a method's curvature stands for: of a recursion all, of gradients the true ones."""
    return {"recursion": "full", "gradients": "empirical"}.get(turn.traits.fisher, turn.traits.fisher)


def _check_rows(rows: int, fisher: str) -> None:
    if rows > MAX_ROWS:
        raise UsageError(
            f"--spectrum: the Fisher has {rows} rows with labels {fisher!r}, whose Gram matrix takes "
            f"{8e-9 * rows**2:.1f} GB; at most {MAX_ROWS} rows are accepted: use a smaller batch_size or "
            "fisher_data, or fisher 'sampled'"
        )
