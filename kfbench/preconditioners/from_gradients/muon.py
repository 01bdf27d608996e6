"""Muon: momentum, orthogonalised (Jordan et al. 2024)."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kfbench.curvature.counts import LayerShape
from kfbench.curvature.gradient import LayerGradient
from kfbench.preconditioners.from_gradients.gradient_factors import RunningMean

ORTHOGONALISE = ("newton-schulz", "svd")
SCALES = ("original", "match-rms-adamw", "none")
# a X + b (X X') X + c (X X')^2 X: theirs, of the largest slope at 0; singular values end between 0.7 and 1.2.
COEFFICIENTS, STEPS = (3.4445, -4.7750, 2.0315), 5
# By which a norm of zero is divided.
_EPSILON = 1e-7


class Muon:
    """Direction ``c U V'``, ``U s V'`` the singular value decomposition of the momentum [d_out, d_in].

    Momentum is ``M <- beta1 M + (1 - beta1) G``; with Nesterov's ``(1 - beta1) G + beta1 M`` is orthogonalised. By
    five Newton-Schulz steps, whose singular values are near 1, or exactly. c is ``sqrt(max(1, d_out / d_in))``, with
    "match-rms-adamw" ``0.2 sqrt(max(d_out, d_in))`` (Liu et al. 2025), "none" 1. Without momentum it is Shampoo of
    one gradient: ``(G G')^-1/4 G (G' G)^-1/4 = U V'``.

    Deviations: in the model's precision, theirs in bfloat16; weight and bias are one matrix, where they leave biases,
    first and last layers to AdamW.
    """

    fisher = "gradients"
    orders: tuple[str, ...] = ("same",)
    apply_remembers = False

    def __init__(
        self,
        beta1: float = 0.95,
        muon_nesterov: bool = True,
        orthogonalise: str = "newton-schulz",
        muon_scale: str = "original",
    ) -> None:
        if orthogonalise not in ORTHOGONALISE:
            raise ValueError(f"orthogonalise must be one of {', '.join(ORTHOGONALISE)}, got {orthogonalise!r}")
        if muon_scale not in SCALES:
            raise ValueError(f"muon_scale must be one of {', '.join(SCALES)}, got {muon_scale!r}")
        self.M, self.nesterov = RunningMean(beta1, "beta1"), muon_nesterov
        self.orthogonalise, self.muon_scale = orthogonalise, muon_scale

    def observe(self, gradients: Mapping[str, LayerGradient]) -> None:
        """Average in every gradient: the momentum."""
        for name, G in gradients.items():
            self.M.add(name, G.dense())

    def refresh(self, damping: float) -> None:
        """Nothing: all that is cubic is of this very momentum."""

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """Directions [d_out, d_in]."""
        return {name: self._direction(name, G) for name, G in gradients.items()}

    def _direction(self, name: str, G: LayerGradient) -> Tensor:
        M = self.M.means[name]
        if self.nesterov:  # of the momentum without bias correction, as theirs
            M = (1 - self.M.decay) * G.dense() + self.M.decay * self.M.weights[name] * M
        d_out, d_in = G.shape
        scale = {
            "original": max(1.0, d_out / d_in) ** 0.5,
            "match-rms-adamw": 0.2 * max(d_out, d_in) ** 0.5,
            "none": 1.0,
        }[self.muon_scale]
        return scale * (newton_schulz(M) if self.orthogonalise == "newton-schulz" else polar_factor(M))

    def multiply_adds(self, shape: LayerShape, vectors: int) -> dict[str, float]:
        """Of each step a Gram matrix of the shorter side, its square, and a product; of the SVD as an eigh of it."""
        short, long = sorted((shape.d_out, shape.d_in))
        formed = shape.product if shape.on_rows and shape.rows < max(shape.d_out, shape.d_in) else 0.0
        steps = STEPS * (2 * short**2 * long + short**3)
        svd = 2 * short**2 * long + 5 * short**3 / 2
        cost = steps if self.orthogonalise == "newton-schulz" else svd
        return {"statistics": formed, "refresh": 0.0, "apply": float(cost)}

    def forget(self, names: Collection[str]) -> None:
        """Layers that are others now start anew."""
        self.M.forget(names)

    def state_dict(self) -> dict[str, Any]:
        """The momentum."""
        return {"M": self.M.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        self.M.load_state_dict(state["M"])


def newton_schulz(M: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out d_in"]:
    """``U s' V'`` with s' near 1, of ``M = U s V'``: five steps of a quintic (Jordan et al. 2024)."""
    a, b, c = COEFFICIENTS
    X = M.T if M.shape[0] > M.shape[1] else M  # the Gram matrix is of the shorter side
    X = X / X.norm().clamp(min=_EPSILON)
    for _ in range(STEPS):
        gram = X @ X.T
        X = torch.addmm(X, torch.addmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.T if M.shape[0] > M.shape[1] else X


def polar_factor(M: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out d_in"]:
    """``U V'`` of ``M = U s V'``, over the singular values above rounding: others have no direction."""
    U, s, Vh = torch.linalg.svd(M, full_matrices=False)
    kept = s > torch.finfo(M.dtype).eps * max(M.shape) * s[0]
    return (U * kept) @ Vh
