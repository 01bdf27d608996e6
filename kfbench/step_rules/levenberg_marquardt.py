"""How lambda of the quadratic model follows from how well it predicted (Martens & Grosse 2015, E.5)."""

import math
from typing import Any

# Their omega_1 of one update: 19/20.
DECAY = 0.95


class LevenbergMarquardt:
    """Every ``every`` updates (T1): lambda times ``0.95^T1`` where the model predicted well, divided by it where badly.

    The reduction ratio is ``rho = (h(theta + delta) - h(theta)) / M(delta)``, on the step's own mini-batch: well is
    above 3/4, badly below 1/4.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._looked = self._raised = 0

    def is_due(self, step: int) -> bool:
        """Whether update ``step``, from 0, is followed by a look."""
        return (step + 1) % self.every == 0

    def adjusted(self, damping: float, change: float, predicted: float) -> tuple[float, float | None]:
        """lambda from now on, and rho: None where nothing was predicted, not a number where the loss is none.

        A loss that is not finite is the worst of predictions, whatever the ratio with it would say; where the model
        predicts no change at all, at a stationary point, lambda stays.
        """
        self._looked += 1
        self._raised += not change <= 0
        factor = DECAY**self.every
        if not math.isfinite(change):
            return damping / factor, math.nan
        if predicted == 0 or not math.isfinite(predicted):
            return damping, None
        ratio = change / predicted
        if ratio > 0.75:
            return damping * factor, ratio
        return (damping / factor if ratio < 0.25 else damping), ratio

    def summary(self) -> dict[str, Any]:
        """How often it looked, and how often the step had raised its mini-batch's loss."""
        return {"steps_looked_at": self._looked, "steps_that_raised_loss": self._raised}

    def state_dict(self) -> dict[str, Any]:
        """Its counts."""
        return {"looked": self._looked, "raised": self._raised}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse."""
        self._looked, self._raised = state["looked"], state["raised"]
