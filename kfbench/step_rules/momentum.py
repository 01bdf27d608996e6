"""When momentum begins: after the first epochs, where it would make a method unstable (Benzing 2022, appendix D.6)."""

from torch.optim import Optimizer


class LateMomentum:
    """The momentum of an optimizer: 0 before update ``first``, then ``momentum``.

    The paper "switched on the momentum term only after the first epoch was completed" and says no more. Here the buffer
    starts empty: until then torch's SGD keeps none.
    """

    def __init__(self, optimizer: Optimizer, momentum: float, first: int) -> None:
        self.optimizer, self.momentum, self.first = optimizer, momentum, first

    def set(self, step: int) -> None:
        """As it is at update ``step``; it follows from that alone, so a continued run goes on with it."""
        for group in self.optimizer.param_groups:
            group["momentum"] = self.momentum if step >= self.first else 0.0
