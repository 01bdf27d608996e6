"""The public door: a method's direction in place of the gradient, for any model in any training loop."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kfbench.config.importing import import_object
from kfbench.config.method_table import METHODS
from kfbench.curvature.captured import Captured
from kfbench.curvature.gradient import LayerGradient
from kfbench.layers.contract import Layer
from kfbench.layers.finding import batch_mixing
from kfbench.preconditioners.contract import Preconditioner, Traits
from kfbench.problems.likelihoods import LIKELIHOODS, Likelihood, OutputFisher
from kfbench.step_rules.contract import Vector
from kfbench.updates.answers import Matrices
from kfbench.updates.collected import FisherBatches
from kfbench.updates.ranks.sharing import Several
from kfbench.updates.shared_forward import SharedForward, exact
from kfbench.updates.turn import Turn, Watch

# A step rule's: (direction, gradient'vector of a vector or of that direction) -> another direction, or None.
Redirect = Callable[[Vector, Callable[[Vector | None], Tensor]], Vector | None]
# Of two: how good a direction is.
Rate = Callable[[Vector, Callable[[Vector | None], Tensor]], Tensor]


class Preconditioning:
    """Replaces the gradients of a model by a method's direction, in any training loop.

    ::

        foof = Preconditioning(model, "foof", damping=1.0, T=100)
        with foof.capture():
            output = model(x)
        foof.backward(losses, output)   # losses [N], not reduced: sets .grad of every parameter
        optimizer.step()                # any torch.optim optimizer

    Parameters
    ----------
    model: an unchanged ``nn.Module``; fully connected layers and convolutions of every kind are preconditioned
        (docs/layers.md), all other parameters keep their plain gradient (a warning names them).
    method: the name of a preconditioned method in ``kfbench list``, or an object that meets
        ``preconditioners/contract.py``.
    damping: lambda, added to the curvature as the method defines.
    T, S: refresh every T updates, observing the S before it (default min(T, 50)).
    order: "independent" (apply, observe, refresh) or "same" (observe, refresh, apply).
    likelihood: "categorical" (logits [N, C]), "gaussian", "bernoulli" (logits), or an object like them, such
        as ``Categorical(class_dim=-1)`` for logits [N, T, C]; used where labels are sampled from the model.
    seed: of the sampled labels, which have a generator of their own.
    fisher_batches: number of a refresh -> batches (inputs, targets) of the points that a method draws
        for itself ("natural" in order "independent"); they go through the model batch by batch.
    on_nonfinite: "skip" leaves statistics that are not finite out of the method (one warning, then counted in
        ``skipped_batches``), "stop" raises FloatingPointError; what becomes of that update's step is the caller's.
    options: of the named method, such as ``ema=0.95`` or ``damping_kind="standard"``.

    Raises ValueError for values out of range, TypeError for options a method does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        method: str | Preconditioner,
        *,
        damping: float,
        T: int = 100,
        S: int | None = None,
        order: str | None = None,
        likelihood: str | Likelihood = "categorical",
        seed: int = 0,
        fisher_batches: FisherBatches | None = None,
        on_nonfinite: str = "skip",
        **options: Any,
    ) -> None:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise ValueError(
                f"the model is wrapped in {type(model).__name__}, whose reductions do not run here: give model.module, "
                "and average .grad over the ranks before the optimizer's step"
            )
        self.model = model
        self.method: Preconditioner = make_preconditioner(method, **options) if isinstance(method, str) else method
        if isinstance(likelihood, str) and likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {likelihood!r}")
        self.likelihood = LIKELIHOODS[likelihood]() if isinstance(likelihood, str) else likelihood
        self.device = next(model.parameters()).device
        self.label_generator = torch.Generator(self.device).manual_seed(seed)
        columns = Traits.of(self.method).fisher_columns
        self.output_fisher = OutputFisher(
            self.likelihood, self.label_generator, columns, lambda: bool(batch_mixing(model))
        )
        self.turn = Turn(self.method, damping, T, S, order, self.output_fisher, fisher_batches, on_nonfinite)
        self.forward = SharedForward(model, self.likelihood)
        self.forward.join(self.turn)

    @property
    def layers(self) -> dict[str, Layer]:
        """The preconditioned layers by name."""
        return self.forward.layers

    @property
    def left_out(self) -> dict[str, str]:
        """Modules that keep their plain gradient -> why."""
        return self.forward.coverage.left_out

    def plain_parameters(self) -> list[nn.Parameter]:
        """Those that keep their plain gradient now, for whoever moves them in another way."""
        return [p for p in self.forward.coverage.uncovered() if p.requires_grad]

    @property
    def damping(self) -> float:
        """lambda of the next refresh."""
        return self.turn.damping

    @property
    def T(self) -> int:
        """Updates between refreshes."""
        return self.turn.schedule.T

    @property
    def S(self) -> int:
        """Updates of these that observe."""
        return self.turn.schedule.S

    def over_processes(self, ranks: Several) -> None:
        """From now on this process sees a share of each batch."""
        self.turn.over_processes(ranks)

    def begin(self) -> None:
        """Before the forwards of an update: nothing, what was collected lies in the turn."""

    @property
    def skipped_batches(self) -> int:
        """How many batches were left out of the statistics because they were not finite."""
        return self.turn.skipped_batches

    def capture(self) -> AbstractContextManager[Captured]:
        """The context for one training forward (of one micro-batch); an error inside gives up the whole update."""
        return self.forward.capture()

    def backward(self, losses: Tensor, output: Tensor, loss_scale: float = 1.0) -> None:
        """Backpropagate ``losses`` [N] (not reduced) and leave the direction in every ``.grad``.

        ``loss_scale``: what the losses were multiplied by; the direction is that of losses without it.
        """
        self.accumulate(losses, output, loss_scale=loss_scale)
        self.finish()

    def accumulate(self, losses: Tensor, output: Tensor, keep_graph: bool = False, loss_scale: float = 1.0) -> None:
        """Take in one micro-batch; ``finish`` then treats all of them as one batch."""
        self.forward.collect(losses, output, keep_graph, loss_scale)

    def discard(self) -> None:
        """Give up the update that was begun with ``accumulate``."""
        self.forward.discard()

    def take_in(self, losses: Tensor, output: Tensor, part: Tensor) -> None:
        """One micro-batch of an update whose mean loss ``part`` [] is a share of."""
        self.accumulate(losses, output)

    def finish(
        self, redirect: Redirect | None = None, candidates: Sequence[float] = (), rate: Rate | None = None
    ) -> None:
        """Directions into ``.grad``, then (or before, by order) observe and refresh; then those that are only asked.

        ``redirect``, ``candidates`` (dampings that are tried) and ``rate`` are a step rule's.
        """

        def proposed(matrices: Matrices) -> Vector:
            pairs = self.turn.by_parameter(self.forward, matrices)
            return {p: laid_out_like(p, direction) for p, direction in pairs if direction is not None}

        def write(gradients: dict[str, LayerGradient], directions: Matrices) -> None:
            with torch.no_grad():
                direction = proposed(directions)
                inner = partial(self._inner, gradients, directions, direction)
                other = redirect(direction, inner) if redirect is not None else None
                set_gradients(self.model, direction if other is None else other)

        def judge(gradients: dict[str, LayerGradient], directions: Matrices) -> Tensor:
            assert rate is not None
            with torch.no_grad():
                direction = proposed(directions)
                return rate(direction, partial(self._inner, gradients, directions, direction))

        with exact(self.device):
            self.turn.take(self.forward, write, candidates, judge)
            self.forward.ask(self.forward.turns[1:])

    def _inner(
        self,
        gradients: dict[str, LayerGradient],
        directions: Matrices,
        direction: Vector,
        vector: Vector | None = None,
    ) -> Tensor:
        """``gradient'vector`` over all parameters [], of the direction itself where none is given.

        The direction of a parameter of no captured layer is its gradient.
        """
        if vector is None:
            products = [gradients[name].inner(matrix) for name, matrix in directions.items()]
        else:
            layers = ((layer, gradients[name]) for name, layer in self.layers.items())
            products = [G.inner(layer.matrix([vector[p] for p in layer.parameters])) for layer, G in layers]
        plain = [p for p in self.forward.coverage.plain_parameters() if p in direction]
        if plain and vector is None:
            products.append(squared_norm([direction[p] for p in plain]))
        elif plain and vector is not None:
            products.append(torch.stack([(direction[p] * vector[p]).sum() for p in plain]).sum())
        return torch.stack(products).sum()

    def finish_unwritten(self) -> None:
        """As ``finish``, but ``.grad`` stays as it is: some other optimizer moves the weights."""
        self.forward.ask(self.forward.turns)

    def warm_up(self, batches: Iterable[tuple[Tensor, Tensor]], counts: Sequence[int] | None = None) -> None:
        """Fill the statistics from (inputs, targets) before the first update, then refresh once.

        ``counts``: how many of the batches are for this method, and for each that was joined (default: all).
        """
        self.forward.warm_up(batches, counts)

    @contextmanager
    def watch(self, around: Watch) -> Iterator[None]:
        """Within the block every task of an update is done inside ``around(its name)``."""
        with self.turn.watch(around):
            yield

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of everything from which an interrupted run continues bit for bit, but the model."""
        shapes = {name: [layer.d_out, layer.d_in] for name, layer in self.layers.items()}
        state = self.turn.state_dict() | {"labels": self.label_generator.get_state(), "layers": list(self.layers)}
        return copy.deepcopy(state) | {"made_by": [type(self.method).__name__, self._dtype], "shapes": shapes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``; ValueError for the state of another method, model or precision."""
        self._refuse_other(state)
        self.turn.load_state_dict(copy.deepcopy(state))
        self.label_generator.set_state(state["labels"].cpu())  # where torch wants it, whatever the generator's device
        self.forward.coverage.keep(state["layers"])

    @property
    def _dtype(self) -> str:
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    def _refuse_other(self, state: Mapping[str, Any]) -> None:
        names, own = ", ".join(state["layers"]), ", ".join(self.layers)
        if unknown := [name for name in state["layers"] if name not in self.layers]:
            raise ValueError(f"the state is of a model with layers {names}; this one has no {unknown[0]}, but {own}")
        # States of before these were kept are believed.
        method, dtype = state.get("made_by", [type(self.method).__name__, self._dtype])
        if method != type(self.method).__name__:
            raise ValueError(f"the state is of a method {method}, this is {type(self.method).__name__}")
        if dtype != self._dtype:
            raise ValueError(f"the state is of a model in {dtype}, this one is in {self._dtype}")
        for name, shape in state.get("shapes", {}).items():
            if list(shape) != (mine := [self.layers[name].d_out, self.layers[name].d_in]):
                raise ValueError(f"the state is of a layer {name} of shape {list(shape)}, here it has {mine}")


