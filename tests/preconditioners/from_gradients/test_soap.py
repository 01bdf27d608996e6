"""SOAP beside another implementation, its past of second moments held by loops, and its bases."""

import pytest
import pytorch_optimizer
import torch

from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.linalg import power_step
from kfbench.preconditioners.from_gradients.soap import SOAP
from tests.preconditioners.from_gradients.trajectories import LR, check_trajectory
from tests.properties import assert_close

SETTINGS = {"order": "independent", "warm_up": True}


def _theirs(T: int, max_dim: int = 10_000, eps: float = 1e-30):
    return lambda parameters: pytorch_optimizer.SOAP(
        parameters,
        lr=LR,
        betas=(0.9, 0.8),
        shampoo_beta=0.7,
        weight_decay=0.0,
        precondition_frequency=T,
        max_precondition_dim=max_dim,
        eps=eps,
    )


def _ours(**options):
    return SOAP(ema=0.7, beta1=0.9, beta2=0.8, **options)


@pytest.mark.parametrize("T", [1, 3, 10])
def test_a_trajectory_is_that_of_pytorch_optimizer(T, monkeypatch):
    """Theirs takes the QR decomposition in float32 even of float64: in float64, as here, the weights are ours.

    Square layers and a squared loss, so that no direction of a basis is one of no gradient: there both divide rounding
    by rounding.
    """
    monkeypatch.setattr(torch, "float32", torch.float64)
    check_trajectory(_ours(), _theirs(T), damping=1e-30, T=T, tolerance=1e-9, **SETTINGS)


def test_their_decomposition_in_float32_is_seen():
    """Their basis is then orthogonal to 1e-7 alone."""
    with pytest.raises(AssertionError, match="relative error"):
        check_trajectory(_ours(), _theirs(1), damping=1e-30, T=1, tolerance=1e-9, **SETTINGS)
    check_trajectory(_ours(), _theirs(1), damping=1e-30, T=1, tolerance=1e-4, **SETTINGS)


def test_one_side_is_theirs_where_the_other_is_too_wide(monkeypatch):
    monkeypatch.setattr(torch, "float32", torch.float64)
    widths = (9, 4, 4, 4)
    check_trajectory(_ours(max_dim=4), _theirs(2, max_dim=4), widths, damping=1e-30, T=2, tolerance=1e-9, **SETTINGS)


def _gradients(count: int, d_out: int = 4, d_in: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    return [torch.randn(d_out, d_in, dtype=torch.float64, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("basis", ["power", "eigh"])
def test_directions_over_many_refreshes_equal_algorithm_3_by_loops(basis):
    """Entry by entry, from one dense orthogonal matrix; V goes with the columns that are sorted, and with no others."""
    method, damping, (beta1, beta2, ema) = _ours(basis=basis), 0.01, (0.9, 0.8, 0.7)
    gradients = _gradients(20)
    for G in gradients[:8]:  # until no eigenvalue is 0
        method.observe({"": LayerGradient.from_dense(G, 3)})
    method.refresh(damping)
    weights = [ema**i for i in range(8)][::-1]
    L = sum(w * G @ G.T for w, G in zip(weights, gradients[:8], strict=True)) / sum(weights)
    R = sum(w * G.T @ G for w, G in zip(weights, gradients[:8], strict=True)) / sum(weights)
    total = sum(weights) * (1 - ema)
    Q_L, Q_R = (torch.linalg.eigh(M)[1].flip(1) for M in (L, R))
    V, M = torch.zeros(4, 5, dtype=torch.float64), torch.zeros(4, 5, dtype=torch.float64)
    for t, G in enumerate(gradients[8:], start=1):
        U = torch.kron(Q_L.contiguous(), Q_R.contiguous())
        rotated = (U.T @ G.reshape(-1)).reshape(4, 5)
        M = beta1 * M + (1 - beta1) * G
        for i in range(4):
            for j in range(5):
                V[i, j] = beta2 * V[i, j] + (1 - beta2) * rotated[i, j] ** 2
        moved = (U.T @ M.reshape(-1)).reshape(4, 5) / (1 - beta1**t)
        step = moved / ((V / (1 - beta2**t)).sqrt() + damping)
        wanted = (U @ step.reshape(-1)).reshape(4, 5)
        got = method.apply({"": LayerGradient.from_dense(G, 3)})[""]
        assert_close(got, wanted, 1e-9, f"update {t}, {basis}")
        method.observe({"": LayerGradient.from_dense(G, 3)})
        old, total = total, ema * total + 1 - ema
        L = (ema * old * L + (1 - ema) * G @ G.T) / total
        R = (ema * old * R + (1 - ema) * G.T @ G) / total
        if t % 2 == 0:
            method.refresh(damping)
            if basis == "eigh":
                Q_L, Q_R = (torch.linalg.eigh(M_)[1].flip(1) for M_ in (L, R))
                continue
            rows = sorted(range(4), key=lambda i: -float(Q_L[:, i] @ L @ Q_L[:, i]))
            columns = sorted(range(5), key=lambda j: -float(Q_R[:, j] @ R @ Q_R[:, j]))
            V = V[rows][:, columns].clone()
            Q_L, Q_R = _gram_schmidt(L @ Q_L[:, rows]), _gram_schmidt(R @ Q_R[:, columns])


def _gram_schmidt(columns: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns, one after another; their signs are of no matter."""
    done: list[torch.Tensor] = []
    for column in columns.T:
        for _ in range(2):
            for q in done:
                column = column - (q @ column) * q
        done.append(column / column.norm())
    return torch.stack(done, dim=1)


def test_power_iteration_ends_at_the_eigenvectors():
    G = torch.cat(_gradients(3, 5, 6), dim=1)
    M = G @ G.T
    Q = torch.linalg.qr(_gradients(1, 5, 5)[0])[0]
    for _ in range(400):
        Q, _ = power_step(M, Q)
    exact = torch.linalg.eigh(M)[1].flip(1)
    assert_close((Q.T @ exact).abs(), torch.eye(5, dtype=M.dtype), 1e-8)


def test_a_gradient_that_is_not_finite_leaves_no_trace_in_the_moments():
    """It shows in its own direction; the next one is as if it had not been."""
    with_it, without = _ours(), _ours()
    first, second, third = ({"": LayerGradient.from_dense(G, 1)} for G in _gradients(3))
    for method in (with_it, without):
        method.observe(first)
        method.refresh(0.01)
        method.apply(second)
    bad = {"": LayerGradient.from_dense(torch.full((4, 5), torch.inf, dtype=torch.float64), 1)}
    assert not torch.isfinite(with_it.apply(bad)[""]).any()
    assert torch.equal(with_it.apply(third)[""], without.apply(third)[""])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"beta1": 1.0}, r"beta1 must be in \[0, 1\), got 1.0"),
        ({"beta2": -0.1}, r"beta2 must be in \[0, 1\), got -0.1"),
        ({"basis": "svd"}, "basis must be one of power, eigh, got 'svd'"),
        ({"max_dim": 0}, "max_dim must be at least 1, got 0"),
    ],
)
def test_options_out_of_range(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        SOAP(**options)
