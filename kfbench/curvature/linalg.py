"""Linear algebra on plain tensors: damped inverses, pi, eigenbases. No layer, no model."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# A matrix with negative eigenvalues of rounding size can defeat Cholesky; each retry damps ten times more.
_RETRIES = 8

# An explicit inverse costs about as much as 2 d / R solves against R rows, but a matrix product runs
# faster than two triangular solves; it is formed once an inverse has been used this often.
_USES_BEFORE_INVERSE = 2


def pi_correction(trace_a: Tensor, d_in: int, trace_b: Tensor, d_out: int) -> Tensor:
    """pi = sqrt((tr A / d_in) / (tr B / d_out)), a scalar tensor; 1 where a trace is 0.

    Source: Martens & Grosse 2015, appendix E.3 (with norm = trace). Stays on its device.
    """
    ratio = (trace_a / d_in) / (trace_b / d_out)
    usable = (trace_a > 0) & (trace_b > 0)
    return torch.where(usable, ratio, torch.ones_like(ratio)).sqrt()


class DampedInverse:
    """``(M + lambda I)^-1`` of a symmetric positive semi-definite M, acting on rows.

    Holds the Cholesky factor at first; when it is used for the second time since it was made, the
    explicit inverse replaces it. So refreshing every update never pays for an inverse, and
    amortised use gets plain matrix products, without knowing the schedule.
    """

    def __init__(self, cholesky: Float[Tensor, "d d"] | None, inverse: Float[Tensor, "d d"] | None = None) -> None:
        self._cholesky, self._inverse = cholesky, inverse
        self._uses = 0

    def __call__(self, rows: Float[Tensor, "R d"]) -> Float[Tensor, "R d"]:
        """``rows (M + lambda I)^-1``."""
        self._uses += 1
        if self._cholesky is not None and self._uses >= _USES_BEFORE_INVERSE:
            self._inverse, self._cholesky = torch.cholesky_inverse(self._cholesky), None
        if self._inverse is not None:
            return rows @ self._inverse
        assert self._cholesky is not None
        return torch.cholesky_solve(rows.T, self._cholesky).T

    def state_dict(self) -> dict[str, Any]:
        """The matrix that is held, and how often it was used."""
        return {"cholesky": self._cholesky, "inverse": self._inverse, "uses": self._uses}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "DampedInverse":
        """Restore, bit for bit."""
        new = cls(state["cholesky"], state["inverse"])
        new._uses = state["uses"]
        return new


def damped_inverses(
    matrices: dict[str, Tensor], damping: dict[str, Tensor | float]
) -> tuple[dict[str, DampedInverse], list[str]]:
    """``(M + lambda I)^-1`` for each named M [d, d], and the names that needed more damping.

    Cholesky of all matrices first, then one look at all error flags: one synchronisation with the
    device in all. A matrix that is not positive definite in floating point is retried with ten
    times the damping, starting from rounding size; FloatingPointError names it if that never helps.
    """
    factors, flags = {}, []
    for name, matrix in matrices.items():
        factors[name], info = torch.linalg.cholesky_ex(_damped(matrix, damping[name]))
        flags.append(info)
    failed = []
    if flags:
        bad = torch.stack(flags).ne(0).tolist()
        failed = [name for name, is_bad in zip(matrices, bad, strict=True) if is_bad]
    for name in failed:
        factors[name] = _cholesky_with_retries(name, matrices[name], float(damping[name]))
    return {name: DampedInverse(factor) for name, factor in factors.items()}, failed


def _damped(matrix: Tensor, damping: Tensor | float) -> Tensor:
    damped = matrix.clone()
    damped.diagonal().add_(damping)
    return damped


def _cholesky_with_retries(name: str, matrix: Tensor, damping: float) -> Tensor:
    scale = float(matrix.diagonal().abs().mean())
    extra = max(damping, torch.finfo(matrix.dtype).eps * scale)
    if math.isfinite(extra):
        for _ in range(_RETRIES):
            extra *= 10
            factor, info = torch.linalg.cholesky_ex(_damped(matrix, extra))
            if int(info) == 0:
                return factor
    raise FloatingPointError(f"the factor of layer {name!r} is not positive definite even with damping {extra:.3g}")


def eigenbasis(matrix: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """Eigenvalues, ascending and clamped at 0, and eigenvectors in columns, of a symmetric M."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.clamp_(min=0), vectors
