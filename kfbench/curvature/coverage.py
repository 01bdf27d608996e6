"""Which parameters of a model are preconditioned, and which keep their plain gradient."""

import warnings
from collections.abc import Collection

from torch import Tensor, nn

from kfbench.curvature.capture import Captured
from kfbench.curvature.layers import find_layers
from kfbench.curvature.verification import warn_of_batch_mixing, why_wrong


class Coverage:
    """The layers whose captured gradient is autograd's; companions of one captured forward share it.

    ``left_out`` maps the names of all other modules with parameters to the reason. ``per_sample``: the
    method takes rows for gradients of single samples, so modules that mix them are worth a warning.
    """

    def __init__(self, model: nn.Module, per_sample: bool) -> None:
        self.model, self.per_sample = model, per_sample
        self.layers, self.left_out = find_layers(model)
        self.verified = self._named = False

    def plain_parameters(self) -> list[nn.Parameter]:
        """Those of no captured layer."""
        covered = {id(p) for layer in self.layers.values() for p in layer.parameters}
        return [p for p in self.model.parameters() if p.requires_grad and id(p) not in covered]

    def keep(self, names: Collection[str]) -> None:
        """As an interrupted run had verified it."""
        self.layers = {name: self.layers[name] for name in names}
        self.verified = True

    def verify(self, captured: Captured, losses: Tensor) -> None:
        """Leave out every layer whose captured gradient is not autograd's; warn of those not named before.

        This finds, whatever the reason, weights that are also used past the layer's own forward
        (tied weights, penalties inside the loss, modules that bypass hooks) and batches that do
        not lie along the first dimension.
        """
        before = len(self.left_out) if self._named else 0
        for name in list(self.layers):
            if reason := why_wrong(self.layers[name], captured, losses):
                self.left_out[name] = reason
                del self.layers[name]
                captured.exclude(name)
        captured.plain[:] = self.plain_parameters()
        if not self._named and self.per_sample:
            warn_of_batch_mixing(self.model)
        self.verified = self._named = True
        if len(self.left_out) > before:
            found = list(self.left_out.items())[before:]
            listed = "; ".join(f"{name or 'the model itself'} ({why})" for name, why in found)
            warnings.warn(f"not preconditioned, plain gradient instead: {listed}", stacklevel=5)
