"""Points beyond the grid: around the best one at random (EKFAC paper, section 4.1), or where Optuna looks."""

import math
import random
import warnings
from collections.abc import Callable
from typing import Any

from kfbench.sweep.grids import Axis
from kfbench.sweep.plan import Point, Swept

# A diverged trial, for samplers that need a number: worse than all others.
_DIVERGED = 1e30
Known = list[tuple[Point, float | None]]


def suggester(kind: str, method: Swept, best: Point, seed: int) -> Callable[[int, Known], Point]:
    """The function that gives the i-th further point of a method, knowing the trials so far."""
    if kind == "random":
        return lambda index, known: _around(method, best, seed, index)
    return _OptunaSuggester(kind, method, seed)


def _around(method: Swept, best: Point, seed: int, index: int) -> Point:
    """Log-uniform within one step of the grid to each side of the best; other parameters stay."""
    # A generator for each point: the i-th is the same, whichever were drawn before an interruption.
    generator = random.Random(f"{seed} {method.label} {index}")
    point = dict(best)
    for axis in method.axes:
        if axis.step is not None:
            low, high = axis.neighbourhood(best[axis.name])
            point[axis.name] = _rounded(math.exp(generator.uniform(math.log(low), math.log(high))))
    return point


def _rounded(value: float) -> float:
    """Four digits: no optimum is known better, and folders and tables stay legible."""
    return float(f"{value:.4g}")


class _OptunaSuggester:
    """Quasi-Monte Carlo (Sobol) or tree-structured Parzen estimators over the box of the grid, in memory."""

    def __init__(self, kind: str, method: Swept, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._kind, self._seed, self._axes = kind, seed, method.axes
        self._space = {axis.name: _distribution(axis) for axis in method.axes}

    def __call__(self, index: int, known: Known) -> Point:
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of features that Optuna calls experimental
            # Anew for each point, from the ledger: an interruption loses nothing.
            study = optuna.create_study(sampler=self._sampler(index))
            study.add_trials([self._told(point, loss) for point, loss in known])
            for _ in range(1 if self._kind == "tpe" else index + 1):  # of a sequence, its i-th point
                asked = study.ask(self._space)
        return {axis.name: _value(axis, asked.params[axis.name]) for axis in self._axes}

    def _sampler(self, index: int) -> Any:
        import optuna

        if self._kind == "qmc":
            return optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=self._seed)
        # A new sampler each time: with one seed it would draw alike for all points. The liar keeps off running trials.
        return optuna.samplers.TPESampler(seed=self._seed + index, n_startup_trials=5, constant_liar=True)

    def _told(self, point: Point, loss: float | None) -> Any:
        """A trial that ended, or (None) one that still runs."""
        import optuna

        params = {axis.name: _param(axis, point[axis.name]) for axis in self._axes}
        if loss is None:
            state = optuna.trial.TrialState.RUNNING
            return optuna.trial.create_trial(state=state, params=params, distributions=self._space)
        value = math.log(max(loss, 1e-30)) if math.isfinite(loss) else _DIVERGED
        return optuna.trial.create_trial(params=params, distributions=self._space, value=value)


def _distribution(axis: Axis) -> Any:
    import optuna

    if axis.step is None:
        return optuna.distributions.CategoricalDistribution([_as_param(value) for value in axis.values])
    return optuna.distributions.FloatDistribution(axis.values[0], axis.values[-1], log=True)


def _as_param(value: Any) -> Any:
    """Optuna's categories are plain values; lists become their text."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def _param(axis: Axis, value: Any) -> Any:
    """Within the box: rounding may have put it a digit outside."""
    return _as_param(value) if axis.step is None else min(max(value, axis.values[0]), axis.values[-1])


def _value(axis: Axis, param: Any) -> Any:
    if axis.step is None:
        return next(value for value in axis.values if _as_param(value) == param)
    return _rounded(param)
