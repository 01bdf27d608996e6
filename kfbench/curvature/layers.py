"""Layer types, named here and nowhere else, and the one layout that every formula uses.

A layer that multiplies by a weight matrix is seen as ``h = W a`` at each of P positions of each of
N samples (P = 1 for a fully connected layer, output positions for a convolution). It gives rows

- inputs ``a`` [N, P, d_in], with a column of ones appended where the layer has a bias,
- output gradients ``g`` [N, P, d_out], of the per-sample loss,

so that its gradient is ``G = 1/N sum_n sum_p g a'`` [d_out, d_in]: weight and bias in one matrix.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize


@dataclass(frozen=True)
class Layer:
    """One captured layer of the user's model, which is only read, never changed."""

    name: str
    module: nn.Linear | nn.Conv2d

    @property
    def has_bias(self) -> bool:
        """Whether a bias is trained, hence whether the rows carry a column of ones."""
        return self.module.bias is not None and self.module.bias.requires_grad

    @property
    def d_out(self) -> int:
        return self.module.weight.shape[0]

    @property
    def d_in(self) -> int:
        """Input width, the column of the bias counted."""
        return self.module.weight[0].numel() + self.has_bias

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters whose gradient this layer's rows determine."""
        return [p for p in self.module.parameters(recurse=False) if p.requires_grad]

    def input_rows(self, x: Tensor) -> Float[Tensor, "N P d_in"]:
        """What the layer was given, as rows; positions in the order of ``gradient_rows``."""
        if isinstance(self.module, nn.Conv2d):
            conv = self.module
            padding = conv.padding
            assert not isinstance(padding, str), "refused by find_layers"
            patches = nn.functional.unfold(x, conv.kernel_size, conv.dilation, padding, conv.stride)
            rows = patches.transpose(1, 2)
        else:
            rows = x.reshape(x.shape[0], -1, x.shape[-1])
        if self.has_bias:
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)
        return rows

    def gradient_rows(self, g: Tensor) -> Float[Tensor, "N P d_out"]:
        """The gradient with respect to what the layer returned, as rows."""
        if isinstance(self.module, nn.Conv2d):
            return g.flatten(2).transpose(1, 2)
        return g.reshape(g.shape[0], -1, g.shape[-1])

    def matrix(self, tensors: list[Tensor]) -> Float[Tensor, "d_out d_in"]:
        """Weight (and bias) shaped tensors, joined to the one matrix of the layer."""
        weight = tensors[0].flatten(1)
        return torch.cat([weight, tensors[1][:, None]], dim=1) if self.has_bias else weight

    def split(self, matrix: Float[Tensor, "d_out d_in"]) -> list[Tensor]:
        """The inverse of ``matrix``: views in the shapes of ``parameters``."""
        weight = self.module.weight
        if not self.has_bias:
            return [matrix.view_as(weight)]
        return [matrix[:, :-1].reshape(weight.shape), matrix[:, -1]]


def find_layers(model: nn.Module) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers of ``model`` that can be captured, and why others cannot, by module name.

    Only trainable parameters count. A module is left out, never wrongly preconditioned, where its
    rows would not determine its gradient; its parameters then keep their plain gradient.
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    layers, left_out = {}, {}
    for name, module in model.named_modules():
        if not any(p.requires_grad for p in module.parameters(recurse=False)):
            continue
        reason = _why_not(module, owners)
        if reason is None:
            layers[name] = Layer(name, module)
        else:
            left_out[name] = reason
    return layers, left_out


def batch_mixing(model: nn.Module) -> list[str]:
    """Names of modules through which samples see each other: BatchNorm that normalises by the batch.

    A layer's gradient is then still exact, but its rows are not the gradients of single samples.
    """
    kinds = nn.modules.batchnorm._BatchNorm
    return [n for n, m in model.named_modules() if isinstance(m, kinds) and (m.training or m.running_mean is None)]


def _why_not(module: nn.Module, owners: dict[int, int]) -> str | None:
    """Why this module cannot be captured, or None where it can."""
    kind = type(module)
    if parametrize.is_parametrized(module):
        return "its weight is a parametrization"
    if not any(isinstance(module, known) and kind.forward is known.forward for known in (nn.Linear, nn.Conv2d)):
        return f"{kind.__name__} has no Kronecker factors here"
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "its weight is not a parameter"
    if not module.weight.requires_grad:
        return "its weight is frozen"
    if any(owners[id(p)] > 1 for p in module.parameters(recurse=False)):
        return "it shares a parameter with another module"
    if isinstance(module, nn.Conv2d):
        if module.groups != 1:
            return "grouped convolutions have no single input factor"
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            return f"padding {module.padding!r} ({module.padding_mode}) is not supported"
    return None
