"""One captured forward that serves several methods: what is verified, drawn or backpropagated for one is for all."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kfbench.curvature import capture as capturing
from kfbench.curvature.captured import Captured, Wanted
from kfbench.curvature.coverage import Coverage
from kfbench.curvature.statistics import LayerStatistics
from kfbench.errors import described
from kfbench.layers.contract import Layer
from kfbench.layers.estimate import Estimate
from kfbench.problems.likelihoods import Likelihood
from kfbench.updates.collected import Batches, joined_statistics
from kfbench.updates.isolation import forward_isolated
from kfbench.updates.turn import Turn


class SharedForward:
    """Captures a model's forwards for one or several turns, the first of which leads.

    Each turn keeps its own schedule and order. Labels of one kind are drawn once a forward, by the first
    turn that observes it.
    """

    def __init__(self, model: nn.Module, likelihood: Likelihood) -> None:
        self.model, self.likelihood = model, likelihood
        self.coverage = Coverage(model)
        self.turns: list[Turn] = []
        self._captured: Captured | None = None

    def join(self, turn: Turn) -> None:
        """From now on every captured forward serves this one too."""
        self.turns.append(turn)
        self.coverage.per_sample |= turn.traits.per_sample
        self.coverage.chain |= turn.traits.chain
        self.coverage.recursion |= turn.traits.fisher == "recursion"

    @property
    def layers(self) -> dict[str, Layer]:
        """The preconditioned layers by name."""
        return self.coverage.layers

    def capture(self) -> AbstractContextManager[Captured]:
        """The context for one training forward (of one micro-batch); one that fails gives up the whole update."""
        changed = self.coverage.look_again()
        for turn in self.turns if changed else ():
            turn.discard()
            turn.forget(changed)
        block = capturing.capture(self.layers, self.coverage.plain_parameters(), self.coverage.unwritten)
        self._captured = block.captured
        return self._guarded(block)

    @contextmanager
    def _guarded(self, block: capturing.capture) -> Iterator[Captured]:
        try:
            with block as captured:
                yield captured
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Give up the update that was begun: nothing of it is part of the next."""
        self._captured = None
        for turn in self.turns:
            turn.discard()

    def collect(self, losses: Tensor, output: Tensor, keep_graph: bool = False, loss_scale: float = 1.0) -> None:
        """Hand the captured forward to every turn: ``losses`` [N] per sample, the model's ``output``."""
        if losses.dim() != 1:
            raise ValueError(f"losses must be per sample, [N], got shape {list(losses.shape)}: use reduction='none'")
        captured, self._captured = self._captured, None
        if captured is None:
            raise RuntimeError("no forward was captured: run the model inside 'with preconditioning.capture():'")
        captured.loss_scale = float(loss_scale)
        try:
            with exact(losses.device):
                before = set(self.layers)
                self.coverage.verify(captured, losses, output)
                for turn in self.turns:
                    turn.forget(before - self.layers.keys())
                    turn.meet(captured.calls.keys())
                observing = [turn for turn in self.turns if turn.observing]
                moments = _moments(observing)
                captured.wanted = Wanted(matrices=False, inputs=bool(observing))
                for turn in self.turns:
                    turn.traits.want(captured.wanted, turn.observing)
                for turn in self.turns:  # labels are drawn first, and only the gradients may free the graph
                    turn.draw(captured, losses, output, moments)
                for turn in self.turns:
                    turn.collect(captured, losses, keep_graph)
        except BaseException:
            self.discard()
            raise

    def of_batch(self, x: Tensor, y: Tensor) -> tuple[Captured, Tensor, Tensor]:
        """(captured, losses [N], output) of a batch that no update is made of."""
        block = capturing.capture(self.layers, self.coverage.plain_parameters(), self.coverage.unwritten)
        with block as captured:
            output = self.model(x)
        losses = self.likelihood.loss(output, y)
        captured.wanted = Wanted(matrices=False)
        self.coverage.verify(captured, losses, output)
        return captured, losses, output

    def statistics_of_others(self, turn: Turn, draw: Callable[[], Batches]) -> dict[str, LayerStatistics] | None:
        """Of other points than the update's, at the current weights; drawing and seeing them leave no trace."""
        with forward_isolated(self.model):
            parts = [turn.statistics_of(*self.of_batch(x, y), turn.traits.moments) for x, y in draw()]
        if not parts:
            raise ValueError(f"fisher_batches gave no batch at update {turn.step}")
        return joined_statistics(parts, self.layers, turn.traits.newest_only)

    def warm_up(self, batches: Iterable[tuple[Tensor, Tensor]], counts: Sequence[int] | None = None) -> None:
        """Fill the statistics from (inputs, targets) before the first update, then refresh once.

        BatchNorm buffers and the random state of dropout come out as they went in. ``counts``: how many
        of the batches are for each turn (default: all).
        """
        limits = [math.inf] * len(self.turns) if counts is None else counts
        seen = 0
        with forward_isolated(self.model):
            for x, y in batches:
                captured, losses, output = self.of_batch(x, y)
                filled = [turn for turn, limit in zip(self.turns, limits, strict=True) if seen < limit]
                moments = _moments([turn for turn in filled if not turn.traits.of_gradients])
                for turn in filled:
                    turn.traits.want(captured.wanted, observing=True)
                for turn in filled:
                    if turn.traits.of_gradients:
                        turn.observe(turn.gradients_of(captured, losses))
                    else:
                        turn.observe(turn.statistics_of(captured, losses, output, moments))
                seen += 1
        for turn, limit in zip(self.turns, limits, strict=True):
            if min(seen, limit):  # nothing to refresh from, else
                turn.refresh()
        self.coverage.start_anew()  # the losses of the coming updates may hold more than the likelihood's

    def ask(self, turns: Sequence[Turn]) -> None:
        """Their turns, writing nothing; RuntimeError names the one that fails, since whatever is followed has not."""
        for turn in turns:
            try:
                turn.take(self)
            except Exception as error:
                name = type(turn.method).__name__
                raise RuntimeError(f"{name}, which is only asked, failed: {described(error)}") from error


def _moments(turns: Sequence[Turn]) -> frozenset[Estimate]:
    """What all of them observe; none where one asks for rows, from which every moment follows."""
    asked = [turn.traits.moments for turn in turns]
    return frozenset().union(*asked) if all(asked) else frozenset()


def exact(device: torch.device) -> AbstractContextManager[Any]:
    """Factors and directions in the precision of their rows, also within a user's autocast."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
