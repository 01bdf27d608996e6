"""One method on one update: apply, observe and refresh in its order. The only place where that is decided."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from kfbench.curvature.captured import Captured
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import LayerStatistics
from kfbench.layers.contract import by_parameter
from kfbench.layers.estimate import Estimate
from kfbench.preconditioners.contract import FISHER_KINDS, Preconditioner, Traits
from kfbench.problems.output_fisher import OutputFisher
from kfbench.updates.collected import (
    check_directions,
    first_not_finite,
    joined_gradients,
    joined_plain,
    joined_statistics,
)
from kfbench.updates.isolation import forward_isolated
from kfbench.updates.schedule import Amortisation, Schedule

if TYPE_CHECKING:
    from kfbench.updates.shared_forward import SharedForward

Batches = Iterable[tuple[Tensor, Tensor]]  # inputs and targets
FisherBatches = Callable[[int], Batches]  # number of a refresh -> the points that a method draws for itself
# What each parameter is to move against; None where the loss does not use it.
Direction = Mapping[nn.Parameter, Tensor | None]
# The name of a task of an update -> a block around its work.
Watch = Callable[[str], AbstractContextManager[None]]

_UNWATCHED = nullcontext()
# What becomes of statistics that are not finite: left out of the method, or FloatingPointError.
ON_NONFINITE = ("skip", "stop")


class Turn:
    """A method at work: its damping, schedule and order, and what was collected since it last took its turn.

    Raises ValueError for values out of range.
    """

    def __init__(
        self,
        method: Preconditioner,
        damping: float,
        T: int,
        S: int | None,
        order: str | None,
        output_fisher: OutputFisher,
        fisher_batches: FisherBatches | None,
        on_nonfinite: str = "skip",
    ) -> None:
        if damping < 0:
            raise ValueError(f"damping must be at least 0, got {damping}")
        self.method, self.damping = method, damping
        self.traits = Traits.of(method)
        if self.traits.fisher not in FISHER_KINDS:
            accepted = ", ".join(FISHER_KINDS)
            raise ValueError(f"fisher of the method must be one of {accepted}, got {self.traits.fisher or None!r}")
        self.schedule: Schedule = Amortisation.of(T, 1 if S is None and self.traits.newest_only else S)
        self.order = order or self.traits.orders[0]
        if self.order not in self.traits.orders:
            raise ValueError(f"order must be one of {', '.join(self.traits.orders)}, got {order!r}")
        self.has_own_points = self.order == "independent" and self.traits.draws_points
        if self.has_own_points and fisher_batches is None:
            raise ValueError("in order 'independent' the method draws points of its own: give fisher_batches, got None")
        if on_nonfinite not in ON_NONFINITE:
            raise ValueError(f"on_nonfinite must be one of {', '.join(ON_NONFINITE)}, got {on_nonfinite!r}")
        self._fisher_batches, self._fisher, self._on_nonfinite = fisher_batches, output_fisher, on_nonfinite
        self.step = self.refreshes = self.skipped_batches = 0
        self._known: set[str] = set()  # layers whose statistics are part of the last refresh
        self._answered = self._refreshed = self._warned_of_retries = False
        self._listener: Callable[[Direction], None] | None = None
        self._around: Watch = lambda task: _UNWATCHED
        # Of the micro-batches since the last turn.
        self._gradients: list[dict[str, LayerGradient]] = []
        self._statistics: list[dict[str, LayerStatistics]] = []
        self._plain: list[tuple[int, list[Tensor | None]]] = []

    @property
    def observing(self) -> bool:
        """Whether the coming update feeds the statistics; before any refresh it always does."""
        return not self.has_own_points and (self.schedule.observes(self.step) or not self._refreshed)

    @property
    def observes_first(self) -> bool:
        """Whether the coming update observes and refreshes before it applies.

        Without warm-up there is nothing to apply yet, so the first update uses its own batch.
        """
        return self.has_own_points or self.order == "same" or not self._refreshed

    @property
    def damping_retries(self) -> int:
        """How many factors needed more damping than asked for."""
        return self.method.damping_retries if self.traits.counts_retries else 0  # type: ignore[attr-defined]

    def points_of_a_refresh(self, batch_size: int) -> int:
        """How many points a refresh is made from, where they are of one batch or the method's own."""
        wanted = self.traits.own_points or batch_size
        return wanted if self.has_own_points else min(wanted, batch_size)

    def on_direction(self, listener: Callable[[Direction], None] | None) -> None:
        """Tell ``listener`` each direction right after ``apply``, before whatever comes later in the order."""
        self._listener = listener

    def redamp(self, damping: float) -> None:
        """From the next refresh on."""
        self.damping = damping

    def reschedule(self, schedule: Schedule) -> None:
        """From the coming update on."""
        self.schedule = schedule

    @contextmanager
    def with_schedule(self, schedule: Schedule) -> Iterator[None]:
        """Another schedule within the block."""
        usual, self.schedule = self.schedule, schedule
        try:
            yield
        finally:
            self.schedule = usual

    @contextmanager
    def watch(self, around: Watch) -> Iterator[None]:
        """Within the block every task of an update is done inside ``around(its name)``."""
        usual, self._around = self._around, around
        try:
            yield
        finally:
            self._around = usual

    def meet(self, names: Collection[str]) -> None:
        """Layers that the coming update uses: where one is new, the update observes and refreshes first."""
        if self._refreshed and not self._known.issuperset(names):
            self._refreshed = False

    def forget(self, names: Collection[str]) -> None:
        """Layers that are others now: nothing that is known of them holds any more."""
        if not names:
            return
        self._known -= set(names)
        if self.traits.newest_only:  # its rows are of the whole network, so none of them fits any more
            self._known, self._refreshed = set(), False
        if self.traits.forget is not None:
            self.traits.forget(names)

    def discard(self) -> None:
        """Give up what was collected since the last turn."""
        self._gradients, self._statistics, self._plain = [], [], []

    def draw(self, captured: Captured, losses: Tensor, output: Tensor, moments: frozenset[Estimate]) -> None:
        """Backpropagate labels where the coming update observes; needs the graph.

        ``moments``: of all that do, or none where one of them asks for single rows.
        """
        if self.observing:
            self._draw(captured, losses, output, moments)

    def _draw(self, captured: Captured, losses: Tensor, output: Tensor, moments: frozenset[Estimate]) -> None:
        with self._around("label backward"):
            captured.draw(self.traits.kind, output, self._fisher.vectors, losses, moments, self._fisher.sum)

    def collect(self, captured: Captured, losses: Tensor, keep_graph: bool) -> None:
        """Gradients of one micro-batch, and its statistics; frees the graph unless it is to be kept."""
        self._gradients.append(captured.gradients(losses, keep_graph))
        self._plain.append((len(losses), captured.plain_gradients(losses)))
        if self.observing:
            # Only now is known which calls the losses reach.
            self._statistics.append(captured.statistics(self.traits.kind))

    def statistics_of(
        self, captured: Captured, losses: Tensor, output: Tensor, moments: frozenset[Estimate]
    ) -> dict[str, LayerStatistics]:
        """What the method would observe of one captured forward that no update is made of."""
        self.traits.want(captured.wanted, observing=True)
        self._draw(captured, losses, output, moments)
        return captured.statistics(self.traits.kind)

    def observe(self, statistics: dict[str, LayerStatistics]) -> bool:
        """Hand them to the method, unless they are not finite; returns whether it got them.

        One corrupt sample would stay in every average for good.
        """
        bad = first_not_finite(statistics)
        if bad is not None:
            self.skipped_batches += 1
            sentence = f"a batch's statistics of layer {bad!r} are not finite"
            # Without any refresh there is nothing to go on with.
            if self._on_nonfinite == "stop" or not self._refreshed:
                raise FloatingPointError(sentence)
            if self.skipped_batches == 1:
                warnings.warn(f"{sentence}, so they are left out (further batches are only counted)", stacklevel=2)
            return False
        with self._around("statistics"):
            self.method.observe(statistics)
        self._known |= statistics.keys()
        return True

    def take(
        self,
        forward: SharedForward,
        write: Callable[[dict[str, LayerGradient], dict[str, Tensor]], None] | None = None,
    ) -> None:
        """One update of this method from what was collected; ``write`` gets gradients and directions [d_out, d_in].

        Without ``write``, and with nobody listening, a method that would not remember it is not applied. Where it
        fails, what was collected is given up, so that no later update is made of it.
        """
        try:
            gradients = joined_gradients(self._gradients, self._plain, forward.layers, self.traits.needs_rows)
            statistics = joined_statistics(self._statistics, forward.layers, self.traits.newest_only)
            before = self.observes_first  # kept: a refresh changes the answer
            if before:
                self._observe_and_refresh(forward, statistics)
            if write is not None or self._listener is not None or self.traits.apply_remembers:
                directions = self._directions(gradients)
                if write is not None:
                    write(gradients, directions)
                if self._listener is not None:
                    self._listener(dict(self.by_parameter(forward, directions)))
            if not before:
                self._observe_and_refresh(forward, statistics)
        finally:
            self.discard()
        self.step += 1

    def _directions(self, gradients: dict[str, LayerGradient]) -> dict[str, Tensor]:
        """The method's, and the plain gradient of layers that it has seen nothing of."""
        known = {name: G for name, G in gradients.items() if name in self._known} if self._known else gradients
        with self._around("apply"):
            directions = self.method.apply(known)
        if not self._answered:
            check_directions(directions, known)
            self._answered = True
        if len(known) == len(gradients):
            return directions
        return {name: directions[name] if name in known else G.dense() for name, G in gradients.items()}

    def by_parameter(
        self, forward: SharedForward, directions: Mapping[str, Tensor]
    ) -> Iterator[tuple[nn.Parameter, Tensor | None]]:
        """The direction of every parameter; those of no captured layer keep their plain gradient."""
        yield from by_parameter(forward.layers, directions)
        yield from joined_plain(self._plain, forward.coverage.plain_parameters())

    def _observe_and_refresh(self, forward: SharedForward, statistics: dict[str, LayerStatistics] | None) -> None:
        # With points of its own a method refreshes where a period begins: the direction uses this very refresh.
        due = self.schedule.begins if self.has_own_points else self.schedule.refreshes
        refreshing = due(self.step) or not self._refreshed
        if self.has_own_points and refreshing and (draw := self._fisher_batches) is not None:
            # By the step, not by ``refreshes``: a continued run must draw what the unbroken one would.
            statistics = self.statistics_of_others(forward, lambda: draw(self.step // self.schedule.T))
        taken = self.observe(statistics) if statistics is not None else True
        if refreshing and taken:
            self.refresh()

    def statistics_of_others(
        self, forward: SharedForward, draw: Callable[[], Batches]
    ) -> dict[str, LayerStatistics] | None:
        """Of other points than the update's, at the current weights; drawing and seeing them leave no trace."""
        with forward_isolated(forward.model):
            parts = [self.statistics_of(*forward.of_batch(x, y), self.traits.moments) for x, y in draw()]
        if not parts:
            raise ValueError(f"fisher_batches gave no batch at update {self.step}")
        return joined_statistics(parts, forward.layers, self.traits.newest_only)

    def refresh(self) -> None:
        """Everything cubic, with the damping in force; warns, once, of factors that needed more."""
        with self._around("inverse"):
            self.method.refresh(self.damping)
        self._refreshed = True
        self.refreshes += 1
        if self.damping_retries and not self._warned_of_retries:
            warnings.warn(
                f"a factor was not positive definite in floating point with damping {self.damping:g}, so it was "
                "damped more; raise --damping or use --dtype float64 (further cases are only counted)",
                stacklevel=2,
            )
            self._warned_of_retries = True

    def state_dict(self) -> dict[str, Any]:
        """The method's own state, and where it is in its schedule."""
        own = {"step": self.step, "refreshed": self._refreshed, "known": sorted(self._known)}
        return {"method": self.method.state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse; ``state`` may hold more."""
        self.method.load_state_dict(state["method"])
        self.step, self._refreshed = state["step"], state["refreshed"]
        # States of before there were layers that come and go: all had been seen.
        self._known = set(state.get("known", state["layers"] if state["refreshed"] else ()))
