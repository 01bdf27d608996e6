"""How a method's own damping is found apart from the quadratic model's (Martens & Grosse 2015, E.6)."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from kfbench.preconditioners.contract import Preconditioner

Answer = TypeVar("Answer")

# The square of their omega_2 of one update, sqrt(19/20): a method's damping is gamma^2.
DECAY = 0.95


class GreedyGamma:
    """Every ``every`` updates (T2) a smaller and a larger damping are tried; that of the least M stays."""

    def __init__(self, every: int) -> None:
        self.every = every

    def candidates(self, damping: float, step: int) -> tuple[float, ...]:
        """Beside the one in force, in update ``step`` from 0; none where it is not due."""
        if (step + 1) % self.every:
            return ()
        factor = DECAY**self.every
        return damping * factor, damping / factor


def least(
    dampings: Sequence[float],
    method: Preconditioner,
    refresh: Callable[[float], None],
    answer: Callable[[], Answer],
    judge: Callable[[Answer], Tensor],
) -> tuple[float, Answer]:
    """The damping whose answer is worth least, and that answer; the method is left as it gave it.

    The method is refreshed with the first one already. A value that is no number is the worst, and so is a damping
    that its refresh refuses with a FloatingPointError.
    """
    # As it is before it answers: it may remember what it is asked.
    before = copy.deepcopy(method.state_dict())
    tried = list[tuple[float, Answer, Tensor, dict[str, Any]]]()
    for damping in dampings:
        if tried:
            method.load_state_dict(copy.deepcopy(before))
            try:
                refresh(damping)
            except FloatingPointError:
                continue
        found = answer()
        tried.append((damping, found, judge(found), copy.deepcopy(method.state_dict())))
    # All read at once, since that waits for the device.
    values = torch.stack([value for _, _, value, _ in tried]).nan_to_num(nan=torch.inf).tolist()
    damping, found, _, state = tried[values.index(min(values))]
    method.load_state_dict(state)
    return damping, found
