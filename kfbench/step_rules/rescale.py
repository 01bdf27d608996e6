"""The step that minimises the quadratic model of the exact Fisher, alone or with the last step (Martens & Grosse 2015).

A method's direction d is only proposed: with the gradient g of the mini-batch (of ``eta / 2 |theta|^2`` too) and
``C = F + (lambda + eta) I``, F the exact Fisher of the mini-batch,

- rescale: ``delta = -alpha d``, ``alpha = g'd / d'C d`` (their E.4);
- rescale-momentum: ``delta = -(alpha d + mu e)``, e minus the step before, with alpha and mu that minimise
  ``M(delta) = 1/2 delta'C delta + g'delta`` (their F): what conjugate gradient would do, were M to stay the same.

There ``M(delta) = 1/2 g'delta``. Only products of J v with the Fisher of the output are needed (their J).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kfbench.curvature import counts
from kfbench.curvature.counts import LayerShape
from kfbench.step_rules.contract import NoRule, Proposed, Taken, Vector
from kfbench.step_rules.greedy_gamma import GreedyGamma
from kfbench.step_rules.levenberg_marquardt import LevenbergMarquardt

# Where the two vectors are parallel up to so many roundings their 2 x 2 system says nothing of mu.
_ROUNDINGS = 100


class Rescaling(NoRule):
    """Steps along what minimises the quadratic model; lambda and the method's damping may follow.

    ``model_damping`` is lambda, ``l2`` eta. With ``lambda_rule`` lambda moves, and the method's damping in proportion
    to lambda + eta unless it has a rule of its own, ``gamma_rule``.
    """

    columns: tuple[str, ...] = ("alpha", "mu", "model_damping", "reduction_ratio")
    looks_at_batch = True

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        momentum: bool,
        model_damping: float,
        l2: float = 0.0,
        lambda_rule: LevenbergMarquardt | None = None,
        gamma_rule: GreedyGamma | None = None,
    ) -> None:
        self.parameters, self.momentum, self.l2 = list(parameters), momentum, l2
        self.model_damping, self.lambda_rule, self.gamma_rule = model_damping, lambda_rule, gamma_rule
        self._last: Vector | None = None  # minus the last step
        self._factors: tuple[Tensor, Tensor] | None = None  # alpha, mu
        self._predicted: Tensor | None = None  # M(delta) of the step that is being taken
        self._ratio: float | None = None

    def redirect(self, proposed: Proposed) -> Vector:
        """``alpha d + mu e``: the optimizer, whose learning rate is 1, steps against it."""
        last = self._last_along(proposed)
        self._factors, self._predicted = self._minimum(proposed, last)
        alpha, mu = self._factors
        step = {
            parameter: _combined(alpha, direction, mu, None if last is None else last[parameter])
            for parameter, direction in proposed.direction.items()
        }
        self._last = step if self.momentum else None
        self._before = self._half_l2() if self._is_checked(proposed.step) else None
        return step

    def judge(self, proposed: Proposed) -> Tensor:
        """``M(delta)`` [] of the best delta along this direction (their E.6)."""
        return self._minimum(proposed, self._last_along(proposed))[1]

    def candidates(self, damping: float, step: int) -> Sequence[float]:
        """Those of gamma, where that has a rule."""
        return self.gamma_rule.candidates(damping, step) if self.gamma_rule is not None else ()

    def damping(self, taken: Taken) -> float | None:
        """Moves lambda where that is due, by the loss after the step, and tells the method's damping."""
        self._ratio = None
        if self.lambda_rule is None or not self._is_checked(taken.step):
            return taken.damping
        assert taken.losses is not None and self._predicted is not None and self._before is not None
        before, after = taken.losses()
        change = (after - before).double() + self._half_l2() - self._before
        old = self.model_damping + self.l2
        self.model_damping, self._ratio = self.lambda_rule.adjusted(
            self.model_damping, *torch.stack([change, self._predicted]).tolist()
        )
        if taken.damping is None or self.gamma_rule is not None or not old:
            return taken.damping
        return taken.damping * (self.model_damping + self.l2) / old

    @property
    def candidates_an_update(self) -> float:
        """Two every T2 updates."""
        return 0.0 if self.gamma_rule is None else 2 / self.gamma_rule.every

    @property
    def inner_products(self) -> float:
        """One for each vector, as often as the model is asked; none where a penalty makes the gradient a matrix."""
        return 0.0 if self.l2 else (2.0 if self.momentum else 1.0) * self._asked

    @property
    def _asked(self) -> float:
        """How often an update asks the quadratic model: once, and for every damping that is tried."""
        return 1.0 if self.gamma_rule is None else 1 + 3 / self.gamma_rule.every

    def multiply_adds(self, shapes: Sequence[LayerShape], part: float, between: float) -> float:
        """Tangents of the output, each with a forward pass of its own, and the loss after a step that is looked at."""
        forward = counts.forward(shapes) + between
        # W a' + W' a at every layer but the first, whose input does not move; both of what attention multiplies do.
        tangent = sum(shape.product * (1 if shape.first else 2) for shape in shapes) + 2 * between
        passes = (2 if self.momentum else 1) * self._asked * part
        looked = 0.0 if self.lambda_rule is None else forward / self.lambda_rule.every
        return passes * (forward + tangent) + looked

    def figures(self) -> Mapping[str, Tensor | float]:
        """alpha, mu, the lambda from now on, and the reduction ratio where it was looked at."""
        assert self._factors is not None
        alpha, mu = self._factors
        figures: dict[str, Tensor | float] = {"alpha": alpha, "mu": mu, "model_damping": self.model_damping}
        return figures if self._ratio is None else figures | {"reduction_ratio": self._ratio}

    def summary(self) -> dict[str, Any]:
        """How often a step was looked at, and how often it had raised the loss of its own mini-batch."""
        return {} if self.lambda_rule is None else self.lambda_rule.summary()

    def state_dict(self) -> dict[str, Any]:
        """The last step, lambda, and what its rule has counted."""
        last = None if self._last is None else [self._last.get(parameter) for parameter in self.parameters]
        counted = None if self.lambda_rule is None else self.lambda_rule.state_dict()
        return {"last_step": last, "model_damping": self.model_damping, "lambda_rule": counted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        last, self.model_damping = state["last_step"], state["model_damping"]
        if last is not None:
            pairs = zip(self.parameters, last, strict=True)
            self._last = {p: tensor.to(p.device) for p, tensor in pairs if tensor is not None}
        if self.lambda_rule is not None:
            self.lambda_rule.load_state_dict(state["lambda_rule"])

    def _is_checked(self, step: int) -> bool:
        return self.lambda_rule is not None and self.lambda_rule.is_due(step)

    def _last_along(self, proposed: Proposed) -> Vector | None:
        """Minus the last step, over the parameters that move now."""
        if self._last is None:
            return None
        return {p: self._last[p] if p in self._last else torch.zeros_like(p) for p in proposed.direction}

    def _minimum(self, proposed: Proposed, last: Vector | None) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """(alpha, mu) and ``M(delta)``, all [] in float64."""
        assert proposed.fisher is not None
        vectors = [proposed.direction] if last is None else [proposed.direction, last]
        products = [proposed.inner(None), *([] if last is None else [proposed.inner(last)])]
        b = torch.stack([product.double() for product in products])
        C = proposed.fisher(vectors).double() + (self.model_damping + self.l2) * _dots(vectors)
        # A direction of length 0 leads nowhere; 0 / 0 would be no number.
        alone = torch.where(C[0, 0] > 0, b[0] / C[0, 0], 0 * b[0])
        none = torch.zeros_like(alone)
        if last is None:
            return (alone, none), -0.5 * alone * b[0]
        determinant = C[0, 0] * C[1, 1] - C[0, 1] ** 2
        rounding = torch.finfo(next(iter(last.values())).dtype).eps
        regular = determinant > _ROUNDINGS * rounding * C[0, 0] * C[1, 1]
        alpha = torch.where(regular, (C[1, 1] * b[0] - C[0, 1] * b[1]) / determinant, alone)
        mu = torch.where(regular, (C[0, 0] * b[1] - C[0, 1] * b[0]) / determinant, none)
        return (alpha, mu), -0.5 * (alpha * b[0] + mu * b[1])

    def _half_l2(self) -> Tensor | float:
        """``eta / 2 |theta|^2``."""
        if not self.l2:
            return 0.0
        with torch.no_grad():
            norms = torch.stack(torch._foreach_norm(list[Tensor](self.parameters)))
        return 0.5 * self.l2 * norms.double().square().sum()


def _combined(alpha: Tensor, direction: Tensor, mu: Tensor, last: Tensor | None) -> Tensor:
    own = direction * alpha.to(direction.dtype)
    return own if last is None else own.add_(last * mu.to(last.dtype))


def _dots(vectors: Sequence[Vector]) -> Tensor:
    """``v_i' v_j`` [V, V]."""

    def dot(v: Vector, w: Vector) -> Tensor:
        return torch.stack([v[p].reshape(-1).dot(w[p].reshape(-1)) for p in v]).double().sum()

    return torch.stack([torch.stack([dot(v, w) for w in vectors]) for v in vectors])
