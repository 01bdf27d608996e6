"""The exact natural gradient of a sub-sampled Fisher, through its Gram matrix (Benzing 2022, appendix I).

``F = 1/D U' U`` has a row of U for each of M label vectors at D points, so that

    (F + lambda I)^-1 v = (v - U' (lambda D I + U U')^-1 U v) / lambda        (its eq 20)

needs one M x M system, which is solved in float64: in float32 ``lambda D I`` may vanish beside
``U U'``. The rows of U are never formed (``curvature/fisher_rows.py``); products with them keep the
model's precision. Where v lies in their span (same batch, all or true labels) the subtraction
leaves |F| / lambda times the rounding error of that precision: small lambda want float64 there.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from kfbench.curvature.approximations import SampleFisher
from kfbench.curvature.counts import LayerShape, cholesky
from kfbench.curvature.fisher_rows import NewestRows, as_gradients
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.linalg import DampedInverse, damped_inverses
from kfbench.curvature.statistics import Statistics
from kfbench.preconditioners.contract import FISHERS

# A Gram matrix of so many rows and its Cholesky factor take 1.6 GB.
MAX_ROWS = 10_000


class NaturalGradient:
    """Direction ``(F + lambda I)^-1 grad``, F from sampled labels, all labels (full) or the true ones (empirical).

    F is of the newest ``fisher_data`` points alone (no running average; default: as many as a
    batch), over the whole network or ``block_diagonal`` by layers. In order "independent" the
    points are the method's own, captured at the current weights right before the direction is
    needed; in order "same" they are the first ``fisher_data`` of the batch itself.

    Layers that are not captured keep their plain gradient and are not part of F.
    """

    orders = ("independent", "same")
    newest_only = True
    per_sample = True
    apply_remembers = False

    def __init__(self, fisher: str = "sampled", fisher_data: int | None = None, block_diagonal: bool = False) -> None:
        if fisher not in FISHERS:
            raise ValueError(f"fisher must be one of {', '.join(FISHERS)}, got {fisher!r}")
        if fisher_data is not None and fisher_data < 1:
            raise ValueError(f"fisher_data must be at least 1, got {fisher_data}")
        self.fisher, self.own_points = fisher, fisher_data
        self.newest = NewestRows(block_diagonal)
        # Of the last refresh, one for each diagonal block of F.
        self.inverses: dict[str, DampedInverse] = {}
        self.damping = 0.0
        self.damping_retries = 0

    def check(self, damping: float, points: int, vectors: int) -> None:
        """ValueError for no damping, and for more rows than a Gram matrix is made for."""
        if damping <= 0:
            raise ValueError(f"damping must be above 0 for the natural gradient, got {damping}")
        if (rows := points * vectors) > MAX_ROWS:
            memory = f"{16e-9 * rows**2:.1f} GB{' a layer' if self.newest.block_diagonal else ''}"
            raise ValueError(
                f"{points} points with {vectors} vectors each make {rows} rows, whose Gram matrix and factor take "
                f"{memory}; at most {MAX_ROWS} rows are accepted: use fewer fisher_data, or fisher 'sampled'"
            )

    def observe(self, statistics: Statistics) -> None:
        """Keep the rows of the newest points."""
        self.newest.observe(statistics, self.own_points)

    def refresh(self, damping: float) -> None:
        """Cholesky factor of ``lambda D I + U U'`` in every block; ValueError as ``check``."""
        rows = self.newest.refresh()
        # Whoever uses the method from Python has not asked ``check`` before.
        self.check(damping, rows.points, rows.count // rows.points)
        self.inverses = {}  # freed first, so that no two generations are held at once
        self.inverses, retried = damped_inverses(rows.grams(), dict.fromkeys(rows.blocks, damping * rows.points))
        self.damping = damping  # ``apply`` divides by that of the factors, whatever the next refresh takes
        self.damping_retries += len(retried)

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """Directions [d_out, d_in]."""
        rows = self.newest.rows
        return rows.remainder(gradients, self._solve_gram(rows.times(gradients)), 1 / self.damping)

    def solve(self, v: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``(F + lambda I)^-1 v`` for a vector given as one matrix [d_out, d_in] for every layer."""
        return self.apply(as_gradients(v))

    def quadratic_form(self, v: Mapping[str, Tensor]) -> Tensor:
        """``v' F v`` [], undamped (Benzing 2022, C.2)."""
        return self.newest.rows.quadratic_form(v)

    def sample_posterior(self, data_points: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """One exact draw from ``N(0, (n F + n lambda I)^-1)``, n = ``data_points``: theta minus its mean.

        That is the Laplace posterior under a prior of precision n lambda: for a precision tau,
        ``refresh(damping=tau / n)``. Source: Benzing 2022, C.1.1, eq 8-11, with n = D there and
        ``V = U' / sqrt(lambda D)`` here.
        """
        rows = self.newest.rows
        normal = {}
        for name, layer in rows.layers.items():
            like = layer.output_gradients
            normal[name] = torch.randn(*layer.shape, generator=generator, dtype=like.dtype, device=like.device)
        y = as_gradients(normal)
        disturbed = {}
        for block, Uy in rows.times(y).items():
            z = torch.randn(len(Uy), generator=generator, dtype=Uy.dtype, device=Uy.device)
            disturbed[block] = Uy + (self.damping * rows.points) ** 0.5 * z
        return rows.remainder(y, self._solve_gram(disturbed), (self.damping * data_points) ** -0.5)

    def _solve_gram(self, u: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``(lambda D I + U U')^-1 u`` of every block."""
        # An inverse acts on rows, here on a single one.
        return {block: self.inverses[block](u_block[None])[0] for block, u_block in u.items()}

    def approximation(self, layer: str) -> SampleFisher | None:
        """F of that layer on the points of the last refresh, exactly."""
        return SampleFisher.of(self.newest.rows.layers.get(layer))

    def multiply_adds_network(self, shapes: list[LayerShape], vectors: int, points: int) -> dict[str, float]:
        """The Gram matrix and its factor; ``U v``, the solve, and ``U' w`` beyond the gradient."""
        M = vectors * points
        blocks = len(shapes) if self.newest.block_diagonal else 1
        own = [shape.with_points(points) for shape in shapes]
        dots = sum(_dot_count(shape, mine, vectors) for shape, mine in zip(shapes, own, strict=True)) + blocks * M**2
        return {
            "statistics": 0.0,
            "refresh": sum(_gram_count(mine, vectors) for mine in own) + blocks * cholesky(M),
            "apply": dots + sum(mine.product for mine in own),
            # One product over the rows of both where they share their inputs.
            "apply to the same batch": dots + sum(mine.product for mine in own if mine.positions > 1),
        }

    def forget(self, names: Collection[str]) -> None:
        """Rows are of the whole network, so none holds any more."""
        self.newest.clear()
        self.inverses = {}

    def state_dict(self) -> dict[str, Any]:
        """Rows, factors and the damping in force."""
        return {
            "newest": self.newest.state_dict(),
            "inverses": {block: inverse.state_dict() for block, inverse in self.inverses.items()},
            "damping": self.damping,
            "damping_retries": self.damping_retries,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        self.newest.load_state_dict(state["newest"])
        self.inverses = {block: DampedInverse.from_state(s) for block, s in state["inverses"].items()}
        self.damping, self.damping_retries = state["damping"], state["damping_retries"]


def _gram_count(shape: LayerShape, vectors: int) -> float:
    """Products of pairs, counted whole, or each point's gradient and their products, whichever is chosen."""
    rows, d_out, d_in = shape.rows, shape.d_out, shape.d_in
    # The rule of ``LayerRows.add_gram``.
    if shape.positions**2 * (d_out + d_in) <= d_out * d_in:
        return float(rows**2 * (d_in + vectors**2 * d_out))
    M = vectors * rows // shape.positions
    return float((vectors * rows + M**2) * d_out * d_in)


def _dot_count(gradient: LayerShape, own: LayerShape, vectors: int) -> float:
    """``U v`` by the rows of v or by v as a matrix, whichever is less."""
    by_rows = gradient.rows * (vectors * own.d_out + own.d_in)
    return float(own.rows * min(by_rows, own.d_out * (own.d_in + vectors)))
