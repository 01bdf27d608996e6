"""Damped inverses, pi and eigenbases."""

import pytest
import torch

from kfbench.curvature.linalg import (
    DampedInverse,
    conjugate_gradient,
    damped_inverses,
    eigenbasis,
    pi_correction,
)
from tests.properties import assert_close, equal


def _positive(d, rank=None):
    x = torch.randn(rank or d, d, dtype=torch.float64)
    return x.T @ x / len(x)


def _inverse(M, damping):
    return torch.linalg.inv(M + damping * torch.eye(len(M), dtype=M.dtype))


@pytest.mark.parametrize("d", [1, 5, 511, 512, 777])
def test_every_use_gives_the_damped_inverse(d):
    """Widths on both sides of where Cholesky is done by blocks."""
    M, rows = _positive(d), torch.randn(3, d, dtype=torch.float64)
    before = M.clone()
    found, retried = damped_inverses({"a": M}, {"a": 0.1})
    for _ in range(3):
        assert_close(found["a"](rows), rows @ _inverse(M, 0.1), 1e-11)
    assert retried == []
    assert torch.equal(M, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_an_accelerator_forms_the_inverse_at_the_second_use():
    M, rows = _positive(5).cuda(), torch.randn(3, 5, dtype=torch.float64).cuda()
    found, _ = damped_inverses({"a": M}, {"a": 0.1})
    for use in range(1, 4):
        assert_close(found["a"](rows).cpu(), rows.cpu() @ _inverse(M.cpu(), 0.1), 1e-12)
        assert (found["a"].state_dict()["inverse"] is None) == (use == 1)


def test_inverse_restores_before_and_after_the_switch():
    M, rows = _positive(5), torch.randn(3, 5, dtype=torch.float64)
    found, _ = damped_inverses({"a": M}, {"a": 0.1})
    for _ in range(3):
        restored = DampedInverse.from_state(found["a"].state_dict())
        assert torch.equal(found["a"](rows), restored(rows))
        assert equal(found["a"].state_dict(), restored.state_dict())


@pytest.mark.parametrize("d", [2, 600])
def test_matrix_that_is_not_positive_definite_is_retried_and_reported(d):
    bad = torch.diag(torch.tensor([1.0] * (d - 1) + [-1e-9], dtype=torch.float64))
    found, retried = damped_inverses({"good": _positive(2), "bad": bad}, {"good": 1e-3, "bad": 1e-12})
    assert retried == ["bad"]
    result = found["bad"](torch.eye(d, dtype=torch.float64))
    assert torch.isfinite(result).all()
    # 1e-12 is raised tenfold until the last pivot, -1e-9, is positive: that is at 1e-8.
    wanted = torch.diag(1 / (bad.diagonal() + 1e-8))
    assert_close(result, wanted, 1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_hopeless_matrix_is_one_error_that_names_the_layer(value):
    matrix = torch.full((600, 600), value, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="'fc1'"):
        damped_inverses({"fc1": matrix}, {"fc1": 1.0})


def test_pi_balances_the_mean_eigenvalues():
    A, B = _positive(5) * 7, _positive(3)
    pi = pi_correction(A.trace(), 5, B.trace(), 3)
    assert_close(pi**2, torch.linalg.eigvalsh(A).mean() / torch.linalg.eigvalsh(B).mean(), 1e-12)


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_pi_is_one_where_a_trace_vanishes(a, b):
    assert float(pi_correction(torch.tensor(a), 2, torch.tensor(b), 3)) == 1.0


def test_eigenbasis_rebuilds_the_matrix_and_has_no_negative_eigenvalue():
    M = _positive(6, rank=2)
    values, vectors = eigenbasis(M)
    assert (values >= 0).all()
    assert_close(vectors * values @ vectors.T, M, 1e-13)


def _system(d):
    M = _positive(d) + 0.1 * torch.eye(d, dtype=torch.float64)
    return M, torch.randn(d, dtype=torch.float64)


@pytest.mark.parametrize("raises", [False, True])
def test_an_eigenbasis_that_float32_does_not_find_is_found_in_double_precision(monkeypatch, raises):
    """As LAPACK has answered for singular matrices; what is not finite itself stays an error."""
    A = torch.randn(6, 3)
    M, own = A @ A.T, torch.linalg.eigh

    def eigh(matrix):
        if matrix.dtype == torch.float64:
            return own(matrix)
        if raises:
            raise torch.linalg.LinAlgError("it failed to converge")
        return torch.full((6,), torch.nan), torch.full((6, 6), torch.nan)

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    values, vectors = eigenbasis(M)
    assert values.dtype == vectors.dtype == torch.float32
    torch.testing.assert_close(vectors @ values.diag() @ vectors.T, M, rtol=1e-5, atol=1e-5)
    with pytest.raises(torch.linalg.LinAlgError):
        eigenbasis(M * torch.nan)


@pytest.mark.parametrize("d", [1, 2, 30])
@pytest.mark.parametrize("started", [False, True])
def test_conjugate_gradient_solves(d, started):
    M, b = _system(d)
    start = torch.randn(d, dtype=torch.float64) if started else None
    before = None if start is None else start.clone()
    x, iterations = conjugate_gradient(lambda p: M @ p, b, start, 1e-13, 1000)
    assert_close(x, torch.linalg.solve(M, b), 1e-11)
    assert 0 < iterations < 1000
    assert before is None or torch.equal(start, before)


def test_conjugate_gradient_ends_after_as_many_iterations_as_there_are_eigenvalues():
    Q, _ = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))
    M = Q * torch.tensor([1.0, 2.0, 5.0, 9.0], dtype=torch.float64).repeat(5) @ Q.T
    b = torch.randn(20, dtype=torch.float64)
    x, iterations = conjugate_gradient(lambda p: M @ p, b, None, 1e-10, 100)
    assert iterations == 4
    assert_close(x, torch.linalg.solve(M, b), 1e-9)


@pytest.mark.parametrize("tolerance", [0.5, 1e-3, 1e-9])
def test_conjugate_gradient_leaves_the_residual_that_was_asked_for(tolerance):
    M, b = _system(40)
    x, iterations = conjugate_gradient(lambda p: M @ p, b, None, tolerance, 1000)
    assert (b - M @ x).norm() <= tolerance * b.norm() * (1 + 1e-9)
    earlier, _ = conjugate_gradient(lambda p: M @ p, b, None, tolerance, iterations - 1)
    assert (b - M @ earlier).norm() > tolerance * b.norm()


def test_conjugate_gradient_has_nothing_to_do_for_no_right_side_or_at_the_solution():
    M, b = _system(5)
    for side, start in ((torch.zeros_like(b), None), (M @ b, b)):
        x, iterations = conjugate_gradient(lambda p: M @ p, side, start, 1e-6, 10)
        assert iterations == 0
        assert torch.equal(x, torch.zeros_like(b) if start is None else b)


def test_conjugate_gradient_stops_at_what_is_not_a_number():
    _, iterations = conjugate_gradient(lambda p: p * float("nan"), torch.ones(3), None, 1e-6, 100)
    assert iterations <= 1
