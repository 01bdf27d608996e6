"""FOOF, gradient descent on neurons (Benzing 2022, eq 6 and Algorithm 1)."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from kfbench.curvature.averages import FactorAverages, Inverse, inverse_from_state
from kfbench.curvature.counts import LayerShape
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import Statistics
from kfbench.layers.estimate import Estimate
from kfbench.preconditioners.contract import Sharing


class FOOF:
    """Direction ``G (A + lambda I)^-1``: no loss, no label, no Fisher enters but through G.

    Deviations from Algorithm 1 as printed: observe before refresh (as in the authors' code; the
    printed order is one update staler), and A is a mean over samples, not a sum.
    """

    fisher = "none"
    orders = ("independent", "same")
    apply_remembers = False
    moments_only = True

    def __init__(
        self,
        ema: float = 0.95,
        stat_samples: int | None = None,
        sharing: str | None = None,
        spatial: str | None = None,
        input_groups: int | None = None,
    ) -> None:
        self.estimate = Estimate.of(stat_samples, sharing, spatial, input_groups)
        self.A = FactorAverages(ema, self.estimate)
        self.inverses: dict[str, Inverse] = {}
        self.damping_retries = 0

    def observe(self, statistics: Statistics) -> None:
        """Average in ``A = 1/N sum_n sum_p a a'`` of every layer."""
        self.A.add_inputs(statistics)

    def refresh(self, damping: float) -> None:
        """``(A + lambda I)^-1`` of every layer."""
        self.inverses = {}  # freed first, so that no two generations are held at once
        self.inverses, retried = self.A.damped_inverses(dict.fromkeys(self.A.means, damping))
        self.damping_retries += len(retried)

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """Directions [d_out, d_in]."""
        return {name: G.transform(right=self.inverses[name]) for name, G in gradients.items()}

    def multiply_adds(self, shape: LayerShape, vectors: int) -> dict[str, float]:
        """A, its Cholesky factor, and one side of the gradient."""
        return {
            "statistics": shape.input_factor,
            "refresh": shape.input_cholesky,
            "apply": shape.right_side,
        }

    def over_processes(self, sharing: Sharing) -> None:
        """A's Cholesky factors are divided."""
        if sharing.placement is not None:
            self.A.place(sharing.placement)

    def numbers_sent(self, shape: LayerShape) -> dict[str, int]:
        """Those of the Cholesky factor."""
        return {"handed on": shape.input_triangles}

    def forget(self, names: Collection[str]) -> None:
        """Layers that are others now start anew."""
        self.A.forget(names)
        self.inverses = {name: inverse for name, inverse in self.inverses.items() if name not in names}

    def state_dict(self) -> dict[str, Any]:
        """Averages, inverses and the count of retries."""
        inverses = {name: inverse.state_dict() for name, inverse in self.inverses.items()}
        return {"A": self.A.state_dict(), "inverses": inverses, "damping_retries": self.damping_retries}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        self.A.load_state_dict(state["A"])
        self.inverses = {name: inverse_from_state(s) for name, s in state["inverses"].items()}
        self.damping_retries = state["damping_retries"]
