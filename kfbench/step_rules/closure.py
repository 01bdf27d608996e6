"""Optimizers that evaluate loss and gradient within a step, as L-BFGS does: how often they do."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kfbench.step_rules.contract import NoRule


class ClosureCalls(NoRule):
    """Counts the evaluations of every step; the step itself is the optimizer's own."""

    columns = ("closure_calls",)

    def __init__(self) -> None:
        self._of_step = self._in_all = self._steps = 0

    def begin(self) -> None:
        """A step follows."""
        self._of_step = 0
        self._steps += 1

    def count(self) -> None:
        """One evaluation."""
        self._of_step += 1
        self._in_all += 1

    @property
    def an_update(self) -> float | None:
        """Evaluations a step, on average; None before the first."""
        return self._in_all / self._steps if self._steps else None

    def figures(self) -> Mapping[str, Tensor | float]:
        """Evaluations of the last step."""
        return {"closure_calls": self._of_step}

    def summary(self) -> Mapping[str, Any]:
        """Evaluations in all, and a step on average."""
        return {"closure_calls": self._in_all, "closure_calls_per_update": self.an_update}

    def state_dict(self) -> dict[str, Any]:
        """What was counted."""
        return {"closure_calls": [self._in_all, self._steps]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Count on."""
        self._in_all, self._steps = state["closure_calls"]
