"""How the learning rate falls over a run."""

import math


def learning_rate_factor(schedule: str, decay: float, step: int, total: int, period: int | None = None) -> float:
    """What multiplies lr at update ``step`` of ``total``.

    constant: 1; step: times ``decay`` after half and again after three quarters of the updates, or,
    where a ``period`` is given, after every so many updates (George et al. 2018, appendix D.2);
    exp: falls exponentially to ``decay`` at the end; cosine: falls to 0 along half a cosine
    (Loshchilov & Hutter 2017, SGDR, without restarts).
    """
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
