"""FOOF with the damping that K-FAC gives to A (Benzing 2022, appendix D.9): K-FAC without its second factor."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from kfbench.curvature.counts import LayerShape
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import Statistics
from kfbench.preconditioners.contract import Sharing
from kfbench.preconditioners.kfac import KFAC

RESCALES = ("lambda_B", "kfac-norm")


class FOOFWithKFACDamping:
    """``G (A + lambda_A I)^-1`` times a number for each layer; lambda_A, lambda_B of heuristic K-FAC.

    - lambda_B: divided by lambda_B, "to maintain a constant stepsize" (Figure 3): K-FAC with B = 0.
    - kfac-norm: given the norm of the K-FAC direction of the same layer (Figure 4C).
    """

    orders = ("independent", "same")
    apply_remembers = False
    moments_only = True

    def __init__(self, ema: float = 0.95, fisher: str = "sampled", rescale: str = "lambda_B") -> None:
        if rescale not in RESCALES:
            raise ValueError(f"rescale must be one of {', '.join(RESCALES)}, got {rescale!r}")
        self.fisher, self.rescale = fisher, rescale
        self.kfac = KFAC(ema, "heuristic", fisher)
        self.lambda_B: dict[str, Tensor] = {}

    @property
    def damping_retries(self) -> int:
        """How many factors needed more damping than asked for."""
        return self.kfac.damping_retries

    def check(self, damping: float, points: int, vectors: int) -> None:
        """ValueError for lambda = 0 where lambda_B divides."""
        if damping == 0 and self.rescale == "lambda_B":
            raise ValueError("rescale=lambda_B divides by a part of damping, which must be above 0, got 0")

    def observe(self, statistics: Statistics) -> None:
        """Average in both factors, as K-FAC does: B decides the damping."""
        self.kfac.observe(statistics)

    def refresh(self, damping: float) -> None:
        """K-FAC's refresh; ValueError as ``check``."""
        self.check(damping, 0, 0)  # whoever uses the method from Python has not asked before
        self.kfac.refresh(damping)
        # Kept with the inverses, since the averages go on before it divides.
        _, self.lambda_B = self.kfac.heuristic_damping(damping)

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """Directions [d_out, d_in]."""
        return {name: self._direction(name, G) for name, G in gradients.items()}

    def _direction(self, name: str, G: LayerGradient) -> Tensor:
        left, right = self.kfac.inverses[name]
        direction = G.transform(right=right)
        if self.rescale == "lambda_B":
            return direction.div_(self.lambda_B[name])
        kfac_norm = G.transform(left, right).norm()
        # A gradient of zero gives a direction of zero, not 0 / 0.
        return direction.mul_(kfac_norm / direction.norm().clamp(min=torch.finfo(direction.dtype).tiny))

    def multiply_adds(self, shape: LayerShape, vectors: int) -> dict[str, float]:
        """K-FAC's, but for the left side where no K-FAC direction is formed, or the right side twice."""
        counts, right = self.kfac.multiply_adds(shape, vectors), shape.right_side
        counts["apply"] = right if self.rescale == "lambda_B" else counts["apply"] + shape.product + right
        return counts

    def over_processes(self, sharing: Sharing) -> None:
        """As K-FAC's."""
        self.kfac.over_processes(sharing)

    def numbers_sent(self, shape: LayerShape) -> dict[str, int]:
        """Likewise."""
        return self.kfac.numbers_sent(shape)

    def forget(self, names: Collection[str]) -> None:
        """Layers that are others now start anew."""
        self.kfac.forget(names)
        self.lambda_B = {name: value for name, value in self.lambda_B.items() if name not in names}

    def state_dict(self) -> dict[str, Any]:
        """K-FAC's state, and lambda_B."""
        return {"kfac": self.kfac.state_dict(), "lambda_B": self.lambda_B}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        self.kfac.load_state_dict(state["kfac"])
        self.lambda_B = dict(state["lambda_B"])
