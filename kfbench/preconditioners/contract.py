"""The contract that every method meets, ours and users' own alike: the verbs, and what it may say of itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from kfbench.curvature.approximations import Approximation
from kfbench.curvature.averages import Placement
from kfbench.curvature.captured import Wanted
from kfbench.curvature.counts import LayerShape
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import LayerStatistics
from kfbench.layers.estimate import EXACT, Estimate

# What a method observes of one batch, layer by layer.
Observed = Mapping[str, LayerStatistics] | Mapping[str, LayerGradient]

# Whose labels the Fisher is made from, in a method that has one; "none" in the others.
FISHERS = ("sampled", "full", "empirical")
# All that ``fisher`` may be; "recursion" goes from layer to layer instead (``curvature/recursion.py``), "gradients"
# has none: the mean gradients themselves are observed.
FISHER_KINDS = ("none", *FISHERS, "recursion", "gradients")


@runtime_checkable  # tests check annotations at run time
class Sharing(Protocol):
    """Several processes at one method: each sees its own rows of a batch, moments and gradients are of the whole."""

    @property
    def placement(self) -> Placement | None:
        """How refreshes are divided; None where each process makes them all."""

    def means(self, own: Sequence[Tensor]) -> list[Tensor]:
        """Over the whole batch, of what each process has as a mean over its own rows."""


class Preconditioner(Protocol):
    """A map from a gradient to a direction over the whole network, for a few captured layers.

    It knows nothing of steps, learning rates, schedules or ranks; ``updates/turn.py`` calls it. All tensors
    lie on the device and in the precision of the model. What else a method may say of itself: ``Traits``.
    """

    fisher: str
    """Whose output gradients ``observe`` needs: none | sampled | full | empirical; "recursion" needs ``link`` of every
    layer in their place. With "gradients" ``observe`` is given the mean gradient of every layer, a ``LayerGradient`` of
    the whole batch, in place of statistics, at every update (S = T) unless told otherwise."""

    orders: tuple[str, ...]
    """The orders it supports, the default first: independent (apply, observe, refresh), so that
    statistics and gradient come from different batches, or same (observe, refresh, apply)."""

    def observe(self, statistics: Any) -> None:
        """Take in one batch: ``Statistics``, rows of inputs [N, P, d_in] and output gradients [K, N, P, d_out], or
        what ``fisher`` names in their place."""

    def refresh(self, damping: float) -> None:
        """Do everything cubic, from what was observed so far."""

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """The direction [d_out, d_in] of every layer, with the last refresh; changes no gradient."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which ``load_state_dict`` restores it bit for bit."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""


