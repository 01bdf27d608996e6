"""Shampoo: roots of second moments of mean gradients on both sides (Gupta, Koren & Singer 2018, Algorithm 1)."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from kfbench.curvature.approximations import KroneckerProduct
from kfbench.curvature.counts import LayerShape, eigh
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.linalg import damped_power
from kfbench.preconditioners.from_gradients.gradient_factors import GradientFactors, RunningMean

GRAFTS = ("none", "sgd", "adam")
# Of Adam's second moments whose length is taken: Kingma & Ba's defaults.
_BETA2, _EPSILON = 0.999, 1e-8


class Shampoo:
    """Direction ``(L + lambda I)^-p G (R + lambda I)^-p``, L of G G' and R of G' G over the gradients so far.

    p is 1/4, and 1/2 where there is one side alone (the paper's 1/(2k) for k factors); p = 1/2 on both sides is
    Shampoo squared (Morwani et al. 2024; Anil et al. 2020 have it as an option). Weight and bias are one matrix, a
    convolution's weight is [d_out, d_in k k]. ``graft`` gives each layer's direction the length of another method's:
    of the gradient, or of Adam without momentum (Anil et al. 2020; Agarwal et al. 2020).

    Deviations from Algorithm 1: by default L and R are running averages ("sum" is as printed), lambda is added at a
    refresh and not to the initial factors (the same for sums), roots are of every T-th update (Anil et al. 2020).
    """

    fisher = "gradients"
    orders = ("same", "independent")
    approximation_of_refresh = True

    def __init__(
        self,
        ema: float = 0.95,
        accumulate: str = "ema",
        exponent: float | None = None,
        sides: str = "both",
        graft: str = "none",
        beta2: float | None = None,
    ) -> None:
        self.factors = GradientFactors(ema, accumulate, sides)
        if graft not in GRAFTS:
            raise ValueError(f"graft must be one of {', '.join(GRAFTS)}, got {graft!r}")
        if beta2 is not None and graft != "adam":
            raise ValueError(f"beta2 is of graft 'adam', got beta2 {beta2} with graft {graft!r}")
        self.exponent = exponent if exponent is not None else 0.25 if sides == "both" else 0.5
        if not 0 < self.exponent <= 1:
            raise ValueError(f"exponent must be above 0 and at most 1, got {exponent}")
        self.graft, self.V = graft, RunningMean(_BETA2 if beta2 is None else beta2, "beta2")
        # Sums remember every gradient, whatever ``ema`` says: without this, ema 0 would look like the newest one alone.
        self.apply_remembers = graft == "adam" or accumulate == "sum"
        self.left: dict[str, Tensor] = {}  # (L + lambda I)^-p
        self.right: dict[str, Tensor] = {}
        self._samples: dict[str, int] = {}

    def observe(self, gradients: Mapping[str, LayerGradient]) -> None:
        """Take in G G' and G' G of every layer."""
        self.factors.add(gradients)
        self._samples |= {name: G.samples for name, G in gradients.items()}

    def refresh(self, damping: float) -> None:
        """The roots of both factors, through their eigenvalues."""
        self.left, self.right = {}, {}  # freed first, so that no two generations are held at once
        for roots, factors in ((self.left, self.factors.left), (self.right, self.factors.right)):
            roots |= {name: damped_power(M, damping, -self.exponent) for name, M in factors.items()}

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """Directions [d_out, d_in]."""
        return {name: self._direction(name, G) for name, G in gradients.items()}

    def _direction(self, name: str, G: LayerGradient) -> Tensor:
        left, right = self.left.get(name), self.right.get(name)
        direction = G.transform(
            None if left is None else lambda g: g @ left, None if right is None else lambda a: a @ right
        )
        if self.graft == "none":
            return direction
        like = G.dense()
        if self.graft == "adam":
            like = like / (self.V.add(name, like.square()).sqrt() + _EPSILON)
        # The direction of a gradient of zero is zero, whatever its length.
        return direction * (like.norm() / direction.norm().clamp(min=torch.finfo(like.dtype).tiny))

    def approximation(self, layer: str) -> KroneckerProduct | None:
        """``c L^2p (x) R^2p``, whose root the direction divides by, with the trace of N E[G G'], N samples a gradient.

        For p = 1/2 that is ``N L (x) R / tr L`` of Morwani et al. 2024; Adagrad's matrix is of mean gradients, N times
        smaller than the Fisher (George et al. 2018 scale EKFAC-ra likewise). None with one side alone.
        """
        L, R = self.factors.left.get(layer), self.factors.right.get(layer)
        if L is None or R is None:
            return None
        B, A = damped_power(L, 0.0, 2 * self.exponent), damped_power(R, 0.0, 2 * self.exponent)
        return KroneckerProduct(B * (self._samples[layer] * L.trace() / (B.trace() * A.trace())), A)

    def multiply_adds(self, shape: LayerShape, vectors: int) -> dict[str, float]:
        """Both factors; their eigenvectors and the roots made of them; both sides of the gradient."""
        on_left, on_right = self.factors.has(shape.d_out, shape.d_in)
        roots = [eigh(d) + d**3 for d, has in ((shape.d_out, on_left), (shape.d_in, on_right)) if has]
        right_side = shape.without_blocks.right_side
        return {
            "statistics": self.factors.multiply_adds(shape),
            "refresh": float(sum(roots)),
            "apply": on_left * shape.left_side + on_right * right_side,
        }

    def forget(self, names: Collection[str]) -> None:
        """Layers that are others now start anew."""
        self.factors.forget(names)
        self.V.forget(names)
        for name in names:
            self.left.pop(name, None)
            self.right.pop(name, None)
            self._samples.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """Factors, roots, and what is grafted from."""
        return {
            "factors": self.factors.state_dict(),
            "left": self.left,
            "right": self.right,
            "V": self.V.state_dict(),
            "samples": self._samples,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        self.factors.load_state_dict(state["factors"])
        self.left, self.right, self._samples = dict(state["left"]), dict(state["right"]), dict(state["samples"])
        self.V.load_state_dict(state["V"])
