"""Errors of curvature from rows, factors and scales are those of the dense matrices."""

import pytest
import torch

from kfbench.curvature.approximations import (
    KroneckerProduct,
    SampleFisher,
    ScaledEigenbasis,
    cosine_distance,
    relative_error,
    spectrum_distance,
)
from kfbench.curvature.eigenbasis import KroneckerEigenbasis, second_moments
from kfbench.curvature.statistics import LayerStatistics

SIZES = [(1, 4, 1), (1, 7, 1), (3, 5, 2), (1, 40, 1), (2, 3, 4)]  # K, N, P: rows fewer and more than d_out d_in = 12


def _rows(K, N, P, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(N, P, 4, generator=generator, dtype=torch.float64)
    return LayerStatistics(a, torch.randn(K, N, P, 3, generator=generator, dtype=torch.float64))


def _dense(statistics):
    """F by loops."""
    F, N = 0, len(statistics.inputs)
    for g_k in statistics.output_gradients:
        for g, a in zip(g_k, statistics.inputs, strict=True):
            u = sum(torch.outer(gp, ap) for gp, ap in zip(g, a, strict=True)).reshape(-1)
            F = F + torch.outer(u, u) / N
    return F


def _factors(statistics):
    a, g = statistics.inputs.flatten(0, 1), statistics.output_gradients.flatten(0, 2)
    N, P = statistics.inputs.shape[:2]
    return g.T @ g / (N * P), a.T @ a / N


def _check(fisher, approximation, F, D):
    assert relative_error(fisher, approximation).item() == pytest.approx(
        (F - D).norm().item() / F.norm().item(), rel=1e-10
    )
    spectra = [torch.linalg.eigvalsh(M) for M in (F, D)]
    wanted = (spectra[0] - spectra[1]).norm() / spectra[0].norm()
    assert spectrum_distance(fisher, approximation).item() == pytest.approx(wanted.item(), rel=1e-10)
    cosine = (F * D).sum() / (F.norm() * D.norm())
    assert 1 - cosine_distance(fisher, approximation).item() == pytest.approx(cosine.item(), rel=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_kronecker_product_is_the_dense_one(size):
    statistics, other = _rows(*size), _rows(*size, seed=1)
    B, A = _factors(other)
    _check(SampleFisher(statistics), KroneckerProduct(B, A), _dense(statistics), torch.kron(B, A))


@pytest.mark.parametrize("size", SIZES)
def test_scaled_eigenbasis_is_the_dense_one(size):
    statistics, other = _rows(*size), _rows(*size, seed=1)
    basis = KroneckerEigenbasis.of(*_factors(other))
    scales = second_moments(other.output_gradients @ basis.U_B, other.inputs @ basis.U_A)
    U = torch.kron(basis.U_B.contiguous(), basis.U_A.contiguous())
    D = U @ scales.reshape(-1).diag() @ U.T
    _check(SampleFisher(statistics), ScaledEigenbasis(basis, scales), _dense(statistics), D)


@pytest.mark.parametrize("size", SIZES)
def test_fisher_of_other_samples_is_the_dense_one(size):
    statistics, other = _rows(*size), _rows(size[0], size[1] + 2, size[2], seed=1)
    _check(SampleFisher(statistics), SampleFisher(other), _dense(statistics), _dense(other))


@pytest.mark.parametrize("size", SIZES)
def test_theorem_3(size):
    """George et al. 2018: with scales measured on the same samples EKFAC's error never exceeds K-FAC's."""
    for seed in range(20):
        statistics = _rows(*size, seed=seed)
        fisher, (B, A) = SampleFisher(statistics), _factors(statistics)
        basis = KroneckerEigenbasis.of(B, A)
        scales = second_moments(statistics.output_gradients @ basis.U_B, statistics.inputs @ basis.U_A)
        ekfac = relative_error(fisher, ScaledEigenbasis(basis, scales))
        assert ekfac <= relative_error(fisher, KroneckerProduct(B, A)) + 1e-7
        # The scales are the least squares solution: any other are worse.
        assert ekfac < relative_error(fisher, ScaledEigenbasis(basis, scales * 1.1))


def test_one_sample_is_exact_for_both():
    statistics = _rows(1, 1, 1)
    fisher, (B, A) = SampleFisher(statistics), _factors(statistics)
    basis = KroneckerEigenbasis.of(B, A)
    scales = second_moments(statistics.output_gradients @ basis.U_B, statistics.inputs @ basis.U_A)
    for approximation in (KroneckerProduct(B, A), ScaledEigenbasis(basis, scales), fisher):
        assert relative_error(fisher, approximation) < 1e-7
        assert spectrum_distance(fisher, approximation) < 1e-7
