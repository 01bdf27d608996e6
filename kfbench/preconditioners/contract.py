"""The contract that every method meets, ours and users' own alike."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from kfbench.curvature.counts import LayerShape
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import Statistics


class Preconditioner(Protocol):
    """A map from a gradient to a direction over the whole network, for a few captured layers.

    It knows nothing of steps, learning rates, schedules or ranks; ``updates/preconditioning.py``
    calls it. All tensors lie on the device and in the precision of the model.
    """

    fisher: str
    """Whose output gradients ``observe`` needs: none | sampled | full | empirical."""

    orders: tuple[str, ...]
    """The orders it supports, the default first: independent (apply, observe, refresh), so that
    statistics and gradient come from different batches, or same (observe, refresh, apply)."""

    own_points: int | None
    """Optional. In order "independent" each refresh is made from so many points of the method's own
    (None: as many as a batch), captured at the current weights right before ``apply``; the training
    batches are not observed. Without it there are no such points."""

    newest_only: bool
    """Optional: only what was observed last counts, so that S is 1 where none is given."""

    needs_rows: bool
    """Optional: its gradients keep their rows sample by sample (``LayerGradient.per_sample``), however
    many micro-batches they come from."""

    per_sample: bool
    """Optional: its rows must be gradients of single samples, which BatchNorm mixes: a warning names it."""

    apply_remembers: bool
    """Optional: False where ``apply`` leaves no trace in the method, so that where directions are wanted
    only now and then (``kfbench similarity``) it is not called in between. Without it, it always is."""

    def check(self, damping: float, points: int, vectors: int) -> None:
        """Optional: ValueError, before anything is trained, for damping, points of a refresh and vectors
        backpropagated for each of them that it cannot work with."""

    def observe(self, statistics: Statistics) -> None:
        """Take in one batch's rows: inputs [N, P, d_in], output gradients [K, N, P, d_out]."""

    def refresh(self, damping: float) -> None:
        """Do everything cubic, from what was observed so far."""

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """The direction [d_out, d_in] of every layer, with the last refresh; changes no gradient."""

    def multiply_adds(self, shape: LayerShape, vectors: int) -> dict[str, float]:
        """Optional: the count of one layer, for "statistics" (an observe), "refresh" and "apply" (each
        beyond forming the gradient), where ``vectors`` are backpropagated for the Fisher. Without it
        ``kfbench wallclock`` predicts nothing for the method."""

    def multiply_adds_network(self, shapes: list[LayerShape], vectors: int, points: int) -> dict[str, float]:
        """Optional, in place of ``multiply_adds``: the count of all layers at once, where each refresh is
        made from ``points``; "apply to the same batch" may stand beside "apply"."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which ``load_state_dict`` restores it bit for bit."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
