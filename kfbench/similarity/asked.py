"""One method beside the followed one: whichever kind it is, and how far its step rule goes along its direction."""

from functools import partial

import torch
from torch import Tensor

from kfbench.config.schema import Method
from kfbench.errors import UsageError
from kfbench.similarity.shadow import Shadow
from kfbench.step_rules.building import build_rule
from kfbench.step_rules.contract import NoRule, Proposed, StepRule, Vector
from kfbench.step_rules.learning_rate import learning_rate_schedule
from kfbench.updates.answers import Direction
from kfbench.updates.evaluation import Seen
from kfbench.updates.trainee import Trainee
from kfbench.updates.turn import Turn


class Asked:
    """One method: it takes turns, or is a torch optimizer's shadow, or neither: the gradient."""

    def __init__(
        self, method: Method, turn: Turn | None = None, shadow: Shadow | None = None, rule: StepRule | None = None
    ) -> None:
        self.method, self.label = method, method.label
        self.turn, self.shadow, self.rule = turn, shadow, rule or NoRule()

    def lr(self, trainee: Trainee) -> float | None:
        """The learning rate that it would have at the coming update; None for an optimizer without one."""
        options, lr = self.method.options, self.method.options.get("lr")
        if lr is None:
            return None
        made_of = self.method.opt, options, trainee.total, trainee.per_epoch, trainee.run.quick
        return float(lr) * learning_rate_schedule(*made_of)(trainee.step)

    def redirected(self, direction: Direction, gradient: Direction, seen: Seen, step: int) -> Direction:
        """The direction as far as its step rule would follow it on this batch; ``gradient`` is of the loss alone."""
        along = {p: d for p, d in direction.items() if d is not None}
        own = {p: g for p in along if (g := gradient.get(p)) is not None}

        def inner(vector: Vector | None) -> Tensor:
            v, l2 = along if vector is None else vector, self.rule.l2
            with torch.no_grad():
                return torch.stack([((g + l2 * p) * v[p]).sum() for p, g in own.items()]).sum()

        part = self.method.options.get("tau2") or 1.0
        moved = self.rule.redirect(Proposed(along, inner, None, step, partial(seen.fisher, part=part)))
        return direction if moved is None else {**direction, **moved}


def rule_of_asked(method: Method, trainee: Trainee) -> StepRule:
    """What scales the direction of a method that takes no step of its own; UsageError for what follows its steps."""
    options = method.options
    if options.get("tau1") is not None:
        raise UsageError(
            f"method {method.label!r} is only asked and observes what all do: tau1 is not accepted, got "
            f"{options['tau1']}"
        )
    if options.get("step") is None:
        return NoRule()
    if options["step"] != "rescale" or options.get("adapt") is not None:
        got = f"step {options['step']!r}" + (f" with adapt {options['adapt']!r}" if options.get("adapt") else "")
        raise UsageError(
            f"method {method.label!r} is only asked and takes no steps, so step must be constant or rescale, without "
            f"adapt, got {got}"
        )
    return build_rule(method, trainee.model, trainee.total, trainee.device, None)
