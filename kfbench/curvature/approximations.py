"""How far an approximation of one layer's Fisher is from the Fisher of given samples, without d^2 matrices.

``F = 1/N U' U`` has one row of U [K N, d_out d_in] for each of K vectors at N samples. With D standing for
an approximation of F,

    |F - D|_F^2 = |F|_F^2 - 2 <F, D> + |D|_F^2

where each term follows from rows, factors or scales: ``|F|_F = |U U'|_F / N`` (of F itself where that is smaller),
``<F, B (x) A> = 1/N sum <u, B u A>``, ``<F, U diag(S) U'> = <S*, S>`` with S* the second moments of the rows in
that basis. The eigenvalues of F are those of ``U U' / N``, and zeros. All of it is in float64: the difference
cancels where D is close to F.

Sources: George et al. 2018, Figure 3 (right) for the error, Figure 5c for the distance of spectra, Theorem 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from kfbench.curvature.eigenbasis import KroneckerEigenbasis, second_moments
from kfbench.curvature.fisher_rows import LayerRows
from kfbench.curvature.statistics import LayerStatistics

# Products of pairs of positions are taken for so many samples at once that they hold at most this many numbers.
_CHUNK = 2**22


@runtime_checkable  # tests check annotations at run time
class Approximation(Protocol):
    """A symmetric positive semi-definite matrix that stands for one layer's Fisher."""

    def inner(self, fisher: SampleFisher) -> Tensor:
        """``<F, D>`` []: the sum of all products of entries."""

    def squared_norm(self) -> Tensor:
        """``|D|_F^2`` []."""

    def eigenvalues(self) -> Tensor:
        """In any order; zeros may be left out."""


class SampleFisher:
    """The exact Fisher of one layer on the samples of one batch."""

    def __init__(self, statistics: LayerStatistics) -> None:
        g = statistics.output_gradients
        assert g is not None, "a Fisher needs backpropagated vectors"
        self.inputs, self.output_gradients = statistics.inputs.double(), g.double()

    @classmethod
    def of(cls, rows: LayerRows | None) -> SampleFisher | None:
        """Of rows that a method keeps; None where it has none of the layer."""
        return None if rows is None else cls(LayerStatistics(rows.inputs, rows.output_gradients))

    @property
    def samples(self) -> int:
        """N, which F is a mean over."""
        return len(self.inputs)

    @property
    def size(self) -> int:
        """d_out d_in, the width of F."""
        return self.output_gradients.shape[3] * self.inputs.shape[2]

    @property
    def is_small(self) -> bool:
        """Whether F has fewer columns than it has rows in U."""
        return self.size <= self.output_gradients.shape[0] * self.samples

    @cached_property
    def core(self) -> Float[Tensor, "d d"]:
        """F where it is small, else ``U U' / N``: nonzero eigenvalues and norm are the same."""
        if not self.is_small:
            return _gram(self.inputs, self.output_gradients) / self.samples
        U = torch.einsum("knpo,npi->knoi", self.output_gradients, self.inputs).flatten(0, 1).flatten(1)
        return U.T @ U / self.samples

    @cached_property
    def spectrum(self) -> Float[Tensor, d]:
        """The eigenvalues of F, but for zeros where it is not small, in ascending order."""
        # Rounding can make a zero eigenvalue negative.
        return torch.linalg.eigvalsh(self.core).clamp_(min=0)

    def squared_norm(self) -> Float[Tensor, ""]:
        """``|F|_F^2``."""
        return self.core.square().sum()

    def inner(self, other: SampleFisher) -> Float[Tensor, ""]:
        """``<F, F'>``, F' of other samples: the sum of all squared products of their rows, over N N'."""
        # Two matrices F multiply entry by entry; with a Gram matrix on either side the rows must meet.
        if self.is_small and other.is_small:
            return (self.core * other.core).sum()
        inputs = torch.cat([self.inputs, other.inputs])
        gradients = torch.cat([self.output_gradients, other.output_gradients], dim=1)
        K, total, n = gradients.shape[0], len(inputs), self.samples
        # Of the Gram matrix of both batches only the block between them is wanted.
        products = _gram(inputs, gradients).view(K, total, K, total)[:, :n, :, n:]
        return products.square().sum() / (n * other.samples)

    def eigenvalues(self) -> Float[Tensor, d]:
        """Its ``spectrum``, as an approximation of another batch's Fisher."""
        return self.spectrum


