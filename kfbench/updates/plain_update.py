"""The update of an optimizer without a preconditioner: the verbs of ``Preconditioning``, and the gradient itself."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kfbench.preconditioners.plain import PlainGradient
from kfbench.problems.likelihoods import Gaussian, OutputFisher
from kfbench.step_rules.contract import Vector
from kfbench.updates.preconditioning import Rate, Redirect, set_gradients, squared_norm
from kfbench.updates.ranks.sharing import ALONE, Ranks, Several
from kfbench.updates.schedule import Always
from kfbench.updates.turn import Turn, Watch


class PlainUpdate:
    """Leaves the mean gradient in every ``.grad``; nothing is captured, observed or refreshed."""

    damping = T = S = None

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._trained: list[nn.Parameter] = []  # in this update: to look for them takes as long as many a kernel
        # Never taken: it tells what an update costs and repeats after to whoever times or counts it.
        self.turn = Turn(PlainGradient(), 0.0, 1, 1, None, OutputFisher(Gaussian()), None)
        self.turn.reschedule(Always(observing=False, refreshing=False))
        self._ranks: Ranks = ALONE

    def over_processes(self, ranks: Several) -> None:
        """From now on this process sees a share of each batch."""
        self._ranks = ranks

    def plain_parameters(self) -> list[nn.Parameter]:
        """All: there is no direction but the gradient."""
        return list(self.model.parameters())

    def begin(self) -> None:
        """Before the forwards of an update: gradients of micro-batches add up."""
        self._trained = list(self.model.parameters())
        for parameter in self._trained:
            parameter.grad = None

    def capture(self) -> AbstractContextManager[Any]:
        """The context for one training forward: nothing is captured."""
        return nullcontext()

    def take_in(self, losses: Tensor, output: Tensor, part: Tensor) -> None:
        """One micro-batch of an update whose mean loss ``part`` [] is a share of."""
        part.backward()

    @torch.no_grad()
    def finish(self, redirect: Redirect, candidates: Sequence[float] = (), rate: Rate | None = None) -> None:
        """The gradient is its own direction unless a step rule has another; there is no damping to try."""
        if self._ranks.size > 1:
            # Each is a part of the mean over the whole batch already.
            used = [p.grad for p in self.model.parameters() if p.grad is not None]
            torch._foreach_copy_(used, self._ranks.sums(used))
        if self.turn.l2:
            for parameter in self._trained:
                if parameter.grad is not None:
                    parameter.grad = parameter.grad + self.turn.l2 * parameter
        gradient = {p: p.grad for p in self._trained if p.grad is not None}
        other = redirect(gradient, partial(_inner, gradient))
        if other is not None:
            set_gradients(self.model, other)

    def warm_up(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Nothing to fill."""

    @contextmanager
    def watch(self, around: Watch) -> Iterator[None]:
        """Nothing of its own to watch: forward and backward are the caller's."""
        yield

    def state_dict(self) -> None:
        """Nothing."""

    def load_state_dict(self, state: Any) -> None:
        """Nothing."""


def _inner(gradient: Vector, vector: Vector | None = None) -> Tensor:
    """``gradient'vector`` []; of the gradient itself for None."""
    if vector is None:
        return squared_norm(list(gradient.values()))
    return torch.stack([(g * vector[p]).sum() for p, g in gradient.items()]).sum()
