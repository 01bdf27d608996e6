"""One method on one update: apply, observe and refresh in its order. The only place where that is decided."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from kfbench.curvature.captured import Captured
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import LayerStatistics
from kfbench.layers.contract import by_parameter
from kfbench.layers.estimate import Estimate
from kfbench.preconditioners.contract import FISHER_KINDS, Observed, Preconditioner, Traits
from kfbench.problems.likelihoods import OutputFisher
from kfbench.step_rules.greedy_gamma import least
from kfbench.updates.answers import Answers, Direction, Judge, Matrices, Write, warn_of_retries
from kfbench.updates.collected import Batches, Collected, FisherBatches, Sieve
from kfbench.updates.ranks.sharing import Several
from kfbench.updates.schedule import Amortisation, Schedule

if TYPE_CHECKING:
    from kfbench.updates.shared_forward import SharedForward

# The name of a task of an update -> a block around its work.
Watch = Callable[[str], AbstractContextManager[None]]


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
        self.schedule: Schedule = Amortisation.of(T, self.traits.default_S(T) if S is None else S)
        self.order = order or self.traits.orders[0]
        if self.order not in self.traits.orders:
            raise ValueError(f"order must be one of {', '.join(self.traits.orders)}, got {order!r}")
        self.has_own_points = self.order == "independent" and self.traits.draws_points
        if self.has_own_points and fisher_batches is None:
            raise ValueError("in order 'independent' the method draws points of its own: give fisher_batches, got None")
        self._sieve = Sieve(on_nonfinite)
        self._fisher_batches, self._fisher = fisher_batches, output_fisher
        self.l2 = 0.0  # eta: the gradient is that of ``eta / 2 |theta|^2`` too
        self.step = self.refreshes = 0
        self._known: set[str] = set()  # layers whose statistics are part of the last refresh
        self._answers = Answers(method)
        self._refreshed = self._warned_of_retries = False
        self._listener: Callable[[Direction], None] | None = None
        self._apart: Callable[[], Batches] | None = None
        self._around: Watch = lambda task: nullcontext()
        self._collected = Collected()

    @property
    def observing(self) -> bool:
        """Whether the coming update's own pass feeds the statistics."""
        elsewhere = self.has_own_points or self._apart is not None or self.traits.of_gradients
        return not elsewhere and self._is_to_observe

    @property
    def _is_to_observe(self) -> bool:
        return self.schedule.observes(self.step) or not self._refreshed  # before any refresh always

    @property
    def observes_first(self) -> bool:
        """Whether the coming update observes and refreshes before it applies.

        Without warm-up there is nothing to apply yet, so the first update uses its own batch.
        """
        return self.has_own_points or self.order == "same" or not self._refreshed

    @property
    def skipped_batches(self) -> int:
        """How many batches were left out of the statistics because they were not finite."""
        return self._sieve.held_back

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

    def observe_apart(self, draw: Callable[[], Batches]) -> None:
        """From now on statistics are of these points of an update, which go through the model once more."""
        self._apart = draw

    def over_processes(self, ranks: Several) -> None:
        """From now on this process sees a share of each batch; what the method learns of is whole batches."""
        self._collected = Collected(ranks, self.traits.estimate)
        self._fisher.draw_for_whole(ranks.place)
        if self.traits.needs_rows:
            ranks.keep_rows()
        if self.traits.over_processes is not None:
            self.traits.over_processes(ranks)

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
        if self.traits.newest_only or self.traits.chain:  # of the whole network, or coupled: nothing fits any more
            self._known, self._refreshed = set(), False
        if self.traits.forget is not None:
            self.traits.forget(names)

    def discard(self) -> None:
        """Give up what was collected."""
        self._collected.discard()

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
        self._collected.add(captured, losses, keep_graph)
        if self.observing:
            # Only now is known which calls the losses reach.
            self._collected.add_statistics(captured.statistics(self.traits.kind))

    def statistics_of(
        self, captured: Captured, losses: Tensor, output: Tensor, moments: frozenset[Estimate]
    ) -> dict[str, LayerStatistics]:
        """What the method would observe of one captured forward that no update is made of."""
        self.traits.want(captured.wanted, observing=True)
        self._draw(captured, losses, output, moments)
        return self._collected.whole(captured.statistics(self.traits.kind))

    def gradients_of(self, captured: Captured, losses: Tensor) -> dict[str, LayerGradient]:
        """The same of a method that observes gradients; the graph stays, as others may draw labels yet."""
        return self._collected.whole_gradients(captured.gradients(losses, keep_graph=True))

    def observe(self, statistics: Observed) -> bool:
        """Hand them to the method, unless they are not finite; returns whether it got them."""
        # Without any refresh there is nothing to go on with.
        if not self._sieve.lets_pass(statistics, needed=not self._refreshed):
            return False
        with self._around("statistics"):
            self.method.observe(statistics)
        self._known |= statistics.keys()
        return True

    def take(
        self,
        forward: SharedForward,
        write: Write | None = None,
        candidates: Sequence[float] = (),
        judge: Judge | None = None,
    ) -> None:
        """One update of this method from what was collected; ``write`` gets gradients and directions [d_out, d_in].

        Without ``write``, and with nobody listening, a method that would not remember it is not applied. Where it
        fails, what was collected is given up, so that no later update is made of it. ``candidates`` are dampings to
        refresh with beside the one in force: that of the least ``judge`` stays.
        """
        try:
            gradients = self._collected.gradients(forward.layers, self.traits.needs_rows, self.l2)
            statistics: Observed | None = self._collected.statistics(forward.layers, self.traits.newest_only)
            statistics = gradients if self.traits.of_gradients and self._is_to_observe else statistics
            before = self.observes_first  # kept: a refresh changes the answer
            if before:
                self._observe_and_refresh(forward, statistics)
            if write is not None or self._listener is not None or self.traits.apply_remembers:
                directions = self._best_directions(gradients, candidates, judge)
                if write is not None:
                    write(gradients, directions)
                if self._listener is not None:
                    self._listener(dict(self.by_parameter(forward, directions)))
            if not before:
                self._observe_and_refresh(forward, statistics)
        finally:
            self.discard()
        self.step += 1

    def _best_directions(
        self, gradients: dict[str, LayerGradient], candidates: Sequence[float], judge: Judge | None
    ) -> Matrices:
        """Those of the damping in force; where others are tried, of the best, which is then in force."""

        def answer() -> Matrices:
            with self._around("apply"):
                return self._answers.of(gradients, self._known)

        if not candidates or judge is None:
            return answer()
        dampings = (self.damping, *candidates)
        self.damping, best = least(dampings, self.method, self.refresh, answer, lambda found: judge(gradients, found))
        return best

    def by_parameter(
        self, forward: SharedForward, directions: Mapping[str, Tensor]
    ) -> Iterator[tuple[nn.Parameter, Tensor | None]]:
        """The direction of every parameter; those of no captured layer keep their plain gradient."""
        yield from by_parameter(forward.layers, directions)
        yield from self._collected.plain(forward.coverage.plain_parameters(), self.l2)

    def _observe_and_refresh(self, forward: SharedForward, statistics: Observed | None) -> None:
        # With points of its own a method refreshes where a period begins: the direction uses this very refresh.
        due = self.schedule.begins if self.has_own_points else self.schedule.refreshes
        refreshing = due(self.step) or not self._refreshed
        if self.has_own_points and refreshing and (draw := self._fisher_batches) is not None:
            # By the step, not by ``refreshes``: a continued run must draw what the unbroken one would.
            statistics = forward.statistics_of_others(self, lambda: draw(self.step // self.schedule.T))
        elif self._apart is not None and self._is_to_observe:
            statistics = forward.statistics_of_others(self, self._apart)
        taken = self.observe(statistics) if statistics is not None else True
        if refreshing and taken:
            self.refresh()

    def refresh(self, damping: float | None = None) -> None:
        """Everything cubic, with the damping in force or this from now on; warns, once, of factors that needed more."""
        self.damping = self.damping if damping is None else damping
        with self._around("inverse"):
            self.method.refresh(self.damping)
        self._refreshed = True
        self.refreshes += 1
        if self.damping_retries and not self._warned_of_retries:
            warn_of_retries(self.damping)
            self._warned_of_retries = True

    def state_dict(self) -> dict[str, Any]:
        """The method's own state, and where it is in its schedule."""
        own = {"step": self.step, "refreshed": self._refreshed, "known": sorted(self._known), "damping": self.damping}
        return {"method": self.method.state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse; ``state`` may hold more."""
        self.method.load_state_dict(state["method"])
        self.step, self._refreshed = state["step"], state["refreshed"]
        self.damping = state.get("damping", self.damping)  # states of before it could move have none
        # States of before there were layers that come and go: all had been seen.
        self._known = set(state.get("known", state["layers"] if state["refreshed"] else ()))
