"""Damped inverses of matrices that are kept in blocks, and restoring them."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from kfbench.curvature.linalg import DampedInverse
from kfbench.layers.moments import Form
from kfbench.layers.shifts import Shifts
from kfbench.layers.structured import ChannelGroups, TapMean

_FORMS: dict[str, Callable[..., Form]] = {Shifts.kind: Shifts.of} | {
    form.kind: form for form in (TapMean, ChannelGroups)
}


class BlockInverse:
    """``(M + lambda I)^-1`` of a matrix that is kept in blocks, acting on rows."""

    def __init__(self, form: Form, blocks: list[DampedInverse]) -> None:
        self.form, self.blocks = form, blocks

    def __call__(self, rows: Float[Tensor, "R d"]) -> Float[Tensor, "R d"]:
        """``rows (M + lambda I)^-1``."""
        return self.form.on_blocks(rows, self.blocks)

    def state_dict(self) -> dict[str, Any]:
        """Those of the blocks, and how they make the matrix."""
        return {"form": self.form.describe(), "blocks": [block.state_dict() for block in self.blocks]}


def inverse_from_state(state: dict[str, Any]) -> DampedInverse | BlockInverse:
    """Restore either, bit for bit."""
    if "blocks" not in state:
        return DampedInverse.from_state(state)
    return BlockInverse(form_of(state["form"]), [DampedInverse.from_state(block) for block in state["blocks"]])


def form_of(values: list[Any]) -> Form:
    """As ``describe`` told it; lists, which a file may have made of tuples, are tuples again."""
    kind, *fields = values
    return _FORMS[str(kind)](*(tuple(value) if isinstance(value, list) else value for value in fields))
