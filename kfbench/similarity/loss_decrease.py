"""Progress: by how much a step along a direction would lower the loss of the very mini-batch it was made from."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kfbench.layers.contract import Layer, by_parameter
from kfbench.problems.likelihoods import Likelihood
from kfbench.similarity.panel import matrices
from kfbench.updates.answers import Direction
from kfbench.updates.batches import Batch
from kfbench.updates.evaluation import SameMasks

# The line search: so many half-decades to each side of the given lr, and so many more where the best is at an end.
_REACH, _EXTENSION = 4, 12


class LossDecrease:
    """``(loss before - loss after) / loss before`` of steps on one mini-batch, given by its micro-batches.

    Forwards are in the model's own mode with the random state of the training forward, so dropout masks are
    those under which the gradient was taken; weights, buffers and random state come out bit for bit.
    """

    def __init__(
        self, model: nn.Module, likelihood: Likelihood, parts: list[Batch], before: float, masks: SameMasks
    ) -> None:
        self.model, self.likelihood, self.parts, self.before, self.masks = model, likelihood, parts, before, masks

    @torch.no_grad()
    def of(self, direction: Direction, lr: float) -> float:
        """The progress of the step ``-lr direction``; not a number where the loss is none."""
        with self._moved(direction, lr), self.masks.again():
            losses = [self.likelihood.loss(self.model(x), y).sum() for x, y in self.parts]
        after = float(torch.stack(losses).sum()) / sum(len(x) for x, _ in self.parts)
        return (self.before - after) / self.before if self.before else math.nan

    @contextmanager
    def _moved(self, direction: Direction, lr: float) -> Iterator[None]:
        # Copies to put back: subtracting the step again would leave rounding in the weights.
        kept = {p: p.clone() for p, d in direction.items() if d is not None}
        try:
            for p in kept:
                p.add_(direction[p], alpha=-lr)  # type: ignore[arg-type]
            yield
        finally:
            for p, old in kept.items():
                p.copy_(old)

    def search(self, direction: Direction, lr: float) -> tuple[float, float]:
        """(best progress, its learning rate) over half-decades around ``lr``; a minimum at an end extends it there."""
        return best_of_half_decades(lambda step: self.of(direction, step), lr)


def best_of_half_decades(value: Callable[[float], float], centre: float) -> tuple[float, float]:
    """(highest value, where) over ``centre 10^(k/2)``, |k| <= 4; while the highest is at an end, up to 12 more there.

    Values that are not finite count as lowest; of equals the smallest argument.
    """
    value_at: dict[int, float] = {}

    def look(k: int) -> None:
        at_k = value(centre * 10 ** (k / 2))
        value_at[k] = at_k if math.isfinite(at_k) else -math.inf

    for k in range(-_REACH, _REACH + 1):
        look(k)
    for _ in range(_EXTENSION):
        best = max(sorted(value_at), key=value_at.__getitem__)  # sorted: of equals, max takes the first
        # Inside, the best is found; where nothing is finite, no end is more promising than the other.
        if best not in (min(value_at), max(value_at)) or value_at[best] == -math.inf:
            break
        look(best + (1 if best == max(value_at) else -1))
    best = max(sorted(value_at), key=value_at.__getitem__)
    return (value_at[best] if math.isfinite(value_at[best]) else math.nan), centre * 10 ** (best / 2)


@torch.no_grad()
def rescaled(direction: Direction, like: Direction, layers: dict[str, Layer]) -> dict[nn.Parameter, Tensor | None]:
    """The direction with the norm of ``like`` in every layer (Benzing 2022, Figure 4C and appendix D.9).

    Parameters of no captured layer are moved as ``like`` moves them.
    """
    own, wanted = matrices(layers, direction), matrices(layers, like)
    for name, matrix in own.items():
        # A direction of zero stays zero.
        own[name] = matrix * (wanted[name].norm() / matrix.norm().clamp(min=torch.finfo(matrix.dtype).tiny))
    return dict(like) | dict(by_parameter(layers, own))
