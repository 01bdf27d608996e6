"""Shampoo beside another implementation, and what it is in exact cases."""

import pytest
import pytorch_optimizer
import torch

from kfbench.curvature.approximations import SampleFisher, relative_error
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.linalg import damped_power
from kfbench.curvature.statistics import LayerStatistics
from kfbench.preconditioners.from_gradients.muon import polar_factor
from kfbench.preconditioners.from_gradients.shampoo import Shampoo
from tests import dense
from tests.preconditioners.from_gradients.trajectories import LR, check_trajectory
from tests.properties import assert_close


def test_a_trajectory_is_that_of_pytorch_optimizer():
    """Theirs sums the factors, begins them with epsilon I, and takes the roots at every step, the own gradient in."""
    check_trajectory(
        Shampoo(accumulate="sum"),
        lambda parameters: pytorch_optimizer.Shampoo(
            parameters, lr=LR, matrix_eps=1e-3, preconditioning_compute_steps=1
        ),
        (5, 4, 6, 3),
        damping=1e-3,
        T=1,
        order="same",
    )


def _of(matrix: torch.Tensor, method: Shampoo, damping: float = 0.0) -> torch.Tensor:
    G = {"": LayerGradient.from_dense(matrix, 1)}
    method.observe(G)
    method.refresh(damping)
    return method.apply(G)[""]


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)])
def test_of_one_gradient_without_damping_it_is_its_polar_factor(shape):
    """(G G')^-1/4 G (G' G)^-1/4 = U V', and so with 1/2 on one side: singular factors need no damping for it."""
    G = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for options in ({}, {"sides": "left"}, {"sides": "right"}):
        # Of a singular factor the power -1/2 is of rounding, 1e8 times what it multiplies, which is rounding.
        assert_close(_of(G, Shampoo(**options)), polar_factor(G), 1e-6, str(options))


def test_a_gradient_of_zero_has_a_direction_of_zero():
    for graft in ("none", "sgd", "adam"):
        assert not _of(torch.zeros(3, 4), Shampoo(graft=graft)).any()


def test_powers_of_a_matrix():
    M = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    M = M @ M.T
    root = damped_power(M, 0.5, -0.25)
    whole = torch.linalg.inv(M + 0.5 * torch.eye(5, dtype=M.dtype))
    assert_close(root @ root @ root @ root, whole, 1e-12)


def _rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Output gradients [count, 4] and inputs [count, 5], of unlike lengths."""
    generator = torch.Generator().manual_seed(4)
    g, a = (torch.randn(count, d, dtype=torch.float64, generator=generator) for d in (4, 5))
    return g * torch.arange(1.0, count + 1, dtype=torch.float64)[:, None], a


@pytest.mark.parametrize("exponent", [0.25, 0.5])
def test_of_one_sample_its_approximation_is_the_fisher(exponent):
    """F is gg' (x) aa', of one eigenvalue, so that powers at the trace of F are F."""
    g, a = _rows(1)
    method = Shampoo(exponent=exponent)
    method.observe({"": LayerGradient(g, a, 1)})
    fisher = SampleFisher(LayerStatistics(a[:, None], g[None, :, None]))
    assert relative_error(fisher, method.approximation("")) < 1e-6


@pytest.mark.parametrize("exponent", [0.25, 0.5])
def test_the_approximation_is_of_powers_and_has_the_trace_of_the_gradients(exponent):
    """From gradients of 3 samples each: 3 E[G G'] has the trace of c L^2p (x) R^2p."""
    g, a = _rows(12)
    method, gradients = Shampoo(exponent=exponent, accumulate="sum"), []
    for rows in range(0, 12, 3):
        own = slice(rows, rows + 3)
        method.observe({"": LayerGradient(g[own], a[own], 3)})
        gradients.append(g[own].T @ a[own] / 3)
    got = method.approximation("")
    L, R = sum(G @ G.T for G in gradients), sum(G.T @ G for G in gradients)
    wanted = torch.kron(*(dense.power(M, 0.0, 2 * exponent) for M in (L, R)))
    wanted = wanted * (3 * L.trace() / wanted.trace())
    assert_close(torch.kron(got.B, got.A), wanted, 1e-6)  # R has an eigenvalue 0, whose root is a root of rounding


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"exponent": 0.0}, "exponent must be above 0 and at most 1, got 0.0"),
        ({"sides": "top"}, "sides must be one of both, left, right, got 'top'"),
        ({"accumulate": "mean"}, "accumulate must be one of ema, sum, got 'mean'"),
        ({"graft": "lion"}, "graft must be one of none, sgd, adam, got 'lion'"),
        ({"beta2": 0.9}, "beta2 is of graft 'adam', got beta2 0.9 with graft 'none'"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
    ],
)
def test_options_out_of_range(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Shampoo(**options)
