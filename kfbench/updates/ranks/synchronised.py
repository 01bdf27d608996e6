"""Batch normalisation over the rows of all processes, in which each gets the gradients that one process would get."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from kfbench.updates.ranks.sharing import Several


def normalising(model: nn.Module) -> list[_BatchNorm]:
    """Modules that normalise by the batch in training alone; without running averages they do in evaluations too."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None]


class WholeBatch(TorchFunctionMode):
    """Around a training forward: whatever normalises by the batch there normalises by that of all processes.

    Means and variances are sums over rows, and so are their gradients: each travels in the forward and in every
    backward pass, 2 d numbers for d channels. All processes get the same running averages.
    """

    def __init__(self, ranks: Several) -> None:
        super().__init__()
        self._ranks = ranks

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """As torch's ``batch_norm``, with its arguments."""
        x, ranks = input, self._ranks
        if not training:
            return nn.functional.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # under autocast, as torch has it
        rest, shape = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
        count = ranks.place()[0] * x[0, 0].numel()
        if count == 1:
            raise ValueError("a batch of one value per channel cannot be normalised by itself")
        mean = _Added.apply(wide.sum(rest), ranks) / count
        centred = wide - mean.view(shape)
        squares = _Added.apply(centred.square().sum(rest), ranks)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.detach().to(running_mean.dtype), momentum)
            running_var.lerp_((squares / (count - 1)).detach().to(running_var.dtype), momentum)
        normalised = centred / (squares / count + eps).sqrt().view(shape)
        if weight is not None:
            normalised = normalised * weight.view(shape)
        if bias is not None:
            normalised = normalised + bias.view(shape)
        return normalised.to(x.dtype)


class _Added(torch.autograd.Function):
    """The sum over processes; its gradient is added up likewise.

    The row of a process that has none of the batch is there for its shape alone: it counts nothing, and what its loss
    has for the sums must not reach the rows of others.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: Several) -> Tensor:
        ctx.share, ctx.ranks = float(ranks.counts), ranks
        return ranks.sums([own * ctx.share])[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sums([gradients[0] * ctx.share])[0] * ctx.share, None
