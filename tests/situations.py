"""Dense definitions of methods that depend on more than A, B, G and lambda: on rows, on the basis, on the past."""

from dataclasses import dataclass
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
    vectors) observed last; ``applied``: the batches preconditioned since the last refresh, own batch last.
    """

    averaged: list[tuple[float, Any, Tensor]]
    last: tuple[Any, Tensor]
    applied: list[Any]


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
