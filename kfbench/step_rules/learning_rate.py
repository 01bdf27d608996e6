"""How the learning rate rises and falls over a run."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from kfbench.errors import UsageError


def learning_rate_factor(
    schedule: str, decay: float, step: int, total: int, period: int | None = None, warmup: int = 0
) -> float:
    """What multiplies lr at update ``step`` of ``total``.

    constant: 1; step: times ``decay`` after half and again after three quarters of the updates, or,
    where a ``period`` is given, after every so many updates (George et al. 2018, appendix D.2);
    exp: falls exponentially to ``decay`` at the end; cosine: falls to 0 along half a cosine
    (Loshchilov & Hutter 2017, SGDR, without restarts); linear-warmup-cosine: rises in equal steps over the first
    ``warmup`` updates, the last of which has all of lr (Goyal et al. 2017, section 2.2), then along that cosine.
    """
    if schedule == "linear-warmup-cosine":
        if step < warmup:
            return (step + 1) / warmup
        step, total, schedule = step - warmup, total - warmup, "cosine"
    progress = step / max(total, 1)
    if schedule == "step" and period is not None:
        return decay ** (step // period)
    if schedule == "step":
        # The falls so far, counted as booleans.
        return decay ** ((progress >= 0.5) + (progress >= 0.75))
    if schedule == "exp":
        return decay**progress
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0


def learning_rate_schedule(
    opt: str, options: Mapping[str, Any], total: int, per_epoch: int, quick: bool = False
) -> Callable[[int], float]:
    """update -> what multiplies lr there, by the options of a method in a run of ``total`` updates.

    UsageError where the warm-up leaves no update to fall over; a ``quick`` run may end within it.
    """
    schedule, decay = options.get("lr_schedule") or "constant", options.get("lr_decay") or 1.0
    epochs, warmup = options.get("lr_step_epochs"), options.get("warmup_updates") or 0
    if warmup >= total and not quick:
        raise UsageError(f"{opt!r}: warmup_updates is {warmup}, not below the {total} updates of the run")
    period = None if epochs is None else epochs * per_epoch
    return lambda step: learning_rate_factor(schedule, decay, step, total, period, warmup)
