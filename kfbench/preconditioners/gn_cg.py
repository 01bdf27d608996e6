"""The Gauss-Newton direction by conjugate gradient: the exact reference that needs no M x M system.

With a likelihood whose output Fisher is its output Hessian (categorical, Bernoulli and Gaussian are
such), the Gauss-Newton matrix G is the Fisher of all labels, ``G = F = 1/N U' U``, whose products
follow from captured rows without another pass through the model: ``G v = 1/N U' (U v)`` costs
2 N d^2 a layer, and 2 K N d more for K outputs. Source: Martens 2010, Deep learning via
Hessian-free optimization, section 4 (there by R-operators); Martens & Grosse 2015, section 1.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from kfbench.curvature.approximations import SampleFisher
from kfbench.curvature.fisher_rows import NewestRows
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.linalg import conjugate_gradient
from kfbench.curvature.statistics import Statistics


class GaussNewtonCG:
    """Direction ``(G + lambda I)^-1 grad`` up to a residual of ``tolerance`` times the gradient's norm.

    G is of the whole network or ``block_diagonal`` by layers, of the newest observed batch. With
    ``warm_start`` an iteration begins at the last direction. ``max_iterations`` bounds each solve,
    which then ends unconverged. Keeps the batch's rows: N d_in + K N d_out numbers a layer.
    """

    fisher = "full"
    orders = ("same",)
    newest_only = True
    per_sample = True

    def __init__(
        self,
        block_diagonal: bool = False,
        tolerance: float = 1e-3,
        max_iterations: int = 100,
        warm_start: bool = True,
    ) -> None:
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance must be between 0 and 1, got {tolerance}")
        if max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
        self.tolerance, self.max_iterations, self.warm_start = tolerance, max_iterations, warm_start
        # Each solve then begins where the last one ended, so none may be left out.
        self.apply_remembers = warm_start
        self.newest = NewestRows(block_diagonal)
        self.damping = 0.0
        # Of the last solve in each block.
        self.solutions: dict[str, Tensor] = {}
        self.iterations: dict[str, int] = {}

    def check(self, damping: float, points: int, vectors: int) -> None:
        """ValueError for no damping: G alone is singular."""
        if damping <= 0:
            raise ValueError(f"damping must be above 0 for Gauss-Newton, got {damping}")

    def observe(self, statistics: Statistics) -> None:
        """Keep the rows of the newest batch."""
        self.newest.observe(statistics)

    def refresh(self, damping: float) -> None:
        """Nothing is factorised; what is solved with changes here. ValueError as ``check``."""
        rows = self.newest.refresh()
        # Whoever uses the method from Python has not asked ``check`` before.
        self.check(damping, rows.points, rows.count // rows.points)
        self.damping = damping

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """Directions [d_out, d_in]."""
        directions: dict[str, Tensor] = {}
        for block, names in self.newest.rows.blocks.items():
            directions |= self._solve(block, {name: gradients[name].dense() for name in names})
        return directions

    def _solve(self, block: str, G: dict[str, Tensor]) -> dict[str, Tensor]:
        rows = self.newest.rows.part(block)

        def damped(p: Tensor) -> Tensor:
            return _flat(rows.fisher_product(_split(p, G))).add_(p, alpha=self.damping)

        start = self.solutions.get(block)
        x, self.iterations[block] = conjugate_gradient(damped, _flat(G), start, self.tolerance, self.max_iterations)
        if not bool(torch.isfinite(x).all()):  # of a corrupt batch: later solves must not begin there
            self.solutions.pop(block, None)
        elif self.warm_start:
            self.solutions[block] = x.clone()  # what is returned may be changed by the optimizer
        return _split(x, G)

    def approximation(self, layer: str) -> SampleFisher | None:
        """G of that layer on the points of the last refresh, exactly."""
        return SampleFisher.of(self.newest.rows.layers.get(layer))

    def forget(self, names: Collection[str]) -> None:
        """Rows are of the whole network, so none holds any more; the next solve begins at 0."""
        self.newest.clear()
        self.solutions = {}

    def state_dict(self) -> dict[str, Any]:
        """Rows, the damping in force, and where the next solves begin."""
        state = {"damping": self.damping, "solutions": self.solutions, "iterations": self.iterations}
        return state | {"newest": self.newest.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        self.newest.load_state_dict(state["newest"])
        self.damping, self.solutions = state["damping"], dict(state["solutions"])
        self.iterations = dict(state["iterations"])


def _flat(matrices: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([matrix.flatten() for matrix in matrices.values()])


def _split(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of a vector in the shapes of ``like``."""
    parts = vector.split([matrix.numel() for matrix in like.values()])
    return {name: part.view_as(matrix) for part, (name, matrix) in zip(parts, like.items(), strict=True)}
