"""Who moves the rest: a second optimizer for parameters that a method does not precondition."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

# Optimizers that may move the rest; each is the method of that name in `kfbench list`, with its defaults.
RESTS = ("adamw", "sgd")


class WithRest(Optimizer):
    """Two optimizers over the same parameters: ``other`` moves those that ``rest`` names, ``main`` all else.

    Which these are may change from update to update, as layers come and go: each optimizer keeps the state of what it
    has moved. Their groups are this one's, ``main``'s first, so that a schedule scales both learning rates alike.
    """

    def __init__(self, main: Optimizer, other: Optimizer, rest: Callable[[], Iterable[nn.Parameter]]) -> None:
        self.main, self.other, self._rest = main, other, rest
        super().__init__(list(main.param_groups[0]["params"]), {})
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [*self.main.param_groups, *self.other.param_groups]

    def parts(self) -> Iterator[tuple[Optimizer, set[int]]]:
        """Each optimizer with the parameters (by id) that are not its own now."""
        rest = {id(p) for p in self._rest()}
        everything = {id(p) for group in self.main.param_groups for p in group["params"]}
        yield self.main, rest
        yield self.other, everything - rest

    def step(self, closure: Any = None) -> Any:
        """One step of both."""
        for optimizer, others in self.parts():
            with _without_gradients(optimizer, others):
                optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Those of both."""
        return {"main": self.main.state_dict(), "rest": self.other.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse."""
        self.main.load_state_dict(state_dict["main"])
        self.other.load_state_dict(state_dict["rest"])
        self._share_groups()  # torch has made new ones


@contextmanager
def _without_gradients(optimizer: Optimizer, hidden: set[int]) -> Iterator[None]:
    """Within the block torch skips these parameters: they have no gradient."""
    kept: list[tuple[Tensor, Tensor | None]] = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            if id(p) in hidden:
                kept.append((p, p.grad))
                p.grad = None
    try:
        yield
    finally:
        for p, gradient in kept:
            p.grad = gradient


def main_of(optimizer: Optimizer) -> Optimizer:
    """The one that steps along directions."""
    return optimizer.main if isinstance(optimizer, WithRest) else optimizer


def moved(optimizer: Optimizer) -> Iterator[tuple[float, list[Tensor]]]:
    """Learning rates, each with the parameters that the coming step moves by it: those that have a gradient."""
    parts = optimizer.parts() if isinstance(optimizer, WithRest) else [(optimizer, set[int]())]
    for each, others in parts:
        for group in each.param_groups:
            yield group["lr"], [p for p in group["params"] if p.grad is not None and id(p) not in others]