def squared_norm(gradients: list[Tensor]) -> Tensor:
    """The sum of all squared entries []."""
    return torch.stack(torch._foreach_norm(gradients)).square().sum()


def set_gradients(model: nn.Module, direction: Vector) -> None:
    """Every ``.grad``; None where a parameter has no direction."""
    for parameter in model.parameters():
        parameter.grad = direction.get(parameter)


def laid_out_like(parameter: Tensor, direction: Tensor) -> Tensor:
    """The direction in the parameter's strides, precision and a memory of its own.

    Fused optimizers read memory in a line: of a transposed direction, or of a column of another one, they would
    give numbers to the wrong weights.
    """
    whole = direction.untyped_storage().nbytes() == direction.numel() * direction.element_size()
    if whole and direction.stride() == parameter.stride() and direction.dtype == parameter.dtype:
        return direction
    return torch.empty_like(parameter).copy_(direction)


def make_preconditioner(name: str, **options: Any) -> Preconditioner:
    """The named method with its registered defaults; TypeError for an option it does not have."""
    entry = METHODS.get(name)
    if entry is None or entry.preconditioner is None:
        named = [known for known, e in METHODS.items() if e.preconditioner]
        raise ValueError(f"method must be one of {', '.join(named)}, got {name!r}")
    make: Callable[..., Preconditioner] = import_object(entry.preconditioner, "method")
    defaults = {option: entry.options[option] for option in entry.constructor}
    return make(**(defaults | options))
