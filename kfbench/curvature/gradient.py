"""A layer's gradient, kept as factors where that is cheaper than the matrix itself.

With R = N P rows the gradient is ``G = g' a / N``. A preconditioner multiplies it on both sides;
on the rows this costs R d^2 multiply-adds a side, on the dense gradient d_out d_in d, so the rows
win where R is small (Martens & Grosse 2015, appendix G).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from kfbench.layers.sample_rows import RowMap, SampleRows


class LayerGradient:
    """The mean gradient of one layer over N samples, as rows or as a dense matrix.

    ``output_gradients`` [R, d_out] are of the SUM of the per-sample losses; ``inputs`` [R, d_in], or what makes them.
    """

    def __init__(self, output_gradients: Tensor, inputs: Tensor | SampleRows, samples: int) -> None:
        self.output_gradients, self._inputs, self.samples = output_gradients, inputs, samples
        self._dense: Tensor | None = None
        self.added: Tensor | None = None
        """[d_out, d_in], a part that is of no sample, hence not in the rows."""

    @property
    def inputs(self) -> Float[Tensor, "R d_in"]:
        """Where they were many, made anew at every look."""
        return self._inputs.all().flatten(0, 1) if isinstance(self._inputs, SampleRows) else self._inputs

    @property
    def rows(self) -> int:
        """R; 0 where it is known as a matrix alone."""
        return len(self.output_gradients)

    @classmethod
    def from_dense(cls, matrix: Float[Tensor, "d_out d_in"], samples: int) -> LayerGradient:
        """A gradient known only as a matrix; it has no rows."""
        # No rows, but of the widths that ``shape`` reads.
        gradient = cls(matrix.new_empty(0, matrix.shape[0]), matrix.new_empty(0, matrix.shape[1]), samples)
        gradient._dense = matrix
        return gradient

    def knowing(self, matrix: Float[Tensor, "d_out d_in"]) -> LayerGradient:
        """These rows, and the matrix that they make."""
        self._dense = matrix
        return self

    def plus_matrix(self, matrix: Float[Tensor, "d_out d_in"]) -> LayerGradient:
        """With a part that is of no sample, such as that of a weight penalty; its rows stay those of the loss."""
        whole = LayerGradient(self.output_gradients, self._inputs, self.samples).knowing(self.dense() + matrix)
        whole.added = matrix
        return whole

    @classmethod
    def join(cls, parts: list[LayerGradient], keep_rows: bool = False) -> LayerGradient:
        """The sample-weighted mean over micro-batches, as rows while they stay the smaller form.

        ``keep_rows``: as rows whatever their number, for methods that look at single samples.
        """
        if len(parts) == 1:
            return parts[0]
        samples = sum(part.samples for part in parts)
        rows = sum(part.rows for part in parts)
        # More rows than that would send a side to the dense gradient anyway, see ``transform``.
        if keep_rows or (all(part._dense is None for part in parts) and rows < min(parts[0].shape)):
            g, inputs = torch.cat([part.output_gradients for part in parts]), [part._inputs for part in parts]
            lazy = [a for a in inputs if isinstance(a, SampleRows)]
            if len(lazy) == len(parts):
                return cls(g, SampleRows.join(lazy), samples)
            return cls(g, torch.cat([part.inputs for part in parts]), samples)
        dense = torch.stack([part.dense() * (part.samples / samples) for part in parts]).sum(0)
        return cls.from_dense(dense, samples)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        width = self._inputs.width if isinstance(self._inputs, SampleRows) else self._inputs.shape[1]
        return self.output_gradients.shape[1], width

    def per_sample(self) -> tuple[Float[Tensor, "N P d_out"], Float[Tensor, "N P d_in"]]:
        """Its rows, sample by sample: output gradients and inputs."""
        self._assert_rows()
        g, a = (rows.view(self.samples, -1, rows.shape[1]) for rows in (self.output_gradients, self.inputs))
        return g, a

    def _assert_rows(self) -> None:
        assert self.rows or not self.samples, "the rows were given up: the method must say needs_rows = True"

    @property
    def positions(self) -> int:
        """P, of rows that are there."""
        self._assert_rows()
        return self.rows // max(1, self.samples)

    @property
    def positions_or_0(self) -> int:
        """P; 0 where it is known as a matrix alone."""
        return self.positions if self.rows else 0

    def parts(self, numbers: int) -> Iterator[tuple[Float[Tensor, "1 n P d_out"], Float[Tensor, "n P d_in"]]]:
        """Its rows, a few samples at a time; ``numbers``: what is worked on for each sample beside its inputs."""
        g = self.output_gradients.view(self.samples, self.positions, -1)
        for part, a in self.sample_rows().parts(numbers):
            yield g[None, part], a

    def sample_rows(self) -> SampleRows:
        """Its input rows, sample by sample."""
        if isinstance(self._inputs, SampleRows):
            return self._inputs
        return SampleRows.of(self._inputs.view(self.samples, self.positions, -1))

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """The gradient as a matrix."""
        if self._dense is None and isinstance(self._inputs, SampleRows):
            total = self.output_gradients.new_zeros(self.shape)
            for g, a in self.parts(0):
                total.addmm_(g[0].flatten(0, 1).T, a.flatten(0, 1))
            self._dense = total / self.samples
        elif self._dense is None:
            self._dense = self._product(self.output_gradients, self.inputs)
        return self._dense

    def outer(self) -> Float[Tensor, "d_out d_out"]:
        """``G G'``."""
        if self._few_rows:
            g, a = self.output_gradients, self.inputs
            return g.T @ ((a @ a.T) @ g) / self.samples**2
        return self.dense() @ self.dense().T

    def inner_moment(self) -> Float[Tensor, "d_in d_in"]:
        """``G' G``."""
        if self._few_rows:
            g, a = self.output_gradients, self.inputs
            return a.T @ ((g @ g.T) @ a) / self.samples**2
        return self.dense().T @ self.dense()

    @property
    def _few_rows(self) -> bool:
        """Whether products of its rows are less than products of the matrix."""
        return self.added is None and not isinstance(self._inputs, SampleRows) and 0 < self.rows < min(self.shape)

    def to_check(self) -> list[Tensor]:
        """Tensors that are finite only if the gradient is."""
        return [self.output_gradients, self.inputs] if self._dense is None else [self._dense]

    def transform(self, left: RowMap | None = None, right: RowMap | None = None) -> Float[Tensor, "d_out d_in"]:
        """``M_left' G M_right``, where ``left`` maps rows g to g M_left and ``right`` rows a to a M_right.

        Each side acts on the rows where they are fewer than the dimension of the OTHER side, the
        number of rows (or columns) that the dense gradient offers it.
        """
        d_out, d_in = self.shape
        # A matrix without rows (``from_dense``) must not look cheap for having 0 of them.
        rows = self.rows if self._dense is None else max(d_out, d_in)
        left_on_rows, right_on_rows = left is not None and rows < d_in, right is not None and rows < d_out
        if left_on_rows or right_on_rows:
            g = left(self.output_gradients) if left is not None and left_on_rows else self.output_gradients
            a = right(self.inputs) if right is not None and right_on_rows else self.inputs
            result = self._product(g, a)
        else:
            result = self.dense()
        if right is not None and not right_on_rows:
            result = right(result)
        if left is not None and not left_on_rows:
            result = left(result.T).T
        return result

    def inner(self, direction: Float[Tensor, "d_out d_in"]) -> Float[Tensor, ""]:
        """The sum of all products of entries, ``tr(G' direction)``, without forming G where it is not known."""
        if self._dense is not None or isinstance(self._inputs, SampleRows):
            return (self.dense() * direction).sum()
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
        if len(a) > self.rows:  # copying so many rows costs more than a second pass over the result
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
