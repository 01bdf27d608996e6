"""The Kronecker-factored eigenbasis of one layer (KFE: George et al. 2018, section 3), and second moments in it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.linalg import eigenbasis

# Per-sample gradients are made of so many samples at once that they hold at most this many numbers.
_CHUNK = 2**20


@dataclass(frozen=True)
class KroneckerEigenbasis:
    """Eigenvectors (in columns) and eigenvalues of B and A: those of ``B (x) A`` are their products."""

    U_B: Float[Tensor, "d_out d_out"]
    s_B: Float[Tensor, "d_out"]
    U_A: Float[Tensor, "d_in d_in"]
    s_A: Float[Tensor, "d_in"]

    @classmethod
    def of(cls, B: Float[Tensor, "d_out d_out"], A: Float[Tensor, "d_in d_in"]) -> "KroneckerEigenbasis":
        """Decompose both factors: everything cubic is here."""
        return cls.joined(eigenbasis(B), eigenbasis(A))

    @classmethod
    def joined(cls, B: tuple[Tensor, Tensor], A: tuple[Tensor, Tensor]) -> "KroneckerEigenbasis":
        """From (eigenvalues, eigenvectors) of both factors."""
        return cls(B[1], B[0], A[1], A[0])

    def eigenvalues(self) -> Float[Tensor, "d_out d_in"]:
        """``s_B s_A'``, the eigenvalues of ``B (x) A``."""
        return torch.outer(self.s_B, self.s_A)

    def rotate(self, G: LayerGradient) -> Float[Tensor, "d_out d_in"]:
        """``U_B' G U_A``."""
        return G.transform(left=lambda g: g @ self.U_B, right=lambda a: a @ self.U_A)

    def rotate_back(self, rotated: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out d_in"]:
        """``U_B rotated U_A'``."""
        return self.U_B @ rotated @ self.U_A.T

    def rotated_moments(
        self, parts: Iterable[tuple[Tensor, Tensor]], samples: int
    ) -> tuple[Float[Tensor, "d_out d_in"], Float[Tensor, "d_out d_in"]]:
        """``1/N sum_n sum_k (U_B' G_kn U_A)^2``, squared elementwise, and ``1/N sum_kn U_B' G_kn U_A``.

        ``parts``: output gradients [K, n, P, d_out] and inputs [n, P, d_in] of a few samples at a time. Each side
        acts on the rows of a sample where they are fewer than what the sample's gradient offers it.
        """
        squares = self.U_B.new_zeros(len(self.U_B), len(self.U_A))
        total = torch.zeros_like(squares)
        for g, a in parts:
            right_on_rows, left_on_rows = a.shape[1] < len(self.U_B), a.shape[1] < len(self.U_A)
            a = a @ self.U_A if right_on_rows else a
            for vectors in g @ self.U_B if left_on_rows else g:
                rotated = torch.bmm(vectors.mT, a)
                rotated = rotated if right_on_rows else rotated @ self.U_A
                rotated = rotated if left_on_rows else self.U_B.T @ rotated
                total += rotated.sum(0)
                # Squared sample by sample, then summed: squaring the sum would give the moment of the batch gradient.
                squares += rotated.square_().sum(0)
        return squares / samples, total / samples

    def state_dict(self) -> dict[str, Any]:
        """The four tensors."""
        return dict(vars(self))


def second_moments(g: Float[Tensor, "K N P d_out"], a: Float[Tensor, "N P d_in"]) -> Float[Tensor, "d_out d_in"]:
    """``1/N sum_n sum_k (sum_p g a')^2``, squared elementwise: second moments of per-sample gradients.

    With P = 1 the square of a product is the product of squares, so no per-sample gradient is ever
    formed. Otherwise they are, a few samples at a time.
    """
    samples, positions, d_in = a.shape
    if positions == 1:
        # One vector a sample, the usual case, needs no sum over vectors.
        squares = g[0, :, 0].square() if len(g) == 1 else g[:, :, 0].square().sum(0)
        return squares.T @ a[:, 0].square() / samples
    d_out = g.shape[3]
    total = g.new_zeros(d_out, d_in)
    chunk = max(1, _CHUNK // (d_out * d_in))
    for vectors in g:
        for g_part, a_part in zip(vectors.split(chunk), a.split(chunk), strict=True):
            # Squared sample by sample, then summed: squaring the sum would give the moment of the batch gradient.
            total += torch.bmm(g_part.mT, a_part).square_().sum(0)
    return total / samples
