"""Norm clipping: a step rule between a method's direction and the optimizer's step."""

from typing import Any

import torch
from torch import Tensor

from kfbench.step_rules.contract import NoRule, Proposed, Vector
from kfbench.step_rules.learning_rate import learning_rate_factor


class NormClipping(NoRule):
    """``lr_t = min(lr, sqrt(c / grad'direction))``, so that ``lr_t^2 grad'direction <= c``.

    From the poster of George et al. 2018, whose ``c = c_0 gamma^t`` is here a fall to ``c * decay``
    over ``total`` updates. ``grad'direction``, over all parameters, is ``grad' G^-1 grad`` for a
    method with curvature G and the squared norm of the gradient for a plain optimizer. The direction
    is scaled by lr_t / lr, so momentum averages what was clipped. Where the product is not positive
    the formula has no value, and nothing is clipped.
    """

    def __init__(self, c: float, decay: float, total: int, device: torch.device) -> None:
        self.c, self.decay, self.total = c, decay, total
        # Counted on the device: reading it at every update would synchronise.
        self._clipped = torch.zeros((), dtype=torch.int64, device=device)

    def redirect(self, proposed: Proposed) -> Vector:
        """The direction times ``lr_t / lr``."""
        factor = self.factor(proposed)
        return {parameter: direction * factor for parameter, direction in proposed.direction.items()}

    def factor(self, proposed: Proposed) -> Tensor:
        """``lr_t / lr`` []; counts where it is below 1."""
        assert proposed.lr is not None, "an optimizer without a learning rate is refused when it is built"
        c = self.c * learning_rate_factor("exp", self.decay, proposed.step, self.total)
        # Not positive: c / 0 is infinite, and the last clamp makes that 1.
        factor = ((c / proposed.inner(None).clamp(min=0)).sqrt() / proposed.lr).clamp(max=1)
        self._clipped += factor < 1
        return factor

    @property
    def inner_products(self) -> float:
        """One, whose size it clips."""
        return 1.0

    @property
    def acted(self) -> int:
        """In how many updates it clipped."""
        return int(self._clipped)

    def state_dict(self) -> dict[str, Any]:
        """How often it acted."""
        return {"clipped": self._clipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        # Into the tensor on this run's device, wherever the saved one lies.
        self._clipped.copy_(state["clipped"])
