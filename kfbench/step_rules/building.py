"""From the options of a method to its step rule, its learning rates and when its momentum begins."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from kfbench.config.importing import import_object
from kfbench.config.method_table import DEFAULT_T1, DEFAULT_T2, METHODS
from kfbench.config.schema import Method
from kfbench.config.specs import find_method
from kfbench.errors import UsageError
from kfbench.step_rules.clipping import NormClipping
from kfbench.step_rules.closure import ClosureCalls
from kfbench.step_rules.contract import NoRule, StepRule
from kfbench.step_rules.greedy_gamma import GreedyGamma
from kfbench.step_rules.learning_rate import learning_rate_schedule
from kfbench.step_rules.levenberg_marquardt import LevenbergMarquardt
from kfbench.step_rules.momentum import LateMomentum
from kfbench.step_rules.rescale import Rescaling
from kfbench.step_rules.rest import RESTS, WithRest, main_of


def build_rule(method: Method, model: nn.Module, total: int, device: torch.device, lr: float | None) -> StepRule:
    """The step rule of ``total`` updates: that of ``step``, else norm clipping, where it is asked for and ours."""
    options, entry = method.options, find_method(method.opt)
    clips = options["clip_norm"] is not None and "clip_norm" not in entry.optimizer_options
    if entry.needs_closure:
        if clips:
            got = f"got clip_norm {options['clip_norm']!r}"
            raise UsageError(f"method {method.opt!r} evaluates gradients within its step, where none is clipped, {got}")
        return ClosureCalls()
    if options.get("step") is not None:
        return _build_rescaling(options, model)
    if not clips:
        return NoRule()
    check_learning_rate(method, lr, "clip_norm")
    return NormClipping(options["clip_norm"], options["clip_decay"] or 1.0, total, device)


def _build_rescaling(options: Mapping[str, Any], model: nn.Module) -> Rescaling:
    adapted, damping = (options.get("adapt") or "").split(","), options.get("damping") or 0.0
    start = options.get("model_damping")
    return Rescaling(
        list(model.parameters()),
        momentum=options["step"] == "rescale-momentum",
        model_damping=damping if start is None else start,
        l2=options["weight_decay"],
        lambda_rule=LevenbergMarquardt(options.get("T1") or DEFAULT_T1) if "damping" in adapted else None,
        gamma_rule=GreedyGamma(options.get("T2") or DEFAULT_T2) if "gamma" in adapted else None,
    )


def build_scheduler(
    method: Method, optimizer: torch.optim.Optimizer, total: int, per_epoch: int, quick: bool
) -> LambdaLR | None:
    """What sets lr of every update by ``lr_schedule``; None where it stays. UsageError for one that does not fit."""
    if method.options["lr_schedule"] == "constant":
        return None
    check_learning_rate(method, optimizer.param_groups[0].get("lr"), "lr_schedule")
    return LambdaLR(optimizer, learning_rate_schedule(method.opt, method.options, total, per_epoch, quick))


def build_late_momentum(method: Method, optimizer: torch.optim.Optimizer, per_epoch: int) -> LateMomentum | None:
    """What switches momentum on after ``momentum_after_epoch``; None where it is on from the start."""
    options = method.options
    if options.get("momentum_after_epoch") is None:
        return None
    return LateMomentum(main_of(optimizer), options["momentum"], options["momentum_after_epoch"] * per_epoch)


def with_rest(
    optimizer: torch.optim.Optimizer,
    options: Mapping[str, Any],
    parameters: Sequence[nn.Parameter],
    rest: Callable[[], Iterable[nn.Parameter]],
) -> torch.optim.Optimizer:
    """With a second one, as ``--opt`` of its name has it, for what a method does not precondition; else as it is."""
    if options.get("rest") not in RESTS:
        return optimizer
    entry = METHODS[options["rest"]]
    arguments = {name: entry.options[name] for name in entry.optimizer_options}
    if options.get("rest_lr") is not None:
        arguments["lr"] = options["rest_lr"]
    return WithRest(optimizer, import_object(entry.optimizer, "method")(parameters, **arguments), rest)


def check_learning_rate(method: Method, lr: float | None, option: str) -> None:
    """UsageError where the optimizer has none for this option to change."""
    if lr is None:
        value = method.options[option]
        raise UsageError(f"method {method.opt!r} has no learning rate for {option} {value!r} to change")
