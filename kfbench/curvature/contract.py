"""What every layer type must have, and the one layout that every formula uses.

A layer that multiplies by a weight matrix is seen as ``h = W a`` at each of P positions of each of
N samples (P = 1 for a fully connected layer, output positions for a convolution). It gives rows

- inputs ``a`` [N, P, d_in], with a column of ones appended where the layer has a bias,
- output gradients ``g`` [N, P, d_out], of the per-sample loss,

so that its gradient is ``G = 1/N sum_n sum_p g a'`` [d_out, d_in]: weight and bias in one matrix.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kfbench.curvature.estimate import Estimate
from kfbench.curvature.moments import Form, Moment, MomentOfRows


@dataclass(frozen=True)
class Layer(ABC):
    """One captured layer of the user's model, which is only read, never changed."""

    name: str
    module: Any

    @staticmethod
    @abstractmethod
    def why_not(module: Any) -> str | None:
        """Why the rows of this module of the layer's type would not give its gradient, or None where they do."""

    @abstractmethod
    def input_rows(self, x: Tensor) -> Float[Tensor, "N P d_in"]:
        """What the layer was given, as rows; positions in the order of ``gradient_rows``."""

    @abstractmethod
    def gradient_rows(self, g: Tensor) -> Float[Tensor, "N P d_out"]:
        """The gradient with respect to what the layer returned, as rows."""

    def input_moment(self, inputs: list[Tensor], ones: bool, estimate: Estimate) -> Moment:
        """``sum_n sum_p a a'`` over these calls, ``ones``: with a column of ones, whether there is a bias or not."""
        n = estimate.count(len(inputs[0]))
        rows = torch.cat([self.rows_with(ones, full(x[:n])) for x in inputs], dim=1)
        return MomentOfRows(rows.sum(1) if estimate.sharing == "reduce" else rows)

    def form(self, image: tuple[int, ...], ones: bool, estimate: Estimate) -> Form | None:
        """How the moment of inputs of this shape (without N) is kept; None as the matrix itself, formed from rows."""
        return None

    def rows_with(self, ones: bool, x: Tensor) -> Float[Tensor, "N P d"]:
        """Input rows, with a column of ones or, where there is no bias, without."""
        rows = self.input_rows(x)
        return torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2) if ones and not self.has_bias else rows

    @property
    def has_bias(self) -> bool:
        """Whether a bias is trained, hence whether the rows carry a column of ones."""
        return self.module.bias is not None and self.module.bias.requires_grad

    @property
    def d_out(self) -> int:
        """Width of the output rows."""
        return self.module.weight.shape[0]

    @property
    def d_in(self) -> int:
        """Input width, the column of the bias counted."""
        return self.module.weight[0].numel() + self.has_bias

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters whose gradient this layer's rows determine: the weight, then the bias where one is trained."""
        # By name: after prune.remove, or a weight set anew, the bias is registered first.
        return [self.module.weight, self.module.bias] if self.has_bias else [self.module.weight]

    def with_ones(self, rows: Float[Tensor, "N P d"]) -> Float[Tensor, "N P d_in"]:
        """With the column of the bias, where there is one."""
        return torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2) if self.has_bias else rows

    def matrix(self, tensors: list[Tensor]) -> Float[Tensor, "d_out d_in"]:
        """Weight (and bias) shaped tensors, joined to the one matrix of the layer."""
        weight = tensors[0].flatten(1)
        return torch.cat([weight, tensors[1][:, None]], dim=1) if self.has_bias else weight

    def split(self, matrix: Float[Tensor, "d_out d_in"]) -> list[Tensor]:
        """The inverse of ``matrix``: views in the shapes of ``parameters``."""
        weight = self.module.weight
        if not self.has_bias:
            return [matrix.view_as(weight)]
        # reshape, since without the column of the bias the rows are not contiguous.
        return [matrix[:, :-1].reshape(weight.shape), matrix[:, -1]]


def full(rows: Tensor) -> Tensor:
    """In float32 where it is less, so that no factor is kept in half precision."""
    return rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows
