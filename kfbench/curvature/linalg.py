"""Linear algebra on plain tensors: damped inverses, pi, eigenbases, conjugate gradient. No layer, no model."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kfbench.layers.outer_products import SMALL_BLOCK, add_outer_products_below

# A matrix with negative eigenvalues of rounding size can defeat Cholesky; each retry damps ten times more.
_RETRIES = 8

# One product with an explicit inverse beats two triangular solves: by far on an accelerator, by a fifth to a half on a
# CPU, where forming it costs what 8 to 23 uses save. The schedule is not known here, so it is formed when so much has
# been lost: whatever comes, no more than twice of what was best.
USES_BEFORE_INVERSE = {"cpu": 16}
_USES_ELSEWHERE = 2

# Below this width LAPACK's own Cholesky is as fast as one made of larger products.
_BLOCKED_CHOLESKY = 512


def pi_correction(trace_a: Tensor, d_in: int, trace_b: Tensor, d_out: int) -> Tensor:
    """pi = sqrt((tr A / d_in) / (tr B / d_out)), a scalar tensor; 1 where a trace is 0.

    Source: Martens & Grosse 2015, appendix E.3 (with norm = trace). Stays on its device.
    """
    ratio = (trace_a / d_in) / (trace_b / d_out)
    usable = (trace_a > 0) & (trace_b > 0)
    # No branch in Python, which would synchronise; where a trace is 0 the ratio is infinite or no number.
    return torch.where(usable, ratio, torch.ones_like(ratio)).sqrt()


def factored_damping(damping: float, trace_a: Tensor, d_in: int, trace_b: Tensor, d_out: int) -> tuple[Tensor, Tensor]:
    """(lambda_A, lambda_B), scalar tensors: lambda_A lambda_B = lambda, lambda_A / lambda_B = pi^2.

    Source: Martens & Grosse 2015, appendix E.3; lambda is the square of their gamma.
    """
    pi = pi_correction(trace_a, d_in, trace_b, d_out)
    return pi * damping**0.5, damping**0.5 / pi


class DampedInverse:
    """``(M + lambda I)^-1`` of a symmetric positive semi-definite M, acting on rows.

    Holds the lower Cholesky factor L (what stands above its diagonal is never read), or, after some
    uses, the explicit inverse. So refreshing every update never pays for an inverse, and the method
    need not know its schedule.
    """

    def __init__(self, cholesky: Float[Tensor, "d d"] | None, inverse: Float[Tensor, "d d"] | None = None) -> None:
        self._cholesky, self._inverse = cholesky, inverse
        self._uses = 0

    def __call__(self, rows: Float[Tensor, "R d"]) -> Float[Tensor, "R d"]:
        """``rows (M + lambda I)^-1``."""
        self._uses += 1
        L = self._cholesky
        if L is not None and self._uses >= USES_BEFORE_INVERSE.get(L.device.type, _USES_ELSEWHERE):
            self._inverse, self._cholesky = torch.cholesky_inverse(L), None
        if self._inverse is not None:
            return rows @ self._inverse
        return self.rest(self.halfway(rows))  # (L L')^-1 = L'^-1 L^-1: L' comes first

    @property
    def factor(self) -> Float[Tensor, "d d"]:
        """L, while it is held."""
        assert self._cholesky is not None
        return self._cholesky

    def halfway(self, rows: Float[Tensor, "R d"]) -> Float[Tensor, "R d"]:
        """``rows L'^-1``, while L is held: in the refresh that made it."""
        return torch.linalg.solve_triangular(self.factor.T, rows, upper=True, left=False)

    def rest(self, rows: Float[Tensor, "R d"]) -> Float[Tensor, "R d"]:
        """``rows L^-1``, likewise."""
        return torch.linalg.solve_triangular(self.factor, rows, upper=False, left=False)

    def state_dict(self) -> dict[str, Any]:
        """The matrix that is held, and how often it was used."""
        return {"cholesky": self._cholesky, "inverse": self._inverse, "uses": self._uses}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "DampedInverse":
        """Restore, bit for bit."""
        new = cls(state["cholesky"], state["inverse"])
        new._uses = state["uses"]
        return new


class DiagonalInverse:
    """``(M + lambda I)^-1`` of a diagonal M, acting on rows: every column is scaled."""

    def __init__(self, diagonal: Float[Tensor, "d"]) -> None:
        self._diagonal = diagonal

    @classmethod
    def of(cls, values: Float[Tensor, "d"], damping: Tensor | float) -> "DiagonalInverse":
        """Of M's diagonal. Where an entry and lambda are both 0, ten times rounding size damps, as a retry's would."""
        damped = values + damping
        least = 10 * torch.finfo(values.dtype).eps * values.mean()
        return cls(torch.where(damped > 0, damped, least).reciprocal())

    def __call__(self, rows: Float[Tensor, "R d"]) -> Float[Tensor, "R d"]:
        """``rows (M + lambda I)^-1``."""
        return rows * self._diagonal

    def state_dict(self) -> dict[str, Any]:
        """The inverse's diagonal."""
        return {"diagonal": self._diagonal}


def damped_inverses(
    matrices: Mapping[str, Tensor], damping: Mapping[str, Tensor | float]
) -> tuple[dict[str, DampedInverse], list[str]]:
    """``(M + lambda I)^-1`` for each named M [d, d], and the names that needed more damping.

    Cholesky of all matrices first, then one look at all error flags: one synchronisation with the
    device in all. A matrix that is not positive definite in floating point is retried with ten
    times the damping, starting from rounding size; FloatingPointError names it if that never helps.
    """
    factors, flags = {}, []
    for name, matrix in matrices.items():
        factors[name], flag = _cholesky(_damped(matrix, damping[name]))
        flags.append(flag)
    failed = []
    if flags:
        bad = torch.stack(flags).tolist()
        failed = [name for name, is_bad in zip(matrices, bad, strict=True) if is_bad]
    for name in failed:
        # From the matrix itself: the failed factorisation has overwritten its damped copy.
        factors[name] = _cholesky_with_retries(name, matrices[name], float(damping[name]))
    return {name: DampedInverse(factor) for name, factor in factors.items()}, failed


def _damped(matrix: Tensor, damping: Tensor | float) -> Tensor:
    # A copy: averages go on undamped.
    damped = matrix.clone()
    damped.diagonal().add_(damping)
    return damped


def _cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(L in its lower triangle, whether it failed); overwrites ``matrix``."""
    if matrix.device.type != "cpu" or len(matrix) < _BLOCKED_CHOLESKY:
        factor, info = torch.linalg.cholesky_ex(matrix)
        return factor, info.ne(0)
    flags: list[Tensor] = []
    _blocked_cholesky(matrix, flags)
    return matrix, torch.stack(flags).any()


def _blocked_cholesky(M: Tensor, flags: list[Tensor]) -> None:
    """In place, by halves: ``M11 = L11 L11'``, ``L21 = M21 L11^-T``, then M22 - L21 L21'."""
    if len(M) <= SMALL_BLOCK:
        # Raises nothing; a failed block is carried on with, and its flag is looked at with all others.
        factor, info = torch.linalg.cholesky_ex(M)
        M.copy_(factor)
        flags.append(info.ne(0))
        return
    half = len(M) // 2
    upper_left, lower_left, lower_right = M[:half, :half], M[half:, :half], M[half:, half:]
    _blocked_cholesky(upper_left, flags)
    lower_left.copy_(torch.linalg.solve_triangular(upper_left.T, lower_left, upper=True, left=False))
    add_outer_products_below(lower_right, lower_left.T, keep=1.0, scale=-1.0)
    _blocked_cholesky(lower_right, flags)


def _cholesky_with_retries(name: str, matrix: Tensor, damping: float) -> Tensor:
    scale = float(matrix.diagonal().abs().mean())
    # Without any damping ten times as much would be none.
    extra = max(damping, torch.finfo(matrix.dtype).eps * scale)
    # No damping would help these.
    if not (math.isfinite(scale) and math.isfinite(extra)):
        raise FloatingPointError(f"the factor of layer {name!r} has values that are not finite")
    for _ in range(_RETRIES):
        extra *= 10
        factor, failed = _cholesky(_damped(matrix, extra))
        if not bool(failed):
            return factor
    raise FloatingPointError(f"the factor of layer {name!r} is not positive definite even with damping {extra:.3g}")


def eigenbasis(matrix: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """Eigenvalues, ascending and clamped at 0, and eigenvectors in columns, of a symmetric M."""
    try:
        values, vectors = torch.linalg.eigh(matrix)
        # Read on a CPU alone, where it waits for nothing.
        solved = matrix.device.type != "cpu" or bool(values.isfinite().all())
    except torch.linalg.LinAlgError:
        solved = False
    # In float32 MKL gives up on some singular matrices, of layers that are fed with constant pixels, or answers with no
    # number; what is not finite itself it refuses in any precision.
    if not solved:
        values, vectors = (part.to(matrix.dtype) for part in torch.linalg.eigh(matrix.double()))
    # Negative only by rounding, of a matrix that is positive semi-definite.
    return values.clamp_(min=0), vectors


def damped_power(matrix: Float[Tensor, "d d"], damping: float, power: float) -> Float[Tensor, "d d"]:
    """``(M + lambda I)^power`` of a symmetric positive semi-definite M.

    Eigenvalues below rounding count as rounding, so that a singular M has roots without any damping; zero gives zeros.
    """
    values, vectors = eigenbasis(matrix)
    known = torch.finfo(matrix.dtype)
    floor = (values[-1] * known.eps).clamp(min=known.tiny)
    return (vectors * (torch.maximum(values, floor) + damping).pow(power)) @ vectors.T


def descending_eigenbasis(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Eigenvectors in columns, of the largest eigenvalue first."""
    return eigenbasis(matrix)[1].flip(1)


def power_step(matrix: Float[Tensor, "d d"], Q: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d d"], Tensor]:
    """One step of power iteration from orthonormal columns Q, and from which place each column has come.

    The columns are sorted by ``diag(Q' M Q)``, largest first; then Q of the QR decomposition of M Q (Vyas et al. 2024,
    Algorithm 4).
    """
    moved = matrix @ Q
    places = (Q * moved).sum(0).argsort(descending=True)
    return torch.linalg.qr(moved.index_select(1, places))[0], places


def damping_below_rounding(damping: float, largest: Mapping[str, Tensor]) -> tuple[str, float] | None:
    """The layer whose eigenvalues, the ``largest`` [] of each, are known least well, and to what; None if all better.

    An eigendecomposition errs by about the largest eigenvalue times the precision: what is divided by less than that
    is noise. One synchronisation with the device.
    """
    if not largest:
        return None
    values = torch.stack([value.detach().double() for value in largest.values()])
    eps = torch.finfo(next(iter(largest.values())).dtype).eps
    place = int(values.argmax())
    resolved = eps * float(values[place])
    return None if damping >= resolved else (list(largest)[place], resolved)


def warn_of_small_damping(damping: float, largest: Mapping[str, Tensor]) -> bool:
    """Warn where ``damping_below_rounding`` finds a layer; returns whether it did."""
    below = damping_below_rounding(damping, largest)
    if below is not None:
        name, resolved = below
        dtype = str(next(iter(largest.values())).dtype).removeprefix("torch.")
        warnings.warn(
            f"damping {damping:g} is below what {dtype} resolves of the curvature of layer {name!r}, so directions are "
            f"partly noise; use a damping of at least {resolved:.1g}, or --dtype float64 (said once)",
            stacklevel=5,
        )
    return below is not None


def conjugate_gradient(
    product: Callable[[Tensor], Tensor],
    b: Float[Tensor, "d"],
    start: Float[Tensor, "d"] | None,
    tolerance: float,
    max_iterations: int,
) -> tuple[Float[Tensor, "d"], int]:
    """x with ``|b - M x| <= tolerance |b|``, and the iterations it took; M symmetric positive definite.

    ``product(p)`` is M p; without ``start`` it begins at 0. It ends unconverged after
    ``max_iterations``. The test of the residual synchronises with the device once an iteration.
    Source: Hestenes & Stiefel 1952, section 3.
    """
    # Copies, since x, r and p are updated in place.
    x = torch.zeros_like(b) if start is None else start.clone()
    r = b.clone() if start is None else b - product(x)
    p = r.clone()
    rr, limit = r @ r, tolerance**2 * (b @ b)
    for iteration in range(max_iterations):
        if not bool(rr > limit):
            # Where the residual is no number the start is no solution: adding 0 rr says so.
            return x.add_(0 * rr), iteration
        Mp = product(p)
        alpha = rr / (p @ Mp)
        x.addcmul_(p, alpha)
        r.addcmul_(Mp, -alpha)
        old, rr = rr, r @ r
        p.mul_(rr / old).add_(r)
    return x, max_iterations
