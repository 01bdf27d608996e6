"""SOAP: Adam in the eigenbasis of Shampoo's factors (Vyas et al. 2024, Algorithm 3)."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from kfbench.curvature.counts import LayerShape, eigh, qr
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.linalg import descending_eigenbasis, power_step
from kfbench.preconditioners.from_gradients.gradient_factors import GradientFactors, RunningMean

BASES = ("power", "eigh")


class SOAP:
    """Direction ``Q_L [ (Q_L' M Q_R) / (sqrt(V) + lambda) ] Q_R'``, V of ``(Q_L' G Q_R)^2``, M of G.

    M is kept where the gradients are and rotated whenever it is used, V where the basis is, as in the paper's code;
    both with Adam's bias correction. Q_L and Q_R are eigenvectors of L and R, largest eigenvalue first; after the first
    refresh, with "power", one step of power iteration and a QR decomposition each, before which columns, and V with
    them, are sorted by ``diag(Q' L Q)``. A side wider than ``max_dim``, or left out by ``sides``, is not rotated.
    lambda is Adam's epsilon. In order "independent", the paper's, a basis is of the gradients before; warm-up batches
    fill L and R alone, and one of them is what the paper's code, which takes no step at first, amounts to. Weight and
    bias are one matrix, a convolution's weight is [d_out, d_in k k].

    Deviations: epsilon is added to the corrected root (Kingma & Ba 2015, Algorithm 1), in their code to the other one.
    """

    fisher = "gradients"
    orders = ("independent", "same")

    def __init__(
        self,
        ema: float = 0.95,
        beta1: float = 0.95,
        beta2: float = 0.95,
        basis: str = "power",
        sides: str = "both",
        max_dim: int | None = 10_000,
    ) -> None:
        if basis not in BASES:
            raise ValueError(f"basis must be one of {', '.join(BASES)}, got {basis!r}")
        if max_dim is not None and max_dim < 1:
            raise ValueError(f"max_dim must be at least 1, got {max_dim}")
        self.factors = GradientFactors(ema, "ema", sides, max_dim)
        self.M, self.V = RunningMean(beta1, "beta1"), RunningMean(beta2, "beta2")
        self.basis, self.damping = basis, 0.0
        self.Q_L: dict[str, Tensor] = {}
        self.Q_R: dict[str, Tensor] = {}

    def observe(self, gradients: Mapping[str, LayerGradient]) -> None:
        """Average in G G' and G' G of every layer."""
        self.factors.add(gradients)

    def refresh(self, damping: float) -> None:
        """New bases."""
        self.damping = damping
        for axis, bases, factors in ((0, self.Q_L, self.factors.left), (1, self.Q_R, self.factors.right)):
            for name, M in factors.items():
                if name not in bases or self.basis == "eigh":
                    bases[name] = descending_eigenbasis(M)
                    continue
                bases[name], places = power_step(M, bases[name])
                if name in self.V.means:
                    self.V.means[name] = self.V.means[name].index_select(axis, places)

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """Directions [d_out, d_in]; both moments are taken in first."""
        return {name: self._direction(name, G) for name, G in gradients.items()}

    def _direction(self, name: str, G: LayerGradient) -> Tensor:
        Q_L, Q_R = self.Q_L.get(name), self.Q_R.get(name)
        rotated = G.transform(None if Q_L is None else lambda g: g @ Q_L, None if Q_R is None else lambda a: a @ Q_R)
        V, M = self.V.add(name, rotated.square()), self.M.add(name, G.dense())
        M = M if Q_L is None else Q_L.T @ M
        M = M if Q_R is None else M @ Q_R
        # A gradient that is not finite shows in this direction, and in no later one.
        N = (M / V.sqrt().add_(self.damping)).add_(0 * rotated.sum())
        N = N if Q_L is None else Q_L @ N
        return N if Q_R is None else N @ Q_R.T

    def multiply_adds(self, shape: LayerShape, vectors: int) -> dict[str, float]:
        """Both factors; a product and a QR decomposition each; G there, M there, and back."""
        sides = [
            d
            for d, has in zip((shape.d_out, shape.d_in), self.factors.has(shape.d_out, shape.d_in), strict=True)
            if has
        ]
        refresh = sum(eigh(d) if self.basis == "eigh" else d**3 + qr(d) for d in sides)
        on_left, on_right = self.factors.has(shape.d_out, shape.d_in)
        rotated = on_left * shape.left_side + on_right * shape.without_blocks.right_side
        # Where the gradient was rotated on its rows, M still needs the matrix that they make.
        formed = shape.product if shape.on_rows and shape.rows < max(shape.d_out, shape.d_in) else 0.0
        return {
            "statistics": self.factors.multiply_adds(shape),
            "refresh": float(refresh),
            "apply": rotated + formed + 2 * shape.d_out * shape.d_in * sum(sides),
        }

    def forget(self, names: Collection[str]) -> None:
        """Layers that are others now start anew."""
        for kept in (self.factors, self.M, self.V):
            kept.forget(names)
        for name in names:
            self.Q_L.pop(name, None)
            self.Q_R.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """Factors, bases, both moments, lambda."""
        return {
            "factors": self.factors.state_dict(),
            "Q_L": self.Q_L,
            "Q_R": self.Q_R,
            "M": self.M.state_dict(),
            "V": self.V.state_dict(),
            "damping": self.damping,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        self.factors.load_state_dict(state["factors"])
        self.Q_L, self.Q_R, self.damping = dict(state["Q_L"]), dict(state["Q_R"]), state["damping"]
        self.M.load_state_dict(state["M"])
        self.V.load_state_dict(state["V"])
