"""A layer's gradient, kept as factors where that is cheaper than the matrix itself.

With R = N P rows the gradient is ``G = g' a / N``. A preconditioner multiplies it on both sides;
on the rows this costs R d^2 multiply-adds a side, on the dense gradient d_out d_in d, so the rows
win where R is small (Martens & Grosse 2015, appendix G).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

# Maps rows [R, d] to rows [R, d]: multiplication by a [d, d] matrix from the right.
RowMap = Callable[[Tensor], Tensor]


class LayerGradient:
    """The mean gradient of one layer over N samples, as rows or as a dense matrix.

    ``output_gradients`` [R, d_out] are of the SUM of the per-sample losses; ``inputs`` [R, d_in].
    """

    def __init__(self, output_gradients: Tensor, inputs: Tensor, samples: int) -> None:
        self.output_gradients, self.inputs, self.samples = output_gradients, inputs, samples
        self._dense: Tensor | None = None

    @classmethod
    def from_dense(cls, matrix: Float[Tensor, "d_out d_in"], samples: int) -> LayerGradient:
        """A gradient known only as a matrix; it has no rows."""
        # No rows, but of the widths that ``shape`` reads.
        gradient = cls(matrix.new_empty(0, matrix.shape[0]), matrix.new_empty(0, matrix.shape[1]), samples)
        gradient._dense = matrix
        return gradient

    @classmethod
    def join(cls, parts: list[LayerGradient], keep_rows: bool = False) -> LayerGradient:
        """The sample-weighted mean over micro-batches, as rows while they stay the smaller form.

        ``keep_rows``: as rows whatever their number, for methods that look at single samples.
        """
        if len(parts) == 1:
            return parts[0]
        samples = sum(part.samples for part in parts)
        rows = sum(len(part.inputs) for part in parts)
        # More rows than that would send a side to the dense gradient anyway, see ``transform``.
        if keep_rows or (all(part._dense is None for part in parts) and rows < min(parts[0].shape)):
            joined = [torch.cat([getattr(p, side) for p in parts]) for side in ("output_gradients", "inputs")]
            return cls(joined[0], joined[1], samples)
        dense = torch.stack([part.dense() * (part.samples / samples) for part in parts]).sum(0)
        return cls.from_dense(dense, samples)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.output_gradients.shape[1], self.inputs.shape[1]

    def per_sample(self) -> tuple[Float[Tensor, "N P d_out"], Float[Tensor, "N P d_in"]]:
        """Its rows, sample by sample: output gradients and inputs."""
        assert len(self.inputs) or not self.samples, "the rows were given up: the method must say needs_rows = True"
        g, a = (rows.view(self.samples, -1, rows.shape[1]) for rows in (self.output_gradients, self.inputs))
        return g, a

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """The gradient as a matrix."""
        if self._dense is None:
            self._dense = self._product(self.output_gradients, self.inputs)
        return self._dense

    def transform(self, left: RowMap | None = None, right: RowMap | None = None) -> Float[Tensor, "d_out d_in"]:
        """``M_left' G M_right``, where ``left`` maps rows g to g M_left and ``right`` rows a to a M_right.

        Each side acts on the rows where they are fewer than the dimension of the OTHER side, the
        number of rows (or columns) that the dense gradient offers it.
        """
        d_out, d_in = self.shape
        # A matrix without rows (``from_dense``) must not look cheap for having 0 of them.
        rows = len(self.inputs) if self._dense is None else max(d_out, d_in)
        g, a = self.output_gradients, self.inputs
        left_on_rows, right_on_rows = rows < d_in, rows < d_out
        if left is not None and left_on_rows:
            g, left = left(g), None
        if right is not None and right_on_rows:
            a, right = right(a), None
        untouched = g is self.output_gradients and a is self.inputs
        result = self.dense() if untouched else self._product(g, a)
        if right is not None:
            result = right(result)
        if left is not None:
            result = left(result.T).T
        return result

    def inner(self, direction: Float[Tensor, "d_out d_in"]) -> Float[Tensor, ""]:
        """The sum of all products of entries, ``tr(G' direction)``, without forming G where it is not known."""
        if self._dense is not None:
            return (self._dense * direction).sum()
        return ((self.output_gradients @ direction) * self.inputs).sum() / self.samples

    def plus(
        self, g: Float[Tensor, "R d_out"], a: Float[Tensor, "R d_in"], scale: float
    ) -> Float[Tensor, "d_out d_in"]:
        """``scale G + g' a``: one product where both share their inputs or few rows are joined, else two."""
        if self._dense is not None:
            return torch.addmm(self._dense, g.T, a, beta=scale)
        # Its own rows are of the sum over samples; g has its factors already.
        own = self.output_gradients * (scale / self.samples)
        if _is_same(a, self.inputs):
            return (own + g).T @ a
        if len(a) > len(self.inputs):  # copying so many rows costs more than a second pass over the result
            return torch.addmm(own.T @ self.inputs, g.T, a)
        return torch.cat([own, g]).T @ torch.cat([self.inputs, a])

    def _product(self, g: Tensor, a: Tensor) -> Tensor:
        # beta = 0: the 1/N rides along in the matrix product, and the empty matrix is never read.
        out = g.new_empty(g.shape[1], a.shape[1])
        return torch.addmm(out, g.T, a, beta=0, alpha=1 / self.samples, out=out)


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same numbers in the same memory."""
    # Views of one tensor are new objects every time they are made, so identity would not tell.
    return (a.data_ptr(), a.shape, a.stride(), a.dtype) == (b.data_ptr(), b.shape, b.stride(), b.dtype)