@dataclass(frozen=True)
class Traits:
    """What a method says of itself, in attributes and methods of these names, and what holds where it says nothing.

    Read once, by ``of``, when the method is put to work.
    """

    fisher: str = ""
    orders: tuple[str, ...] = ()

    fisher_columns: int | None = None
    """With fisher "full": so many random combinations of the columns of the output Fisher's root stand for all of
    them (None: the columns themselves). Their outer products are right in the mean."""

    own_points: int | None = None
    """In order "independent" each refresh is made from so many points of the method's own (None: as many
    as a batch), captured at the current weights right before ``apply``; the training batches are not
    observed. A method without the attribute has no such points, see ``draws_points``."""

    draws_points: bool = False
    """Whether there is an ``own_points`` at all."""

    newest_only: bool = False
    """Only what was observed last counts, so that S is 1 where none is given."""

    needs_rows: bool = False
    """Its gradients keep their rows sample by sample (``LayerGradient.per_sample``), however many
    micro-batches they come from."""

    moments_only: bool = False
    """``observe`` asks each layer for ``input_moment`` and ``output_moment`` alone, so that no output gradient
    need be kept until then."""

    estimate: Estimate = EXACT
    """How it wants its moments to be estimated."""

    per_sample: bool = False
    """Its rows must be gradients of single samples, which BatchNorm mixes: a warning names it."""

    takes_penalty: bool = True
    """False where directions follow from single samples alone, so that a gradient of no sample has none."""

    chain: bool = False
    """The layers must be a chain (``curvature/chain.py``; ValueError at the first forward where they are none), of
    which ``observe`` gets all, in the order in which they are called. Where one comes, goes or changes, the next update
    observes and refreshes before it applies."""

    apply_remembers: bool = True
    """False where ``apply`` leaves no trace in the method, so that where directions are wanted only now and
    then (``kfbench similarity``) it is not called in between."""

    counts_retries: bool = False
    """Whether there is a ``damping_retries``: how many factors needed more damping than asked for."""

    over_processes: Callable[[Sharing], None] | None = None
    """Told, before training, that several processes see a share of each batch each, and how their means are joined.
    Without it a method works there if it asks for nothing but moments or mean gradients, and refreshes in each."""

    numbers_sent: Callable[[LayerShape], dict[str, int]] | None = None
    """How many numbers of one layer then travel beyond gradient and factors: at every "update", "observe", "refresh",
    and of a refresh that is divided what is "handed on"."""

    check: Callable[[float, int, int], None] = lambda damping, points, vectors: None
    """ValueError, before anything is trained, for damping, points of a refresh and vectors backpropagated
    for each of them that it cannot work with."""

    multiply_adds: Callable[[LayerShape, int], dict[str, float]] | None = None
    """The count of one layer, for "statistics" (an observe), "refresh" and "apply" (each beyond forming the
    gradient), where so many vectors are backpropagated for the Fisher. Without it, and without
    ``multiply_adds_network``, ``kfbench wallclock`` predicts nothing for the method."""

    multiply_adds_network: Callable[[list[LayerShape], int, int], dict[str, float]] | None = None
    """In place of ``multiply_adds``: the count of all layers at once, for vectors and points of a refresh;
    "apply to the same batch" may stand beside "apply"."""

    approximation: Callable[[str], Approximation | None] | None = None
    """The matrix that stands for the Fisher of the named layer as things are: asked right after ``apply``, or
    after a refresh where it is ``approximation_of_refresh``; None for a layer that it does not know."""

    forget: Callable[[Collection[str]], None] | None = None
    """Throw away what is kept of these layers, which are others now; without it their old shapes must still do."""

    approximation_of_refresh: bool = False
    """Whether that matrix is in force from one refresh to the next, though what it is made from goes on."""

    @property
    def of_gradients(self) -> bool:
        """Whether it observes mean gradients in place of statistics."""
        return self.fisher == "gradients"

    def default_S(self, T: int) -> int | None:
        """S where none is given; None for the usual one."""
        return 1 if self.newest_only else T if self.of_gradients else None

    @property
    def knows_chains_alone(self) -> bool:
        """Whether a model whose layers are no chain is refused."""
        return self.chain or self.fisher == "recursion"

    @property
    def kind(self) -> str:
        """What is made of a captured forward; methods of one kind share it."""
        return self.fisher if self.fisher_columns is None else f"{self.fisher_columns} columns"

    def vectors(self, outputs: int) -> int:
        """How many vectors are backpropagated for each point."""
        return self.fisher_columns or vectors_of(self.fisher, outputs)

    @property
    def moments(self) -> frozenset[Estimate]:
        """Which moments of output gradients it observes; none where it wants the rows themselves."""
        return frozenset([self.estimate]) if self.moments_only else frozenset()

    def want(self, wanted: Wanted, observing: bool) -> None:
        """Say what this method needs of the backward pass of the losses, beyond the cheapest."""
        wanted.rows |= self.needs_rows
        wanted.matrices |= not self.needs_rows
        if observing and self.fisher == "empirical":
            wanted.moments |= self.moments
            wanted.rows |= not self.moments

    @classmethod
    def of(cls, method: Any) -> Traits:
        """What this method says; an attribute that it lacks has its default."""
        said = {field.name: getattr(method, field.name) for field in fields(cls) if hasattr(method, field.name)}
        # By presence alone: own_points may be None and damping_retries 0.
        extra = {"draws_points": hasattr(method, "own_points"), "counts_retries": hasattr(method, "damping_retries")}
        return cls(**{**said, **extra})


def vectors_of(fisher: str, outputs: int) -> int:
    """How many vectors are backpropagated for each point."""
    return {"none": 0, "recursion": 0, "gradients": 0, "empirical": 1, "sampled": 1, "full": outputs}[fisher]
