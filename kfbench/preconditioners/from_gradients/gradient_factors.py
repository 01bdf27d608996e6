"""Second moments of mean gradients on both sides, ``L`` of G G' and ``R`` of G' G (Gupta, Koren & Singer 2018)."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from kfbench.curvature.counts import LayerShape
from kfbench.curvature.gradient import LayerGradient

ACCUMULATE, SIDES = ("ema", "sum"), ("both", "left", "right")


class GradientFactors:
    """``L`` [d_out, d_out] and ``R`` [d_in, d_in] of every layer, or one of them.

    "ema": ``L <- m L + (1 - m) G G'`` over its accumulated weight, so that the first gradient counts fully; "sum": as
    in the paper's Algorithm 1, whose ``epsilon I`` is damping. A side wider than ``max_dim`` has no factor.
    """

    def __init__(self, ema: float, accumulate: str = "ema", sides: str = "both", max_dim: int | None = None) -> None:
        if not 0 <= ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {ema}")
        if accumulate not in ACCUMULATE:
            raise ValueError(f"accumulate must be one of {', '.join(ACCUMULATE)}, got {accumulate!r}")
        if sides not in SIDES:
            raise ValueError(f"sides must be one of {', '.join(SIDES)}, got {sides!r}")
        self.ema, self.accumulate, self.sides, self.max_dim = ema, accumulate, sides, max_dim
        self.left: dict[str, Tensor] = {}
        self.right: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, gradients: Mapping[str, LayerGradient]) -> None:
        """Take in one batch's mean gradient of every layer."""
        for name, G in gradients.items():
            if self.accumulate == "ema":
                self._weights[name] = weight = self.ema * self._weights.get(name, 0.0) + 1 - self.ema
            on_left, on_right = self.has(*G.shape)
            for factors, wanted, moment in ((self.left, on_left, G.outer), (self.right, on_right, G.inner_moment)):
                if not wanted:
                    continue
                known = factors.get(name)
                if known is None:
                    factors[name] = moment()
                elif self.accumulate == "sum":
                    factors[name] = known + moment()
                else:
                    factors[name] = known.lerp(moment(), (1 - self.ema) / weight)

    def has(self, d_out: int, d_in: int) -> tuple[bool, bool]:
        """Whether a layer of this shape has L, and R."""
        limit = self.max_dim or max(d_out, d_in)
        return self.sides != "right" and d_out <= limit, self.sides != "left" and d_in <= limit

    def multiply_adds(self, shape: LayerShape) -> float:
        """Of taking in one gradient."""
        on_left, on_right = self.has(shape.d_out, shape.d_in)
        if shape.on_rows and shape.rows < min(shape.d_out, shape.d_in):
            # A Gram matrix of the rows of the other side, its product with the own rows, and theirs with each other.
            left, right = (
                shape.rows**2 * (shape.d_in + shape.d_out) + shape.rows * d**2 for d in (shape.d_out, shape.d_in)
            )
        else:
            left, right = shape.d_out**2 * shape.d_in, shape.d_out * shape.d_in**2
        return float(on_left * left + on_right * right)

    def forget(self, names: Collection[str]) -> None:
        """These layers are others now."""
        for name in names:
            self.left.pop(name, None)
            self.right.pop(name, None)
            self._weights.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """Both factors and their accumulated weights."""
        return {"left": self.left, "right": self.right, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        self.left, self.right, self._weights = (dict(state[key]) for key in ("left", "right", "weights"))


class RunningMean:
    """``x <- m x + (1 - m) new`` over its accumulated weight, one tensor a layer: Adam's moments with bias correction.

    A new one that is not finite counts nothing, since it would stay for good; which it is stays on the device.
    """

    def __init__(self, decay: float, name: str) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"{name} must be in [0, 1), got {decay}")
        self.decay = decay
        self.means: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}  # [], 1 - m^t

    def add(self, name: str, new: Tensor) -> Tensor:
        """Take it in; the mean, of the shape of ``new``."""
        if name not in self.means:
            self.means[name], self.weights[name] = torch.zeros_like(new), new.new_zeros(())
        mean, before, finite = self.means[name], self.weights[name], torch.isfinite(new.sum())
        weight = torch.where(finite, self.decay * before + (1 - self.decay), before)
        # Of a first one that is not finite the weight stays 0, and what is divided by it is not taken.
        share = torch.where(finite, (1 - self.decay) / weight, 0.0)
        self.means[name] = mean.lerp(torch.where(finite, new, mean), share)
        self.weights[name] = weight
        return self.means[name]

    def forget(self, names: Collection[str]) -> None:
        """These layers are others now."""
        for name in names:
            self.means.pop(name, None)
            self.weights.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """Means and weights."""
        return {"means": self.means, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        self.means, self.weights = dict(state["means"]), dict(state["weights"])
