"""Products with the exact Fisher of a mini-batch that need no backward pass (Martens & Grosse 2015, appendix J).

``F = 1/N sum_n J_n' F_n J_n`` with J the Jacobian of the output and F_n the Fisher of one sample's output, so that
``u'F v`` follows from ``J u`` and ``J v`` alone, each a forward pass of tangents.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.overrides import TorchFunctionMode


@runtime_checkable
class _Likelihood(Protocol):
    def full_vectors(self, output: Tensor) -> Tensor: ...


def tangents(model: nn.Module, x: Tensor, vectors: Sequence[Mapping[nn.Parameter, Tensor]]) -> tuple[Tensor, ...]:
    """The output [N, ...], then ``J v`` [N, ...] of every vector; in the mode the model is in, masks included."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    outputs: list[Tensor] = []
    for vector in vectors:
        # Of torch's own use of torch.jit, when the first tangent is made.
        with warnings.catch_warnings(), forward_ad.dual_level(), _UnmovedInputs():
            warnings.filterwarnings("ignore", message="`torch.jit")
            moved = {names[w]: forward_ad.make_dual(w.detach(), tangent) for w, tangent in vector.items()}
            output, tangent = forward_ad.unpack_dual(functional_call(model, moved, (x,)))
        # None where the output depends on none of these weights.
        outputs += [*([] if outputs else [output]), torch.zeros_like(output) if tangent is None else tangent]
    return tuple(outputs)


# Bilinear in input and weight, which come first; a bias is third.
_BILINEAR = (nn.functional.linear, torch.conv1d, torch.conv2d, torch.conv3d)


class _UnmovedInputs(TorchFunctionMode):
    """Where the input has no tangent, as that of the first layer, torch would multiply out a tangent of zeros."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _BILINEAR or kwargs or len(args) < 3 or forward_ad.unpack_dual(args[0]).tangent is not None:
            return func(*args, **kwargs)
        x, weight, bias, *how = args
        W, b = forward_ad.unpack_dual(weight), None if bias is None else forward_ad.unpack_dual(bias)
        if W.tangent is None:
            return func(*args)
        output = func(x, W.primal, b and b.primal, *how)
        return forward_ad.make_dual(output, func(x, W.tangent, b and b.tangent, *how))


def fisher_products(likelihood: _Likelihood, output: Tensor, tangents: Sequence[Tensor]) -> Float[Tensor, "V V"]:
    """``sum_n t_i' F_n t_j`` over the samples, for tangents [N, ...] of the output."""
    product = getattr(likelihood, "fisher_product", None)
    if product is None:  # a user's likelihood: the columns of its root
        roots = likelihood.full_vectors(output).flatten(1)
        seen = torch.stack([(roots.unflatten(1, output.shape) * t).flatten(2).sum(2).flatten() for t in tangents])
        return seen @ seen.T
    flat = torch.stack([t.flatten() for t in tangents])
    return flat @ torch.stack([product(output, t).flatten() for t in tangents]).T
