"""What one batch says about each layer, and its running averages.

Factors (Grosse & Martens 2016, weight sharing "expand"), means over samples, so that neither the
batch size nor the reduction of the loss enters:

- ``A = 1/N sum_n sum_p a a'`` [d_in, d_in]
- ``B = 1/(N P) sum_n sum_p g g'`` [d_out, d_out], summed over the K backpropagated vectors
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kfbench.curvature.linalg import add_outer_products


@dataclass(frozen=True)
class LayerStatistics:
    """One layer's rows in one batch.

    ``inputs`` [N, P, d_in]. ``output_gradients`` [K, N, P, d_out] or None where the method needs no
    Fisher: the gradients of K vectors per sample whose outer products sum to (an estimate of) the
    Fisher of the output. K = 1 for true or once-sampled labels, the number of classes for "full".
    ``has_bias``: the last column of the inputs is the bias's, all ones.
    """

    inputs: Float[Tensor, "N P d_in"]
    output_gradients: Float[Tensor, "K N P d_out"] | None = None
    has_bias: bool = False


Statistics = Mapping[str, LayerStatistics]


def join_statistics(parts: list[dict[str, LayerStatistics]]) -> dict[str, LayerStatistics]:
    """The statistics of micro-batches as those of the whole batch."""
    if len(parts) == 1:
        return parts[0]
    joined = {}
    for name in parts[0]:
        inputs = torch.cat([part[name].inputs for part in parts])
        gradients = [g for part in parts if (g := part[name].output_gradients) is not None]
        outputs = torch.cat(gradients, dim=1) if gradients else None
        joined[name] = LayerStatistics(inputs, outputs, parts[0][name].has_bias)
    return joined


class FactorAverages:
    """Running averages of one kind of factor, one matrix a layer.

    ``x <- m x + (1 - m) new``, divided by its accumulated weight, so that the first observation
    counts fully (FOOF paper, appendix D.1). What is stored is that normalised mean. m = 0 keeps
    only the newest batch.
    """

    def __init__(self, ema: float) -> None:
        if not 0 <= ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {ema}")
        self.ema = ema
        self.means: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, name: str, rows: Float[Tensor, "... d"], divisor: int) -> None:
        """Average in ``sum of row row' / divisor``."""
        rows = rows.reshape(-1, rows.shape[-1])
        old_weight = self.ema * self._weights.get(name, 0.0)
        weight = old_weight + 1 - self.ema
        if name not in self.means:
            # Zeros that count for nothing: they are kept with weight 0.
            self.means[name] = rows.new_zeros(rows.shape[1], rows.shape[1])
        add_outer_products(self.means[name], rows, keep=old_weight / weight, scale=(1 - self.ema) / weight / divisor)
        self._weights[name] = weight

    def add_inputs(self, statistics: Statistics) -> None:
        """Average in the input factor A of every layer."""
        for name, layer in statistics.items():
            self.add(name, layer.inputs, divisor=layer.inputs.shape[0])

    def add_output_gradients(self, statistics: Statistics) -> None:
        """Average in the output factor B of every layer."""
        for name, layer in statistics.items():
            gradients = layer.output_gradients
            assert gradients is not None, "the method's fisher is 'none', so nothing was backpropagated"
            # N P, without K: over vectors it is a sum.
            self.add(name, gradients, divisor=gradients.shape[1] * gradients.shape[2])

    def forget(self, names: Collection[str]) -> None:
        """These layers are others now: their next observation counts fully."""
        for name in names:
            self.means.pop(name, None)
            self._weights.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """Means and their accumulated weights."""
        return {"means": self.means, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        self.means, self._weights = dict(state["means"]), dict(state["weights"])
