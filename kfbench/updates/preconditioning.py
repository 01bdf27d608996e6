"""One update: the only place where the order of capture, apply, observe and refresh is decided."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kfbench.config.importing import import_object
from kfbench.config.method_table import METHODS
from kfbench.curvature.capture import Captured, capture
from kfbench.curvature.coverage import Coverage
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.layers import Layer
from kfbench.curvature.statistics import LayerStatistics, join_statistics
from kfbench.errors import described
from kfbench.preconditioners.contract import Preconditioner
from kfbench.problems.likelihoods import LIKELIHOODS, Likelihood
from kfbench.step_rules.clipping import scale_gradients, squared_norm
from kfbench.updates.isolation import forward_isolated
from kfbench.updates.schedule import Amortisation

# Refresh number -> (inputs, targets) of the points that a method draws for itself.
FisherBatches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]

# What each parameter is to move against; None where the loss does not use it.
Direction = Mapping[nn.Parameter, Tensor | None]

# What a method may ask to be backpropagated.
FISHERS = ("none", "sampled", "full", "empirical")


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
        if damping < 0:
            raise ValueError(f"damping must be at least 0, got {damping}")
        self.model, self.damping = model, damping
        self.method: Preconditioner = make_preconditioner(method, **options) if isinstance(method, str) else method
        fisher = getattr(self.method, "fisher", None)
        if fisher not in FISHERS:
            raise ValueError(f"fisher of the method must be one of {', '.join(FISHERS)}, got {fisher!r}")
        newest_only = getattr(self.method, "newest_only", False)
        self.schedule = Amortisation.of(T, 1 if S is None and newest_only else S)
        self.order = order or self.method.orders[0]
        if self.order not in self.method.orders:
            raise ValueError(f"order must be one of {', '.join(self.method.orders)}, got {order!r}")
        self.has_own_points = self.order == "independent" and hasattr(self.method, "own_points")
        if self.has_own_points and fisher_batches is None:
            raise ValueError("in order 'independent' the method draws points of its own: give fisher_batches, got None")
        self.fisher_batches = fisher_batches
        if isinstance(likelihood, str) and likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {likelihood!r}")
        self.likelihood = LIKELIHOODS[likelihood]() if isinstance(likelihood, str) else likelihood
        self.step = self.refreshes = 0
        self._refreshed = self._warned_of_retries = False
        # Methods that are asked about the same captured forwards (``invite``); only this one's direction is written.
        self.companions: list[Preconditioning] = []
        # Told of the direction right after ``apply``, before whatever comes later in the order.
        self.on_applied: Callable[[Direction], None] | None = None
        self.coverage = Coverage(model, getattr(self.method, "per_sample", False))
        device = next(model.parameters()).device
        self.label_generator = torch.Generator(device).manual_seed(seed)
        self._captured: Captured | None = None
        self._gradients: list[dict[str, LayerGradient]] = []
        self._statistics: list[dict[str, LayerStatistics]] = []
        self._plain: list[tuple[int, list[Tensor | None]]] = []

    @property
    def layers(self) -> dict[str, Layer]:
        """The preconditioned layers by name."""
        return self.coverage.layers

    @property
    def left_out(self) -> dict[str, str]:
        """Modules that keep their plain gradient -> why."""
        return self.coverage.left_out

    @property
    def observing(self) -> bool:
        """Whether the coming update feeds the statistics; before any refresh it always does."""
        return not self.has_own_points and (self.schedule.observes(self.step) or not self._refreshed)

    def points_of_a_refresh(self, batch_size: int) -> int:
        """How many points a refresh is made from, where they are of one batch or the method's own."""
        wanted = getattr(self.method, "own_points", None) or batch_size
        return wanted if self.has_own_points else min(wanted, batch_size)

    def capture(self) -> capture:
        """The context for one training forward (of one micro-batch)."""
        block = capture(self.layers, self.coverage.plain_parameters())
        self._captured = block.captured
        return block

    def backward(self, losses: Tensor, output: Tensor) -> None:
        """Backpropagate ``losses`` [N] (not reduced) and leave the direction in every ``.grad``."""
        self.accumulate(losses, output)
        self.finish()

    def accumulate(self, losses: Tensor, output: Tensor, keep_graph: bool = False) -> None:
        """Take in one micro-batch; ``finish`` then treats all of them as one batch."""
        if losses.dim() != 1:
            raise ValueError(f"losses must be per sample, [N], got shape {list(losses.shape)}: use reduction='none'")
        captured, self._captured = self._captured, None
        if captured is None:
            raise RuntimeError("no forward was captured: run the model inside 'with preconditioning.capture():'")
        if not self.coverage.verified:
            self.coverage.verify(captured, losses)
        together = (self, *self.companions)
        for each in together:  # labels are drawn first, and only the gradients may free the graph
            if each.observing:
                each._statistics.append(each._observed(captured, losses, output))
        for each in together:
            each._gradients.append(captured.gradients(losses, keep_graph))
            each._plain.append((len(losses), captured.plain_gradients(losses)))

    def finish(self, factor: Callable[[Tensor], Tensor] | None = None) -> None:
        """Directions into ``.grad``, then (or before, by order) observe and refresh.

        ``factor`` is a step rule: from the product of gradient and direction over all parameters [],
        what the direction is multiplied by [].
        """

        def write(gradients: dict[str, LayerGradient], directions: dict[str, Tensor]) -> None:
            self._write(directions)
            if factor is not None:
                self._scale(gradients, directions, factor)

        self._take_turn(write)
        _ask(self.companions)

    def finish_unwritten(self) -> None:
        """As ``finish``, but ``.grad`` stays as it is: some other optimizer moves the weights."""
        _ask([self, *self.companions])

    def _take_turn(self, write: Callable[[dict[str, LayerGradient], dict[str, Tensor]], None] | None = None) -> None:
        """One update of this method: apply, observe and refresh in its order."""
        keep_rows = getattr(self.method, "needs_rows", False)
        gradients = {n: LayerGradient.join([part[n] for part in self._gradients], keep_rows) for n in self.layers}
        statistics = join_statistics(self._statistics) if self._statistics else None
        before = self.observes_first
        if before:
            self._observe_and_refresh(statistics)
        if write is not None or self.on_applied is not None or getattr(self.method, "apply_remembers", True):
            directions = self.method.apply(gradients)
            if write is not None:
                write(gradients, directions)
            if self.on_applied is not None:
                self.on_applied(dict(self._by_parameter(directions)))
        if not before:
            self._observe_and_refresh(statistics)
        self._gradients, self._statistics, self._plain = [], [], []
        self.step += 1

    @property
    def observes_first(self) -> bool:
        """Whether the coming update observes and refreshes before it applies.

        Without warm-up there is nothing to apply yet, so the first update uses its own batch.
        """
        return self.has_own_points or self.order == "same" or not self._refreshed

    def invite(self, companions: Sequence["Preconditioning"]) -> None:
        """From now on one captured forward serves these as well: each keeps its schedule and its order.

        They share this one's coverage, so that what is verified for one is verified for all. Labels of
        one kind are drawn once a forward, by the first that observes it, this one before all others.
        """
        for companion in companions:
            self.coverage.per_sample |= companion.coverage.per_sample
            companion.coverage = self.coverage
        self.companions = list(companions)

    def warm_up(self, batches: Iterable[tuple[Tensor, Tensor]], counts: Sequence[int] | None = None) -> None:
        """Fill the statistics from (inputs, targets) before the first update, then refresh once.

        BatchNorm buffers and the random state of dropout come out as they went in. ``counts``: how many
        of the batches are for this method, and for each companion (default: all).
        """
        together = [self, *self.companions]
        limits = [math.inf] * len(together) if counts is None else counts
        seen = 0
        with forward_isolated(self.model):
            for x, y in batches:
                captured, losses, output = self._forward_captured(x, y)
                for each, limit in zip(together, limits, strict=True):
                    if seen < limit:
                        each.method.observe(each._observed(captured, losses, output))
                seen += 1
        for each, limit in zip(together, limits, strict=True):
            if min(seen, limit):
                each._refresh()
        self.coverage.verified = False  # the losses of the coming updates may hold more than the likelihood's

    def state_dict(self) -> dict[str, Any]:
        """Everything from which an interrupted run continues bit for bit, but the model."""
        return {
            "method": self.method.state_dict(),
            "step": self.step,
            "refreshed": self._refreshed,
            "labels": self.label_generator.get_state(),
            "layers": list(self.layers),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.method.load_state_dict(state["method"])
        self.step, self._refreshed = state["step"], state["refreshed"]
        self.label_generator.set_state(state["labels"].cpu())
        self.coverage.keep(state["layers"])

    def _forward_captured(self, x: Tensor, y: Tensor) -> tuple[Captured, Tensor, Tensor]:
        """(captured, losses [N], output) of a batch that no update is made of."""
        with self.capture():
            output = self.model(x)
        captured, self._captured = self._captured, None
        assert captured is not None
        losses = self.likelihood.loss(output, y)
        if not self.coverage.verified:
            self.coverage.verify(captured, losses)
        return captured, losses, output

    def _own_statistics(self) -> dict[str, LayerStatistics]:
        """Those of the method's own points, at the current weights."""
        assert self.fisher_batches is not None
        with forward_isolated(self.model):
            batches = self.fisher_batches(self.step // self.schedule.T)
            parts = [self._observed(*self._forward_captured(x, y)) for x, y in batches]
        if not parts:
            raise ValueError(f"fisher_batches gave no batch at update {self.step}")
        return join_statistics(parts)

    def _observed(self, captured: Captured, losses: Tensor, output: Tensor) -> dict[str, LayerStatistics]:
        return captured.statistics(self.method.fisher, losses, output, self._fisher_vectors)

    def _fisher_vectors(self, output: Tensor, fisher: str) -> Tensor:
        if fisher == "full":
            return self.likelihood.full_vectors(output)
        return self.likelihood.sampled_vectors(output, self.label_generator)

    def _observe_and_refresh(self, statistics: dict[str, LayerStatistics] | None) -> None:
        # With points of its own a method refreshes where a period begins: the direction uses this very refresh.
        due = self.schedule.begins if self.has_own_points else self.schedule.refreshes
        refreshing = due(self.step) or not self._refreshed
        if self.has_own_points and refreshing:
            statistics = self._own_statistics()
        if statistics is not None:
            self.method.observe(statistics)
        if refreshing:
            self._refresh()

    def _refresh(self) -> None:
        self.method.refresh(self.damping)
        self._refreshed = True
        self.refreshes += 1
        if self.damping_retries and not self._warned_of_retries:
            warnings.warn(
                f"a factor was not positive definite in floating point with damping {self.damping:g}, so it was "
                "damped more; raise --damping or use --dtype float64 (further cases are only counted)",
                stacklevel=2,
            )
            self._warned_of_retries = True

    @property
    def damping_retries(self) -> int:
        """How many factors needed more damping than asked for."""
        return getattr(self.method, "damping_retries", 0)

    @torch.no_grad()
    def _write(self, directions: dict[str, Tensor]) -> None:
        for parameter, direction in self._by_parameter(directions):
            parameter.grad = direction

    def _by_parameter(self, directions: dict[str, Tensor]) -> Iterator[tuple[nn.Parameter, Tensor | None]]:
        """The direction of every parameter; those of no captured layer keep their plain gradient."""
        for name, layer in self.layers.items():
            yield from zip(layer.parameters, layer.split(directions[name]), strict=True)
        total = sum(n for n, _ in self._plain)
        for index, parameter in enumerate(self.coverage.plain_parameters()):
            parts = [(n, g) for n, grads in self._plain if (g := grads[index]) is not None]
            plain = sum((g * (n / total) for n, g in parts), torch.zeros_like(parameter)) if parts else None
            yield parameter, plain

    @torch.no_grad()
    def _scale(
        self, gradients: dict[str, LayerGradient], directions: dict[str, Tensor], factor: Callable[[Tensor], Tensor]
    ) -> None:
        products = [gradients[name].inner(direction) for name, direction in directions.items()]
        plain = [p.grad for p in self.coverage.plain_parameters() if p.grad is not None]
        products += [squared_norm(plain)] if plain else []
        scale_gradients(self.model.parameters(), factor(torch.stack(products).sum()))


def _ask(those: Sequence[Preconditioning]) -> None:
    """Their turns; RuntimeError names the one that fails, since whatever is followed has not."""
    for each in those:
        try:
            each._take_turn()
        except Exception as error:
            name = type(each.method).__name__
            raise RuntimeError(f"{name}, which is only asked, failed: {described(error)}") from error


def make_preconditioner(name: str, **options: Any) -> Preconditioner:
    """The named method with its registered defaults; TypeError for an option it does not have."""
    entry = METHODS.get(name)
    if entry is None or entry.preconditioner is None:
        named = [known for known, e in METHODS.items() if e.preconditioner]
        raise ValueError(f"method must be one of {', '.join(named)}, got {name!r}")
    make: Callable[..., Preconditioner] = import_object(entry.preconditioner, "method")
    defaults = {option: entry.options[option] for option in entry.constructor}
    return make(**(defaults | options))
