"""What several processes cannot share exactly: said in one sentence before the first update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from kfbench.config.schema import Run
from kfbench.errors import UsageError
from kfbench.layers.estimate import EXACT
from kfbench.layers.finding import batch_mixing
from kfbench.preconditioners.contract import Traits
from kfbench.step_rules.closure import ClosureCalls
from kfbench.updates.isolation import forward_isolated
from kfbench.updates.ranks.synchronised import normalising

if TYPE_CHECKING:
    from kfbench.updates.trainee import Trainee

# Of two forwards of the same samples beside others: far above rounding, far below what normalising by a batch does.
_ALIKE = 1e-3


def check_shared(trainee: Trainee, model: str, size: int) -> None:
    """UsageError where ``size`` processes would not do what one does; ``model`` is what the user calls it."""
    opt, run = trainee.method.opt, trainee.run
    turn = trainee.preconditioning.turn
    if trainee.preconditioning.T is not None and (why := _why_not_method(turn.traits, turn.has_own_points)):
        raise UsageError(f"method {opt!r} {why}: one process only, got {size}")
    if why := _why_not_run(trainee):
        raise UsageError(f"{why}: one process only, got {size}")
    if smallest := _smallest_part(run, len(trainee.data.train_inputs), size):
        raise UsageError(
            f"micro_batch_size is {run.micro_batch_size}, which leaves a part of {smallest} of a batch, fewer than the "
            f"{size} processes that share each part; take another one, or none"
        )
    if why := _why_not_model(trainee):
        raise UsageError(f"model {model!r} {why}: one process only, got {size}")


def _why_not_method(traits: Traits, has_own_points: bool) -> str | None:
    if has_own_points or traits.newest_only:
        return "keeps the rows of a whole batch"
    if traits.chain or traits.fisher == "recursion":
        return "couples layers by rows that lie on other processes"
    asks_little = traits.moments_only or traits.of_gradients
    if not asks_little and traits.over_processes is None:
        return "looks at single rows, of which each process has but its own"
    if traits.estimate.samples != EXACT.samples:
        return f"takes the first stat_samples={traits.estimate.samples} of each batch, which lie on the first process"
    return None


def _why_not_run(trainee: Trainee) -> str | None:
    options = trainee.method.options
    if isinstance(trainee.rule, ClosureCalls):
        return f"optimizer {trainee.method.opt!r} evaluates the batch within its step"
    if trainee.rule.looks_at_batch:
        return f"step={options.get('step')} looks at the whole batch again"
    if options.get("tau1") is not None:
        return f"tau1={options['tau1']} takes the first part of each batch, which lies on the first process"
    return None


def _smallest_part(run: Run, samples: int, size: int) -> int | None:
    """Of a batch in several parts, one that is smaller than the number of processes, if there is any."""
    micro = run.micro_batch_size
    if micro is None:
        return None
    batches = [run.batch_size, samples % run.batch_size] if run.batch_growth is None else range(run.batch_size, samples)
    return next((part for n in batches if n > micro for part in (micro, n % micro) if 0 < part < size), None)


def _why_not_model(trainee: Trainee) -> str | None:
    """By its modules, and by two training forwards, which leave no trace."""
    few = trainee.data.train_inputs[:4].clone()
    with torch.no_grad(), _by_averages(normalising(trainee.model)):
        if mixing := batch_mixing(trainee.model):
            return (
                f"has no running averages to be evaluated by in {', '.join(mixing[:3])}, which normalises by the batch"
            )
        before = _states(trainee.device)
        with forward_isolated(trainee.model):
            whole = trainee.model(few)
            drew = any(not torch.equal(a, b) for a, b in zip(before, _states(trainee.device), strict=True))
            part = trainee.model(few[:1].clone())
    if drew:
        return "draws random numbers in its forward, as dropout does, which processes would not share"
    if (whole[:1] - part).norm() > _ALIKE * whole[:1].norm():
        return "makes another output of a sample beside others than of that sample alone"
    return None


@contextmanager
def _by_averages(modules: Sequence[nn.Module]) -> Iterator[None]:
    """What normalises by the batch of all processes is no reason, so it does not here."""
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module in modules:
            module.train()


def _states(device: torch.device) -> Iterator[torch.Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return iter(states)
