"""Several methods along one trajectory: one is followed, all are asked for their direction on the same gradient."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kfbench.config.schema import Method
from kfbench.config.specs import find_method
from kfbench.errors import UsageError
from kfbench.layers.contract import Layer
from kfbench.preconditioners.plain import PlainGradient
from kfbench.similarity.asked import Asked, rule_of_asked
from kfbench.similarity.shadow import Shadow
from kfbench.step_rules.contract import NoRule
from kfbench.updates.answers import Direction
from kfbench.updates.batches import LABELS, Batch, stream_seed
from kfbench.updates.build import build_method, check_chain, check_turn
from kfbench.updates.evaluation import Seen
from kfbench.updates.preconditioning import Preconditioning
from kfbench.updates.schedule import AtLooks
from kfbench.updates.trainee import Trainee
from kfbench.updates.turn import Turn

# What the plain gradient is called among the preconditioned; no label of a method looks like this.
_GRADIENT = " gradient"


class Panel:
    """The followed method of ``trainee`` and those asked beside it, in the order of ``methods``.

    ``trainee.method`` is one of them. Every method has its own averages, schedule and order; what is
    captured and backpropagated is shared. UsageError for what does not fit, before anything runs.
    """

    def __init__(self, methods: tuple[Method, ...], trainee: Trainee) -> None:
        self.trainee = trainee
        self._named: dict[str, Preconditioning] = {}
        self.asked = [self._build(method) for method in methods]
        self.followed = next(each for each in self.asked if each.label == trainee.method.label)
        # It is what these are made from, or scaled by.
        if any(each.turn is None or each.rule.looks_at_batch for each in self.asked):
            self._named[_GRADIENT] = Preconditioning(trainee.model, PlainGradient(), damping=0.0, T=1)
        # The followed one leads: first in every forward, it draws its labels as if it were alone.
        leading = self.followed.label if self.followed.turn else next(iter(self._named))
        self.leader = self._named[leading]
        for label, other in self._named.items():
            if label != leading:
                self.leader.forward.join(other.turn)
        self.directions: dict[str, Direction] = {}
        self._listeners: list[Callable[[str], None]] = []

    @property
    def layers(self) -> dict[str, Layer]:
        """Those that are captured: the network that all similarities are about."""
        return self.leader.layers

    @property
    def turns(self) -> dict[str, Turn]:
        """Those of the methods that take any, by label."""
        return {each.label: each.turn for each in self.asked if each.turn}

    def listen(self, listener: Callable[[str], None]) -> None:
        """Call it with a label right after that method gave its direction, in the state that gave it."""
        self._listeners.append(listener)

    def add_observer(self, observer: Preconditioning) -> None:
        """One more, who sees what is captured but gives no direction; its labels are drawn after all others'."""
        self.leader.forward.join(observer.turn)

    def rest_between_looks(self, every: int) -> None:
        """Whoever is made anew from each batch, and remembers nothing, works only where somebody looks."""
        for each in self.asked:
            turn = each.turn
            if turn is None or each is self.followed or turn.schedule.T != 1 or turn.traits.apply_remembers:
                continue
            of_one_batch = turn.traits.newest_only or each.method.options.get("ema") == 0
            # One that applies before it observes uses the batch before, and own points are drawn by the update.
            if of_one_batch and turn.order == "same":
                turn.reschedule(AtLooks(every, refreshing=True))

    def _build(self, method: Method) -> Asked:
        trainee, entry = self.trainee, find_method(method.opt)
        if entry.needs_closure:
            raise UsageError(f"method {method.opt!r} evaluates the loss within its step: no direction of it to ask")
        if not entry.preconditioner:
            # SGD steps along its gradient; what another optimizer would do is tried out on a copy.
            is_gradient = method.opt == "sgd"
            return Asked(method, shadow=None if is_gradient else Shadow(method, trainee.model, trainee.likelihood))
        is_followed = method.label == trainee.method.label
        preconditioning: Any = trainee.preconditioning if is_followed else self._build_preconditioning(method)
        self._named[method.label] = preconditioning
        # That of the followed one acts as it trains.
        rule = NoRule() if is_followed else rule_of_asked(method, trainee)
        if not is_followed:
            preconditioning.turn.l2 = rule.l2
        return Asked(method, preconditioning.turn, rule=rule)

    def _build_preconditioning(self, method: Method) -> Preconditioning:
        trainee = self.trainee

        # Called at a refresh, when ``preconditioning`` has been made.
        def own_points(refresh: int) -> Iterator[Batch]:
            return trainee.points_for(preconditioning.turn, refresh)

        seed = stream_seed(trainee.seed, LABELS)
        _, preconditioning, _ = build_method(method, trainee.model, seed, trainee.likelihood, own_points)
        assert isinstance(preconditioning, Preconditioning), "only preconditioned methods are built here"
        check_turn(method, preconditioning.turn, trainee.run, trainee.data)
        check_chain(method, preconditioning, trainee.data)
        return preconditioning

    def warm_up_counts(self) -> list[int]:
        """How many warm-up batches each turn of the forward takes, the leader's first."""
        wanted = {id(each.turn): each.method.options.get("warmup_batches") or 0 for each in self.asked if each.turn}
        # The plain gradient and whoever keeps rows for the spectrum are nobody's wish, and take none.
        return [wanted.get(id(turn), 0) for turn in self.leader.forward.turns]

    def prepare(self, looking: bool) -> None:
        """Before the turns of an update: whose direction will be kept."""
        self.directions = {}
        for label, preconditioning in self._named.items():
            # Shadows need every gradient; of the rest only looks want to know.
            wanted = looking or (label == _GRADIENT and any(each.shadow for each in self.asked))
            preconditioning.turn.on_direction(partial(self._keep, label) if wanted else None)

    def _keep(self, label: str, direction: Direction) -> None:
        self.directions[label] = direction
        for listener in self._listeners:
            listener(label)

    def complete(self, seen: Seen | None) -> None:
        """After the turns, before the weights move: the directions of those that take none, and of rules.

        ``seen`` is the batch where a rule is to look at it: at looks.
        """
        gradient = self.directions.pop(_GRADIENT, None)
        written = {p: p.grad for p in self.trainee.model.parameters()}
        for each in self.asked:
            if each is self.followed and each.shadow is None:
                self.directions[each.label] = written  # as the step rule left it
            elif each.turn is None and gradient is not None:
                # Of the followed optimizer, what its step rule has left; the others see the gradient.
                given = written if each is self.followed else gradient
                self.directions[each.label] = each.shadow.step(given) if each.shadow else given
            elif seen is not None and gradient is not None and each.rule.looks_at_batch:
                own = self.directions[each.label]
                self.directions[each.label] = each.redirected(own, gradient, seen, self.trainee.step)

    def matrices(self, label: str) -> dict[str, Tensor]:
        """A direction as one matrix [d_out, d_in] for every captured layer."""
        return matrices(self.layers, self.directions[label])


@torch.no_grad()
def matrices(layers: Mapping[str, Layer], direction: Direction) -> dict[str, Tensor]:
    """A direction as one matrix [d_out, d_in] for every layer; zero where the loss does not use a parameter."""
    by_layer = {}
    for name, layer in layers.items():
        parts = [direction.get(p) for p in layer.parameters]
        filled = [torch.zeros_like(p) if g is None else g for g, p in zip(parts, layer.parameters, strict=True)]
        by_layer[name] = layer.matrix(filled)
    return by_layer
