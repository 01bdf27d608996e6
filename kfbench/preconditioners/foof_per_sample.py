"""FOOF applied to each sample alone, then averaged (Benzing 2022, appendix F): what FOOF's solve is worth.

The paper: a version of SGD with a slightly different learning rate for each data point, which "does not
perform notably better than SGD", so that FOOF's advantage must come from solving for all samples at once.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kfbench.curvature.counts import LayerShape
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import Statistics


class PerSampleFOOF:
    """``1/N sum_n G_n (A_n + lambda I)^-1``, ``G_n = sum_p g a'`` and ``A_n = sum_p a a'`` of sample n.

    For P = 1 that is ``1/N sum_n g a' / (lambda + a'a)``: one learning rate for each sample and layer.
    Nothing is averaged over batches, so there is nothing to observe.
    """

    fisher = "none"
    orders = ("same",)
    apply_remembers = False
    takes_penalty = False
    needs_rows = per_sample = True

    def __init__(self) -> None:
        self.damping = 0.0

    def observe(self, statistics: Statistics) -> None:
        """Nothing: the gradient's own rows say all."""

    def refresh(self, damping: float) -> None:
        """Keep lambda."""
        self.damping = damping

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """Directions [d_out, d_in]."""
        return {name: self._direction(G) for name, G in gradients.items()}

    def _direction(self, G: LayerGradient) -> Tensor:
        if G.positions == 1:
            _, a = G.per_sample()
            return LayerGradient(G.output_gradients, damped_rows(a, self.damping).flatten(0, 1), G.samples).dense()
        total = G.output_gradients.new_zeros(G.shape)
        for g, a in G.parts(min(G.positions, G.shape[1]) ** 2):  # beside the rows each sample has its Gram matrix
            total.addmm_(g[0].flatten(0, 1).T, damped_rows(a, self.damping).flatten(0, 1))
        return total / G.samples

    def multiply_adds(self, shape: LayerShape, vectors: int) -> dict[str, float]:
        """A Gram matrix on the smaller side of each sample's rows, its LU factors, two triangular solves."""
        samples, positions = shape.rows // shape.positions, shape.positions
        side = min(positions, shape.d_in)
        gram_and_solves = 2 * positions * shape.d_in * side
        return {"statistics": 0.0, "refresh": 0.0, "apply": samples * (gram_and_solves + side**3 / 3)}

    def state_dict(self) -> dict[str, Any]:
        """lambda."""
        return {"damping": self.damping}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        self.damping = state["damping"]


def damped_rows(a: Float[Tensor, "N P d_in"], damping: float) -> Float[Tensor, "N P d_in"]:
    """``a_n (a_n' a_n + lambda I)^-1`` for every sample's rows a_n [P, d_in].

    Equal to ``(a_n a_n' + lambda I)^-1 a_n``: the smaller of the two matrices is solved, by LU, which unlike
    Cholesky cannot fail where repeated positions make it singular and lambda is small; it is damped by
    rounding size more than asked, so that no pivot is 0.
    """
    if a.shape[1] == 1:
        squares = a.square().sum(2, keepdim=True)
        # Where lambda is 0, a sample of zeros has direction 0, not 0 / 0.
        return a / (squares + damping).clamp(min=torch.finfo(a.dtype).tiny)
    by_position = a.shape[1] <= a.shape[2]
    gram = a @ a.mT if by_position else a.mT @ a
    diagonal, limits = gram.diagonal(dim1=1, dim2=2), torch.finfo(a.dtype)
    # A view: this damps the Gram matrices themselves.
    diagonal += damping + limits.eps * diagonal.mean(1, keepdim=True) + limits.tiny
    # Unlike solve it looks at no error flag, hence does not synchronise.
    return torch.linalg.solve_ex(gram, a)[0] if by_position else torch.linalg.solve_ex(gram, a.mT)[0].mT
