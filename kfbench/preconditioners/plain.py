"""The plain gradient as a direction: where it is asked beside others, and what an optimizer alone costs."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kfbench.curvature.counts import LayerShape
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import Statistics


class PlainGradient:
    """Direction ``G``: nothing is observed."""

    fisher = "none"
    orders: tuple[str, ...] = ("same",)
    apply_remembers = False

    def observe(self, statistics: Statistics) -> None:
        """Nothing."""

    def refresh(self, damping: float) -> None:
        """Nothing."""

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """Gradients [d_out, d_in]."""
        return {name: G.dense() for name, G in gradients.items()}

    def multiply_adds(self, shape: LayerShape, vectors: int) -> dict[str, float]:
        """Nothing beyond forming the gradient."""
        return {"statistics": 0.0, "refresh": 0.0, "apply": 0.0}

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
