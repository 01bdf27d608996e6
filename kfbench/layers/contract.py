"""What every layer type must have, and the one layout that every formula uses.

A layer that multiplies by a weight matrix is seen as ``h = W a`` at each of P positions of each of
N samples (P = 1 for a fully connected layer, output positions for a convolution). It gives rows

- inputs ``a`` [N, P, d_in], with a column of ones appended where the layer has a bias,
- output gradients ``g`` [N, P, d_out], of the per-sample loss,

so that its gradient is ``G = 1/N sum_n sum_p g a'`` [d_out, d_in]: weight and bias in one matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kfbench.layers.estimate import Estimate
from kfbench.layers.moments import Form, Moment, MomentOfRows
from kfbench.layers.sample_rows import SampleRows, with_ones


@dataclass(frozen=True)
class Layer(ABC):
    """One captured layer of the user's model, which is only read, never changed.

    ``group``: which of its module's ``groups`` it is. Each sees its own channels alone, so that it has factors and a
    gradient of its own; what it shares with the others is the module, its parameters and its calls.
    """

    name: str
    module: Any
    group: int = 0
    always_of_form: ClassVar[bool] = False
    """Whether its input moment is kept in its form even where a sample has one position."""
    looks_up: ClassVar[bool] = False
    """Whether its inputs pick columns of the weight, so that a product with them multiplies nothing."""

    @staticmethod
    @abstractmethod
    def why_not(module: Any) -> str | None:
        """Why the rows of this module of the layer's type would not give its gradient, or None where they do."""

    @classmethod
    def all_of(cls, name: str, module: Any) -> list[Layer]:
        """The module's layers: itself, or its groups as ``name[0]``, ``name[1]``, ..."""
        first = cls(name, module)
        return [first] if first.groups == 1 else [cls(f"{name}[{i}]", module, i) for i in range(first.groups)]

    @property
    def groups(self) -> int:
        """How many layers the module is made of."""
        return 1

    @abstractmethod
    def positions(self, shape: tuple[int, ...]) -> int:
        """P of inputs of this shape, as the module's own options say."""

    @abstractmethod
    def input_rows(self, x: Tensor) -> Float[Tensor, "N P d_in"]:
        """What the layer was given, as rows; positions in the order of ``gradient_rows``."""

    @abstractmethod
    def gradient_rows(self, g: Tensor) -> Float[Tensor, "N P d_out"]:
        """The gradient with respect to what the layer returned, as rows."""

    def sample_rows(self, given: Callable[[], Tensor], samples: int, positions: int) -> SampleRows:
        """The rows of one call, made when asked for from what ``given`` returns."""
        return SampleRows(lambda part: self.input_rows(full(given()[part])), samples, positions, self.d_in)

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
        return with_ones(rows) if ones and not self.has_bias else rows

    @property
    def has_bias(self) -> bool:
        """Whether a bias is trained, hence whether the rows carry a column of ones."""
        return self.module.bias is not None and self.module.bias.requires_grad

    @property
    def d_out(self) -> int:
        """Width of the output rows."""
        return self.module.weight.shape[0] // self.groups

    @property
    def d_in(self) -> int:
        """Input width, the column of the bias counted."""
        return self.module.weight[0].numel() + self.has_bias

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Whose gradient the rows of all its module's layers determine: the weight, the bias where one is trained."""
        # By name: after prune.remove, or a weight set anew, the bias is registered first.
        return [self.module.weight, self.module.bias] if self.has_bias else [self.module.weight]

    def with_ones(self, rows: Float[Tensor, "N P d"]) -> Float[Tensor, "N P d_in"]:
        """With the column of the bias, where there is one."""
        return with_ones(rows) if self.has_bias else rows

    def matrix(self, tensors: list[Tensor]) -> Float[Tensor, "d_out d_in"]:
        """Weight (and bias) shaped tensors, the layer's part of them joined to its one matrix."""
        weight = self.weight_matrix(self._own(tensors[0]))
        return torch.cat([weight, self._own(tensors[1])[:, None]], dim=1) if self.has_bias else weight

    def split(self, matrix: Float[Tensor, "d_out d_in"]) -> list[Tensor]:
        """The inverse of ``matrix``: in the shapes of ``parameters``, of a group its part of them."""
        if not self.has_bias:
            return [self.weight_of(matrix)]
        return [self.weight_of(matrix[:, :-1]), matrix[:, -1]]

    def _own(self, tensor: Tensor) -> Tensor:
        """The group's part, which lies along the first dimension."""
        size = len(tensor) // self.groups
        return tensor.narrow(0, self.group * size, size)

    def weight_matrix(self, weight: Tensor) -> Float[Tensor, "d_out columns"]:
        """The weight (of a group) as it multiplies rows."""
        return weight.flatten(1)

    def weight_of(self, matrix: Float[Tensor, "d_out columns"]) -> Tensor:
        """The inverse."""
        # reshape, since without the column of the bias the rows are not contiguous.
        return matrix.reshape(-1, *self.module.weight.shape[1:])


def by_parameter(layers: Mapping[str, Layer], matrices: Mapping[str, Tensor]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Every parameter with what a matrix for every layer says of it; groups of one module lie one after another."""
    of_module: dict[int, list[Layer]] = {}
    for layer in layers.values():
        of_module.setdefault(id(layer.module), []).append(layer)
    for own in of_module.values():
        parts = [layer.split(matrices[layer.name]) for layer in own]
        whole = parts[0] if len(parts) == 1 else [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
        yield from zip(own[0].parameters, whole, strict=True)


def full(rows: Tensor) -> Tensor:
    """In float32 where it is less, so that no factor is kept in half precision."""
    return rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows
