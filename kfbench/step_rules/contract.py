"""What every step rule must have: it acts between a method's direction and the optimizer's step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Proposed:
    """A direction that the optimizer has not stepped along yet."""

    product: Callable[[], Tensor]
    """``gradient'direction`` over all parameters [], on the device; computed where a rule asks for it."""
    lr: float | None
    step: int


@dataclass(frozen=True)
class Taken:
    """The step that was taken, at the damping in force; None where the method has none."""

    damping: float | None
    step: int


class StepRule(Protocol):
    """How far the step goes, and which damping follows it."""

    def scale(self, proposed: Proposed) -> Tensor | None:
        """What the direction is multiplied by [], on the device; None to leave it as it is."""

    def damping(self, taken: Taken) -> float | None:
        """The damping from the next update on."""

    @property
    def acted(self) -> int | None:
        """In how many updates it changed the step; None for a rule that never does."""

    def state_dict(self) -> dict[str, Any]:
        """What a continued run needs, by names of its own."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse; ``state`` may hold more."""


class NoRule:
    """Leaves every step and the damping as they are."""

    acted = None

    def scale(self, proposed: Proposed) -> None:
        """Nothing."""

    def damping(self, taken: Taken) -> float | None:
        """The same."""
        return taken.damping

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
