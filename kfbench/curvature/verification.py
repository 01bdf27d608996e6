"""Whether what was captured can be believed: tried at the first batch, before the first update."""

import warnings

import torch
from torch import Tensor, nn

from kfbench.curvature.capture import Captured
from kfbench.curvature.layers import Layer, batch_mixing

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
    truth = torch.autograd.grad(losses.sum(), layer.parameters, retain_graph=True, allow_unused=True)
    expected = [torch.zeros_like(p) if g is None else g for g, p in zip(truth, layer.parameters, strict=True)]
    G = captured.gradient_of(layer.name, losses)
    wanted = layer.matrix(expected) / len(losses)
    exact = wanted.device.type == "cpu" or wanted.dtype == torch.float64
    tolerance = _AGREEMENT.get(wanted.dtype, _LOOSE_AGREEMENT) if exact else _LOOSE_AGREEMENT
    if float((G - wanted).norm()) > tolerance * float(wanted.norm()):
        return "its weight is used outside the layer too"
    return None
