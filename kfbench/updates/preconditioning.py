"""The public door: a method's direction in place of the gradient, for any model in any training loop."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kfbench.config.importing import import_object
from kfbench.config.method_table import METHODS
from kfbench.curvature.capture import capture
from kfbench.curvature.contract import Layer
from kfbench.curvature.gradient import LayerGradient
from kfbench.preconditioners.contract import Preconditioner
from kfbench.problems.likelihoods import LIKELIHOODS, Likelihood
from kfbench.updates.shared_forward import SharedForward
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
    model: an unchanged ``nn.Module``; Linear and Conv2d layers are preconditioned, all other
        parameters keep their plain gradient (a warning names them).
    method: the name of a preconditioned method in ``kfbench list``, or an object that meets
        ``preconditioners/contract.py``.
    damping: lambda, added to the curvature as the method defines.
    T, S: refresh every T updates, observing the S before it (default min(T, 50)).
    order: "independent" (apply, observe, refresh) or "same" (observe, refresh, apply).
    likelihood: "categorical" (logits), "gaussian", "bernoulli" (logits), or an object like them;
        used where labels are sampled from the model.
    seed: of the sampled labels, which have a generator of their own.
    fisher_batches: number of a refresh -> batches (inputs, targets) of the points that a method draws
        for itself ("natural" in order "independent"); they go through the model batch by batch.
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
        **options: Any,
    ) -> None:
        self.model = model
        self.method: Preconditioner = make_preconditioner(method, **options) if isinstance(method, str) else method
        self.turn = Turn(self.method, damping, T, S, order, self._vectors, fisher_batches)
        if isinstance(likelihood, str) and likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {likelihood!r}")
        self.likelihood = LIKELIHOODS[likelihood]() if isinstance(likelihood, str) else likelihood
        self.forward = SharedForward(model, self.likelihood)
        self.forward.join(self.turn)
        self.label_generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)

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

    def capture(self) -> capture:
        """The context for one training forward (of one micro-batch)."""
        return self.forward.capture()

    def backward(self, losses: Tensor, output: Tensor) -> None:
        """Backpropagate ``losses`` [N] (not reduced) and leave the direction in every ``.grad``."""
        self.accumulate(losses, output)
        self.finish()

    def accumulate(self, losses: Tensor, output: Tensor, keep_graph: bool = False) -> None:
        """Take in one micro-batch; ``finish`` then treats all of them as one batch."""
        self.forward.collect(losses, output, keep_graph)

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
                    parameter.grad = direction
                if scale is not None:
                    scale_gradients(self.model, scale(lambda: self._product(gradients, directions)))

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
        """Everything from which an interrupted run continues bit for bit, but the model."""
        return self.turn.state_dict() | {"labels": self.label_generator.get_state(), "layers": list(self.layers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.turn.load_state_dict(state)
        self.label_generator.set_state(state["labels"].cpu())
        self.forward.coverage.keep(state["layers"])

    def _vectors(self, output: Tensor, fisher: str) -> Tensor:
        if fisher == "full":
            return self.likelihood.full_vectors(output)
        return self.likelihood.sampled_vectors(output, self.label_generator)


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


def make_preconditioner(name: str, **options: Any) -> Preconditioner:
    """The named method with its registered defaults; TypeError for an option it does not have."""
    entry = METHODS.get(name)
    if entry is None or entry.preconditioner is None:
        named = [known for known, e in METHODS.items() if e.preconditioner]
        raise ValueError(f"method must be one of {', '.join(named)}, got {name!r}")
    make: Callable[..., Preconditioner] = import_object(entry.preconditioner, "method")
    defaults = {option: entry.options[option] for option in entry.constructor}
    return make(**(defaults | options))