@dataclass(frozen=True)
class KroneckerProduct:
    """K-FAC's ``B (x) A``."""

    B: Float[Tensor, "d_out d_out"]
    A: Float[Tensor, "d_in d_in"]

    def inner(self, fisher: SampleFisher) -> Float[Tensor, ""]:
        """``1/N sum_kn sum_pp' (g_p' B g_p') (a_p' A a_p')``."""
        B, A = self.B.double(), self.A.double()
        a, g = fisher.inputs, fisher.output_gradients
        # K P^2 products a sample.
        step = max(1, _CHUNK // (a.shape[1] ** 2 * len(g)))
        total = a.new_zeros(())
        for a_part, g_part in zip(a.split(step), g.split(step, dim=1), strict=True):
            total += (((g_part @ B) @ g_part.mT) * ((a_part @ A) @ a_part.mT)).sum()
        return total / fisher.samples

    def squared_norm(self) -> Float[Tensor, ""]:
        """``|B|^2 |A|^2``."""
        return self.B.double().square().sum() * self.A.double().square().sum()

    def eigenvalues(self) -> Float[Tensor, d]:
        """Products of those of B and A."""
        return self._eigenvalues

    @cached_property
    def _eigenvalues(self) -> Tensor:
        # Kept: one refresh may be looked at many times before the next.
        return torch.outer(*(torch.linalg.eigvalsh(M.double()).clamp_(min=0) for M in (self.B, self.A))).flatten()


@dataclass(frozen=True)
class ScaledEigenbasis:
    """EKFAC's ``U diag(S) U'``, U the eigenvectors of ``B (x) A``."""

    basis: KroneckerEigenbasis
    scales: Float[Tensor, "d_out d_in"]

    def inner(self, fisher: SampleFisher) -> Float[Tensor, ""]:
        """``<S*, S>``, S* what the scales would be on the samples of ``fisher``."""
        U_B, U_A = self.basis.U_B.double(), self.basis.U_A.double()
        measured = second_moments(fisher.output_gradients @ U_B, fisher.inputs @ U_A)
        return (measured * self.scales.double()).sum()

    def squared_norm(self) -> Float[Tensor, ""]:
        """``|S|^2``: U is orthogonal."""
        return self.scales.double().square().sum()

    def eigenvalues(self) -> Float[Tensor, d]:
        """The scales themselves."""
        return self.scales.double().flatten()


def relative_error(fisher: SampleFisher, approximation: Approximation) -> Float[Tensor, ""]:
    """``|F - D|_F / |F|_F`` (George et al. 2018, Figure 3, right); not finite where F is zero.

    Errors below 1e-7 are rounding: the three terms cancel.
    """
    norm = fisher.squared_norm()
    squared = norm - 2 * approximation.inner(fisher) + approximation.squared_norm()
    # The difference of terms that nearly cancel may come out negative.
    return (squared.clamp(min=0) / norm).sqrt()


def cosine_distance(fisher: SampleFisher, approximation: Approximation) -> Float[Tensor, ""]:
    """``1 - <F, D> / (|F| |D|)``: how far D is from any multiple of F (Morwani et al. 2024, there the cosine)."""
    norms = (fisher.squared_norm() * approximation.squared_norm()).sqrt()
    return (1 - approximation.inner(fisher) / norms).clamp(min=0)


def spectrum_distance(fisher: SampleFisher, approximation: Approximation) -> Float[Tensor, ""]:
    """``|eig F - eig D|_2 / |eig F|_2``, both sorted (George et al. 2018, Figure 5c, there not divided).

    Never above ``relative_error`` (Hoffman & Wielandt 1953).
    """
    exact, other = (_descending(values, fisher.size) for values in (fisher.spectrum, approximation.eigenvalues()))
    return (exact - other).norm() / exact.norm()


def _descending(values: Tensor, size: int) -> Tensor:
    """The largest ``size``, filled up with zeros."""
    ordered = values.sort(descending=True).values[:size]
    return torch.cat([ordered, ordered.new_zeros(size - len(ordered))])


def _gram(inputs: Float[Tensor, "N P d_in"], gradients: Float[Tensor, "K N P d_out"]) -> Float[Tensor, "M M"]:
    count = gradients.shape[0] * gradients.shape[1]
    total = inputs.new_zeros(count, count)
    LayerRows(inputs, gradients).add_gram(total)
    return total
