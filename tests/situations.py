"""Dense definitions of methods that depend on more than A, B, G and lambda: on rows, on the basis, on the past."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tests import dense
from tests.preconditioners import botev


@dataclass(frozen=True)
class Past:
    """What came before a direction.

    ``averaged``: (weight, batch, its vectors) of every batch in the factors; ``last``: the (batch,
    vectors) observed last; ``applied``: the batches preconditioned since the last refresh, own batch last; ``events``:
    all that has happened, in order, as (verb, batch): observe, refresh (of None) or apply.
    """

    averaged: list[tuple[float, Any, Tensor]]
    last: tuple[Any, Tensor]
    applied: list[Any]
    events: list[tuple[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Situation:
    """One layer of one batch ``p``, whose direction ``method`` gave."""

    method: Any
    p: Any
    name: str
    past: Past
    damping: float

    @property
    def layer(self) -> nn.Module:
        return self.p.layers[self.name]

    @cached_property
    def factors(self) -> tuple[Tensor, Tensor]:
        """(A, B), averaged as the past says."""
        pairs = [(w, dense.factors(b.model, self.layer, b.x, vectors)) for w, b, vectors in self.past.averaged]
        return tuple(sum(w * factors[i] for w, factors in pairs) for i in (0, 1))

    def gradient(self, p: Any = None) -> Tensor:
        """G of a batch, by default its own."""
        p = p or self.p
        return dense.gradient(p.model, self.layer, p.likelihood.loss(p.model(p.x), p.y))

    def basis(self) -> tuple[Tensor, Tensor, Tensor]:
        """(U, s_B, s_A): the method's own eigenvectors, which must be such, in one matrix; dense eigenvalues.

        Its own, because eigenvectors are not unique where eigenvalues repeat, as they do at 0.
        """
        own, eigenvalues = self.method.bases[self.name], []
        for U, M in ((own.U_B, self.factors[1]), (own.U_A, self.factors[0])):
            torch.testing.assert_close(U.T @ U, torch.eye(len(U), dtype=U.dtype), rtol=0, atol=1e-12)
            rotated = U.T @ M @ U
            assert (rotated - rotated.diag().diag()).norm() <= 1e-12 * M.norm(), "no eigenbasis of the factor"
            eigenvalues.append(rotated.diag())
        return torch.kron(own.U_B.contiguous(), own.U_A.contiguous()), *eigenvalues


def true_vectors(p: Any) -> Tensor:
    """[1, N, C]: gradients of the per-sample losses with respect to the output."""
    leaf = p.model(p.x).detach().requires_grad_()
    return torch.autograd.grad(p.likelihood.loss(leaf, p.y).sum(), leaf)[0][None]


def scales(s: Situation, U: Tensor) -> Tensor:
    """diag(U' F U), F the Fisher of the batch on which the scales were to be measured."""
    batch, vectors = (s.p, true_vectors(s.p)) if s.method.fisher == "empirical" else s.past.last
    F = dense.fisher_block(batch.model, s.layer, batch.x, vectors)
    return (U.T @ F @ U).diag()


def ekfac(s: Situation) -> Tensor:
    U, s_B, s_A = s.basis()
    shift = dense.ekfac_shift(s_A, s_B, s.damping, s.method.damping_init)
    return dense.in_basis(U, scales(s, U) + shift.reshape(-1), s.gradient())


def ekfac_ra(s: Situation) -> Tensor:
    U, s_B, s_A = s.basis()
    S, decay = torch.kron(s_B, s_A), s.method.scale_decay
    for p in s.past.applied:
        S = decay * S + (1 - decay) * len(p.x) * (U.T @ s.gradient(p).reshape(-1)) ** 2
    return dense.in_basis(U, S + s.damping, s.gradient())


def kfra(s: Situation) -> Tensor:
    """K-FAC's direction with B of the recursion, averaged as the past says."""
    A = s.factors[0]
    B = sum(w * botev.recursive_B(batch)[s.name] for w, batch, _ in s.past.averaged)
    return dense.kfac_heuristic(A, B, s.gradient(), s.damping)


def foof_centred(s: Situation) -> Tensor:
    """With a bias: lambda on all of A but the bias. Without one: G (Sigma + lambda I)^-1."""
    G = s.gradient()
    if getattr(s.layer, "bias", None) is not None:
        damping = s.damping * torch.ones(len(s.factors[0]), dtype=G.dtype)
        damping[-1] = 0
        M = s.factors[0] + damping.diag()
    else:
        M = dense.centred_factor(s.p.model, s.layer, [(w, b.x) for w, b, _ in s.past.averaged])
        M = M + s.damping * torch.eye(len(M), dtype=M.dtype)
    return dense.kron_solve(torch.eye(len(G), dtype=G.dtype), M, G)


def foof_per_sample(s: Situation) -> Tensor:
    return dense.foof_per_sample(s.p.model, s.layer, s.p.x, true_vectors(s.p)[0], s.damping)


def _gradient_factors(s: Situation) -> tuple[Tensor, Tensor]:
    """(L, R) as of the last refresh, by definition: weights of an average, or a sum, over all gradients before it."""
    seen: list[Tensor] = []
    for verb, batch in s.past.events:
        if verb == "observe":
            seen.append(s.gradient(batch))
        elif verb == "refresh":
            taken = list(seen)
    own = s.method.factors
    weights = [own.ema ** (len(taken) - 1 - i) if len(taken) > 1 else 1.0 for i in range(len(taken))]
    total = 1.0 if own.accumulate == "sum" else sum(weights)
    if own.accumulate == "sum":
        weights = [1.0] * len(taken)
    pairs = list(zip(weights, taken, strict=True))
    return sum(w * G @ G.T for w, G in pairs) / total, sum(w * G.T @ G for w, G in pairs) / total


def shampoo(s: Situation) -> Tensor:
    """The roots of ``(L + lambda I) (x) I`` and ``I (x) (R + lambda I)``, each of one dense matrix."""
    L, R = _gradient_factors(s)
    G, p, sides = s.gradient(), s.method.exponent, s.method.factors.sides
    solved = G.reshape(-1)
    if sides != "right":
        solved = dense.power(torch.kron(L, torch.eye(len(R), dtype=G.dtype)), s.damping, -p) @ solved
    if sides != "left":
        solved = dense.power(torch.kron(torch.eye(len(L), dtype=G.dtype), R), s.damping, -p) @ solved
    direction = solved.reshape(G.shape)
    if s.method.graft == "none":
        return direction
    length = G.norm()
    if s.method.graft == "adam":
        beta2, applied = s.method.V.decay, [s.gradient(p) for verb, p in s.past.events if verb == "apply"]
        V = sum((1 - beta2) * beta2 ** (len(applied) - 1 - i) * g**2 for i, g in enumerate(applied))
        length = (G / ((V / (1 - beta2 ** len(applied))).sqrt() + 1e-8)).norm()
    return direction / direction.norm() * length


def soap(s: Situation) -> Tensor:
    """Adam's step, epsilon lambda, in the columns of one dense orthogonal matrix; beta2 = 0, so of no past basis.

    The basis is the method's own, which must be one of L and R: at their eigenvalue 0 any other would be as good.
    """
    bases, G, factors = [], s.gradient(), s.method.factors
    for own, M, d, side in zip(
        (s.method.Q_L, s.method.Q_R), _gradient_factors(s), G.shape, ("left", "right"), strict=True
    ):
        assert (s.name in own) == (factors.sides in ("both", side) and d <= factors.max_dim), f"which sides, {side}"
        Q = own.get(s.name, torch.eye(d, dtype=G.dtype))
        torch.testing.assert_close(Q.T @ Q, torch.eye(d, dtype=G.dtype), rtol=0, atol=1e-12)
        if s.name in own and s.method.basis == "eigh":
            rotated = Q.T @ M @ Q
            assert (rotated - rotated.diag().diag()).norm() <= 1e-12 * M.norm(), "no eigenbasis of the factor"
            assert (rotated.diag().diff() <= 1e-12 * M.norm()).all(), "not from the largest on"
        bases.append(Q)
    U = torch.kron(bases[0].contiguous(), bases[1].contiguous())
    beta1, applied = s.method.M.decay, [s.gradient(p) for verb, p in s.past.events if verb == "apply"]
    assert s.method.V.decay == 0
    M = sum((1 - beta1) * beta1 ** (len(applied) - 1 - i) * g for i, g in enumerate(applied)) / (
        1 - beta1 ** len(applied)
    )
    rotated = (U.T @ G.reshape(-1)).abs()
    return (U @ ((U.T @ M.reshape(-1)) / (rotated + s.damping))).reshape(G.shape)


def muon(s: Situation) -> Tensor:
    """U V' of the momentum, or what five steps of the quintic make of its singular values."""
    beta, M = s.method.M.decay, 0
    for verb, batch in s.past.events:
        if verb == "observe":
            M = beta * M + (1 - beta) * s.gradient(batch)
    if s.method.nesterov:
        M = (1 - beta) * s.gradient() + beta * M
    U, values, Vh = torch.linalg.svd(M, full_matrices=False)
    # Those of directions that are not there stay 0 either way.
    there = (values > 1e-13 * values[0]).to(values.dtype)
    values = values / values.norm()
    for _ in range(5 if s.method.orthogonalise == "newton-schulz" else 0):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    values = values if s.method.orthogonalise == "newton-schulz" else there
    d_out, d_in = M.shape
    scale = {"original": max(1, d_out / d_in) ** 0.5, "match-rms-adamw": 0.2 * max(d_out, d_in) ** 0.5, "none": 1}
    return scale[s.method.muon_scale] * (U * values) @ Vh
