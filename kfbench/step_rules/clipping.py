"""Norm clipping: a step rule between a method's direction and the optimizer's step."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kfbench.step_rules.learning_rate import learning_rate_factor


class NormClipping:
    """``lr_t = min(lr, sqrt(c / grad'direction))``, so that ``lr_t^2 grad'direction <= c``.

    From the poster of George et al. 2018, whose ``c = c_0 gamma^t`` is here a fall to ``c * decay``
    over ``total`` updates. ``grad'direction``, over all parameters, is ``grad' G^-1 grad`` for a
    method with curvature G and the squared norm of the gradient for a plain optimizer. The direction
    is scaled by lr_t / lr, so momentum averages what was clipped. Where the product is not positive
    the formula has no value, and nothing is clipped.
    """

    def __init__(self, c: float, decay: float, total: int, device: torch.device) -> None:
        self.c, self.decay, self.total = c, decay, total
        self.clipped = torch.zeros((), dtype=torch.int64, device=device)  # updates in which it acted so far

    def factor(self, product: Tensor, lr: float, step: int) -> Tensor:
        """``lr_t / lr`` [] at update ``step``, from ``grad'direction`` []; it stays on the device."""
        c = self.c * learning_rate_factor("exp", self.decay, step, self.total)
        factor = ((c / product.clamp(min=0)).sqrt() / lr).clamp(max=1)
        self.clipped += factor < 1
        return factor


def squared_norm(gradients: list[Tensor]) -> Tensor:
    """The sum of all squared entries []."""
    return torch.stack(torch._foreach_norm(gradients)).square().sum()


def scale_gradients(parameters: Iterable[nn.Parameter], factor: Tensor) -> None:
    """Every ``.grad`` times ``factor`` [], as new tensors: a method may keep the one it returned."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad * factor
