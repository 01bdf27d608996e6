"""The public door: a method's direction in place of the gradient, for any model in any training loop."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
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
from kfbench.problems.likelihoods import LIKELIHOODS, Likelihood
from kfbench.problems.output_fisher import OutputFisher
from kfbench.updates.shared_forward import SharedForward, exact
from kfbench.updates.turn import FisherBatches, Turn, Watch

# From ``gradient'direction`` over all parameters [], computed when asked, what a step rule multiplies the
# direction by []; None to leave it as it is.
Scale = Callable[[Callable[[], Tensor]], Tensor | None]


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

    def finish(self, scale: Scale | None = None) -> None:
        """Directions into ``.grad``, then (or before, by order) observe and refresh; then those that are only asked.

        ``scale`` is a step rule's.
        """

        def write(gradients: dict[str, LayerGradient], directions: dict[str, Tensor]) -> None:
            with torch.no_grad():
                for parameter, direction in self.turn.by_parameter(self.forward, directions):
                    parameter.grad = None if direction is None else laid_out_like(parameter, direction)
                if scale is not None:  # only now, since the product reads the plain gradients from .grad
                    scale_gradients(self.model, scale(lambda: self._product(gradients, directions)))

        with exact(self.device):
            self.turn.take(self.forward, write)
            self.forward.ask(self.forward.turns[1:])

    def _product(self, gradients: dict[str, LayerGradient], directions: dict[str, Tensor]) -> Tensor:
        """``gradient'direction`` over all parameters []; of those with a plain gradient its squared norm."""
        products = [gradients[name].inner(direction) for name, direction in directions.items()]
        plain = [p.grad for p in self.forward.coverage.plain_parameters() if p.grad is not None]
        return torch.stack([*products, *([squared_norm(plain)] if plain else [])]).sum()

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


def scale_gradients(model: nn.Module, factor: Tensor | None) -> None:
    """Every ``.grad`` times ``factor`` [] (None: left as it is), as new tensors: a method may keep what it returned."""
    if factor is None:
        return
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad = parameter.grad * factor


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
