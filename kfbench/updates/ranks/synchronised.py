"""Batch normalisation over the rows of all processes, in which each gets the gradients that one process would get."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from kfbench.updates.ranks.sharing import Several


def synchronise(model: nn.Module, ranks: Several) -> None:
    """From now on every BatchNorm of ``model`` with running averages normalises, in training, by the whole batch.

    Means and variances are sums over rows, and so are their gradients: each travels in every forward and in every
    backward pass, 2 d + 1 numbers of a module with d channels. All processes get the same running averages.
    """
    for module in normalising(model):
        module.forward = _forward(module, ranks)  # type: ignore[method-assign, assignment]


def normalising(model: nn.Module) -> list[_BatchNorm]:
    """Modules that are synchronised; without running averages they would mix samples in evaluations too."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None]


def _forward(module: _BatchNorm, ranks: Several) -> Callable[[Tensor], Tensor]:
    alone = module.forward

    def forward(x: Tensor) -> Tensor:
        if not module.training:
            return alone(x)
        module._check_input_dim(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # under autocast, as torch has it
        d, rest = x.shape[1], [0, *range(2, x.dim())]
        shape = [1, d] + [1] * (x.dim() - 2)
        # The row of a process that has none of this batch is there for its shape alone, but in the graph.
        share = 1.0 if ranks.counts else 0.0
        rows = wide.new_tensor([x.numel() // d])
        added = _Added.apply(torch.cat([wide.sum(rest), rows]), share, ranks)
        count = added[-1].detach()
        centred = wide - (added[:-1] / count).view(shape)
        squares = _Added.apply(centred.square().sum(rest), share, ranks)
        _remember(module, (added[:-1] / count).detach(), (squares / (count - 1)).detach())
        normalised = centred / (squares / count + module.eps).sqrt().view(shape)
        if module.weight is not None:
            normalised = normalised * module.weight.view(shape) + module.bias.view(shape)
        return normalised.to(x.dtype)

    return forward


def _remember(module: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Into the running averages, as torch does: with momentum, or as the mean of all where that is None."""
    assert module.running_mean is not None and module.running_var is not None
    assert module.num_batches_tracked is not None
    module.num_batches_tracked.add_(1)
    weight = 1 / module.num_batches_tracked if module.momentum is None else module.momentum
    module.running_mean.lerp_(mean, weight)
    module.running_var.lerp_(variance, weight)


class _Added(torch.autograd.Function):
    """The sum over processes of ``share`` times what each has; its gradient is added up likewise."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, share: float, ranks: Several) -> Tensor:
        ctx.share, ctx.ranks = share, ranks
        return ranks.sums([own * share])[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # A row that counts nothing has a loss, too, which must not reach the rows of others.
        return ctx.ranks.sums([gradients[0] * ctx.share])[0] * ctx.share, None, None
