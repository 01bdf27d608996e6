"""Which layers are preconditioned, verified against autograd before the first update; the rest keep plain gradients."""

import warnings
from collections.abc import Collection

import torch
from torch import Tensor, nn

from kfbench.curvature.capture import Captured
from kfbench.curvature.contract import Layer
from kfbench.curvature.layers import batch_mixing, find_layers


class Coverage:
    """The layers whose captured gradient is autograd's; all methods of one captured forward share it.

    ``left_out`` maps the names of all other modules with parameters to the reason. ``per_sample``: the
    method takes rows for gradients of single samples, so modules that mix them are worth a warning.
    """

    def __init__(self, model: nn.Module, per_sample: bool = False) -> None:
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
        # At first nothing has been named, not even what find_layers left out.
        before = len(self.left_out) if self._named else 0
        for name in list(self.layers):
            if reason := why_wrong(self.layers[name], captured, losses):
                self.left_out[name] = reason
                del self.layers[name]
                captured.exclude(name)
        # Parameters of layers left out just now are plain ones from this very update on.
        captured.plain[:] = self.plain_parameters()
        if not self._named and self.per_sample:
            warn_of_batch_mixing(self.model)
        self.verified = self._named = True
        if len(self.left_out) > before:
            unnamed = list(self.left_out.items())[before:]
            listed = "; ".join(f"{name or 'the model itself'} ({why})" for name, why in unnamed)
            warnings.warn(f"not preconditioned, plain gradient instead: {listed}", stacklevel=5)


# How far a captured gradient may lie from autograd's, relative to its norm: rounding, nothing more.
_AGREEMENT = {torch.float64: 1e-9, torch.float32: 1e-4}

_LOOSE_AGREEMENT = 2e-2  # half precisions, and TF32, which accelerators may use for convolutions alone


def warn_of_batch_mixing(model: nn.Module) -> None:
    """Name the modules behind which no row is the gradient of a single sample."""
    if mixing := batch_mixing(model):
        warnings.warn(
            f"{', '.join(map(repr, mixing))} normalise by the batch, so no row is the gradient of a single sample and "
            "the Fisher of this method is not the model's; put them into evaluation mode, or use another normalisation",
            stacklevel=5,
        )


def why_wrong(layer: Layer, captured: Captured, losses: Tensor) -> str | None:
    """Why the rows of this layer do not give its gradient, or None where they do."""
    calls = captured.calls.get(layer.name)
    if not calls:
        return "its forward was not called through the module"
    if captured.samples_per_call()[layer.name] != {len(losses)}:
        return "its batch does not lie along the first dimension"
    # The update itself still needs the graph.
    truth = torch.autograd.grad(losses.sum(), layer.parameters, retain_graph=True, allow_unused=True)
    expected = [torch.zeros_like(p) if g is None else g for g, p in zip(truth, layer.parameters, strict=True)]
    G = captured.gradient_of(layer.name, losses)
    wanted = layer.matrix(expected) / len(losses)
    exact = wanted.device.type == "cpu" or wanted.dtype == torch.float64
    tolerance = _AGREEMENT.get(wanted.dtype, _LOOSE_AGREEMENT) if exact else _LOOSE_AGREEMENT
    # Synchronises, which only a forward that is verified pays for.
    if float((G - wanted).norm()) > tolerance * float(wanted.norm()):
        return "its weight is used outside the layer too"
    return None
