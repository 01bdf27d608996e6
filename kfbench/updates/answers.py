"""What a method answers: a direction for every layer, checked once against what it promised."""

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn

from kfbench.curvature.gradient import LayerGradient
from kfbench.preconditioners.contract import Preconditioner

Matrices = dict[str, Tensor]  # a layer's name -> [d_out, d_in]
# What each parameter is to move against; None where the loss does not use it.
Direction = Mapping[nn.Parameter, Tensor | None]
# Of gradients and directions: puts them where the optimizer finds them; how good they are [], the lowest is the best.
Write = Callable[[dict[str, LayerGradient], Matrices], None]
Judge = Callable[[dict[str, LayerGradient], Matrices], Tensor]


class Answers:
    """A method's directions, and the plain gradient of layers that it has seen nothing of."""

    def __init__(self, method: Preconditioner) -> None:
        self._method, self._checked = method, False

    def of(self, gradients: dict[str, LayerGradient], known: Collection[str]) -> Matrices:
        """Of every gradient [d_out, d_in]; TypeError for a first answer that is none. ``known``: the layers seen."""
        asked = {name: G for name, G in gradients.items() if name in known} if known else gradients
        directions = self._method.apply(asked)
        if not self._checked:
            check_directions(directions, asked)
            self._checked = True
        if len(asked) == len(gradients):
            return directions
        return {name: directions[name] if name in asked else G.dense() for name, G in gradients.items()}


def warn_of_retries(damping: float) -> None:
    """That directions are damped more than was asked for."""
    warnings.warn(
        f"a factor was not positive definite in floating point with damping {damping:g}, so it was damped more; "
        "raise --damping or use --dtype float64 (further cases are only counted)",
        stacklevel=3,
    )


def check_directions(directions: Any, gradients: Mapping[str, LayerGradient]) -> None:
    """TypeError, one sentence, for a method's first answer that is not a detached matrix of every layer asked for."""
    if not isinstance(directions, Mapping):
        raise TypeError(f"apply returned a {type(directions).__name__}, expected a mapping from layers to directions")
    for name in directions:
        if name not in gradients:
            asked = ", ".join(gradients)
            raise TypeError(f"apply returned a direction for {name}, which it was not asked for; it was for {asked}")
    for name, G in gradients.items():
        if name not in directions:
            raise TypeError(f"apply returned {', '.join(map(str, directions)) or 'nothing'}, but none for {name}")
        _check_direction(name, directions[name], G)


def _check_direction(name: str, direction: Any, G: LayerGradient) -> None:
    if not isinstance(direction, Tensor):
        raise TypeError(f"apply returned a {type(direction).__name__} for {name}, expected a tensor")
    if list(direction.shape) != list(G.shape):
        raise TypeError(f"apply returned shape {list(direction.shape)} for {name}, expected {list(G.shape)}")
    if direction.requires_grad:
        raise TypeError(f"apply returned a graph for {name}, expected a detached tensor")
    for what in ("dtype", "device"):
        got, wanted = (str(getattr(tensor, what)).removeprefix("torch.") for tensor in (direction, G.output_gradients))
        if got != wanted:
            raise TypeError(f"apply returned {got} for {name}, expected {wanted}")
