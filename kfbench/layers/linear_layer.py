"""Fully connected layers, also over sequences: every vector that a sample holds is one position."""

import math

from jaxtyping import Float
from torch import Tensor, nn

from kfbench.layers.contract import Layer


class LinearLayer(Layer):
    """An ``nn.Linear``."""

    module: nn.Linear

    @staticmethod
    def why_not(module: nn.Linear) -> None:
        """All can be captured."""

    def positions(self, shape: tuple[int, ...]) -> int:
        """Everything between samples and features."""
        return math.prod(shape[1:-1])

    def input_rows(self, x: Tensor) -> Float[Tensor, "N P d_in"]:
        """Positions in the order of memory."""
        return self.with_ones(x.reshape(x.shape[0], -1, x.shape[-1]))

    def gradient_rows(self, g: Tensor) -> Float[Tensor, "N P d_out"]:
        """Likewise."""
        return g.reshape(g.shape[0], -1, g.shape[-1])
