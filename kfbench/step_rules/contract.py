"""What every step rule must have: it acts between a method's direction and the optimizer's step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from kfbench.curvature.counts import LayerShape

# One number for every entry of every parameter that is trained.
Vector = Mapping[nn.Parameter, Tensor]


@dataclass(frozen=True)
class Proposed:
    """A direction that the optimizer has not stepped along yet."""

    direction: Vector
    """What the optimizer would step against, times its learning rate."""
    inner: Callable[[Vector | None], Tensor]
    """``gradient'vector`` [] over all parameters, of the direction itself for None; on the device."""
    lr: float | None
    step: int
    fisher: Callable[[Sequence[Vector]], Tensor] | None = None
    """``v_i' F v_j`` [V, V] of V vectors, with the exact Fisher of the mini-batch; for rules that ask for it."""


@dataclass(frozen=True)
class Taken:
    """The step that was taken, at the damping in force; None where the method has none."""

    damping: float | None
    step: int
    losses: Callable[[], tuple[Tensor, Tensor]] | None = None
    """Mean loss of the mini-batch before and after the step [], with the same masks; for rules that ask for it."""


class StepRule(Protocol):
    """How far the step goes, and which damping follows it."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Of updates.csv, beyond those that every method has."""

    @property
    def l2(self) -> float:
        """eta: the gradient is that of the loss plus ``eta / 2 |theta|^2``."""

    @property
    def looks_at_batch(self) -> bool:
        """Whether it asks for ``fisher`` and ``losses``."""

    def redirect(self, proposed: Proposed) -> Vector | None:
        """What the optimizer is to step against instead; None to leave it as it is; changes nothing in place."""

    def candidates(self, damping: float, step: int) -> Sequence[float]:
        """Dampings that are tried in the coming update beside the one in force."""

    def judge(self, proposed: Proposed) -> Tensor:
        """How good a candidate's direction is []: the lowest wins. Remembers nothing."""

    def damping(self, taken: Taken) -> float | None:
        """The damping from the next update on."""

    @property
    def candidates_an_update(self) -> float:
        """How many dampings it tries in an update, on average."""

    @property
    def inner_products(self) -> float:
        """How often an update multiplies gradient and direction; each costs a layer's product."""

    def multiply_adds(self, shapes: Sequence[LayerShape], part: float, between: float) -> float:
        """Of whatever else an update takes, with a model that is made from ``part`` of the batch.

        ``between``: those of a forward pass of the batch in which no weight has part.
        """

    def figures(self) -> Mapping[str, Tensor | float]:
        """Of the last step, by ``columns``; those on the device are read later."""

    def summary(self) -> Mapping[str, Any]:
        """What summary.json says of the whole run."""

    @property
    def acted(self) -> int | None:
        """In how many updates it changed the step; None for a rule that does not count."""

    def state_dict(self) -> dict[str, Any]:
        """What a continued run needs, by names of its own."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse; ``state`` may hold more."""


class NoRule:
    """Leaves every step and the damping as they are."""

    columns: tuple[str, ...] = ()
    l2 = 0.0
    looks_at_batch = False

    def redirect(self, proposed: Proposed) -> Vector | None:
        """Nothing."""
        return None

    def candidates(self, damping: float, step: int) -> Sequence[float]:
        """None."""
        return ()

    def judge(self, proposed: Proposed) -> Tensor:
        """Never asked."""
        raise NotImplementedError

    def damping(self, taken: Taken) -> float | None:
        """The same."""
        return taken.damping

    @property
    def candidates_an_update(self) -> float:
        """None."""
        return 0.0

    @property
    def inner_products(self) -> float:
        """None."""
        return 0.0

    def multiply_adds(self, shapes: Sequence[LayerShape], part: float, between: float) -> float:
        """Nothing."""
        return 0.0

    def figures(self) -> Mapping[str, Tensor | float]:
        """None."""
        return {}

    def summary(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    @property
    def acted(self) -> int | None:
        """It never does."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
