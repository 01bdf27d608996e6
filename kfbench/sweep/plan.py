"""What a sweep tries: which parameters of which method, on which grids, and the configuration of each trial."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kfbench.config.identity import fingerprint, trajectory
from kfbench.config.labels import labels
from kfbench.config.method_table import DEFAULT_S, FOUND_BY_STEP
from kfbench.config.methods import resolve_method
from kfbench.config.problem_table import training_samples
from kfbench.config.schema import Config, Method
from kfbench.config.specs import find_method
from kfbench.errors import UsageError, unknown
from kfbench.sweep.grids import ALPHA, Axis, default_axis, parse_axis

Point = dict[str, Any]
_LARGEST_SEED = 2**32 - 1  # as the schema has it
# The rule by which trials stop early, unless the user says otherwise. With full batches none does: a loss may lie at
# thousands of times the first one for sixty updates, and end below all others (foof-2a).
DIVERGENCE_FACTOR = 10.0


@dataclass(frozen=True)
class Swept:
    """One method of a sweep: its axes, what stays fixed, which of the named parameters it lacks."""

    label: str
    opt: str
    fixed: Mapping[str, Any]
    axes: tuple[Axis, ...]
    left_out: tuple[str, ...]

    def axis(self, name: str) -> Axis:
        """The axis of that name."""
        return next(axis for axis in self.axes if axis.name == name)

    def with_axis(self, new: Axis) -> "Swept":
        """With that axis in place of the one of its name."""
        return replace(self, axes=tuple(new if axis.name == new.name else axis for axis in self.axes))

    def cells(self) -> list[Point]:
        """Every point of the grid."""
        names = [axis.name for axis in self.axes]
        return [dict(zip(names, values, strict=True)) for values in itertools.product(*(a.values for a in self.axes))]

    @property
    def size(self) -> int:
        """The number of cells, without making them."""
        return math.prod(len(axis.values) for axis in self.axes)

    def allows(self, point: Point) -> bool:
        """Whether its values without a scale are among those of the grid."""
        return all(axis.step is not None or point[axis.name] in axis.values for axis in self.axes)

    def options(self, point: Point) -> dict[str, Any]:
        """Every option of the method at one point; lr follows from alpha."""
        options = {**self.fixed, **{name: value for name, value in point.items() if name != ALPHA}}
        if ALPHA in point:
            # Rounded like the grids, so that one product has one hash.
            options["lr"] = float(f"{point[ALPHA] * options['damping']:.10g}")
        return options


@dataclass(frozen=True)
class Trial:
    """One configuration with one seed."""

    method: str
    round: str
    point: Point
    config: Config

    @property
    def seed(self) -> int:
        """Of initialisation, data order and labels."""
        return self.config.run.seed

    @cached_property
    def hash(self) -> str:
        """Equal for equal configurations, whichever sweep asks for them."""
        return self.hash_on(self.config.run.device)

    def hash_on(self, device: str) -> str:
        """What it would be on another device, where the same numbers come out but for rounding."""
        tree = trajectory(self.config)
        # A trial is of one seed, which a trajectory leaves out.
        return fingerprint({**tree, "run": {**tree["run"], "device": device}, "seed": self.seed})

    @property
    def folder(self) -> Path:
        """Relative to the sweep's."""
        return Path(self.method) / f"trial-{self.hash}"

    @property
    def swept(self) -> Point:
        """The values of the swept parameters, with the lr that follows from alpha."""
        return {**self.point, **({"lr": self.config.methods[0].options["lr"]} if ALPHA in self.point else {})}


def plan(config: Config) -> list[Swept]:
    """The methods with their axes; those with fewer parameters get a finer lr grid, of as many points.

    UsageError for parameters that no method has, and for grids that do not fit.
    """
    parameters, grids = config.sweep.parameters, config.sweep.grids
    _check_names(config, parameters, grids)
    if config.sweep.top and seeds(config, "final")[-1] > _LARGEST_SEED:
        raise UsageError(f"seed {config.run.seed} leaves no room for fresh seeds up to {_LARGEST_SEED}")
    methods = [_swept(method, config, parameters) for method in config.methods]
    largest = max(method.size for method in methods)
    return [_with_as_many(method, largest) for method in methods]


def trial(config: Config, method: Swept, point: Point, round: str, seed: int) -> Trial:
    """The trial of one point; UsageError where its options do not fit together."""
    run, sweep = config.run, config.sweep
    problem = config.problem
    full_batch = run.batch_size >= training_samples(problem.dataset, problem.train_samples, problem.context)
    factor = run.divergence_factor or (None if full_batch else DIVERGENCE_FACTOR)
    changes: dict[str, Any] = {"seed": seed, "seeds": 1, "divergence_factor": factor}
    # A smoke run keeps its few updates.
    if round == "final" and not run.quick and (sweep.final_epochs or sweep.final_updates):
        changes |= {"epochs": sweep.final_epochs, "updates": sweep.final_updates}
    try:
        resolved = resolve_method({"opt": method.opt, **method.options(point)}, method.label)
    except UsageError as error:
        where = ", ".join(f"{name} {value}" for name, value in point.items())
        raise UsageError(f"the cell {where} of {method.label} does not fit: {error}") from error
    return Trial(method.label, round, point, config.with_run(**changes).with_methods([resolved]))


def seeds(config: Config, round: str) -> range:
    """The seeds of a round; those of the final one are fresh."""
    run = config.run
    if round == "final":
        return range(run.seed + run.seeds, run.seed + run.seeds + config.sweep.final_seeds)
    return range(run.seed, run.seed + run.seeds)


def _check_names(config: Config, parameters: Sequence[str], grids: Mapping[str, Any]) -> None:
    accepted = sorted({option for method in config.methods for option in find_method(method.opt).options})
    for i, name in enumerate(parameters):
        if name in parameters[:i]:
            raise UsageError(f"parameter {name!r} is named twice")
        if not any(find_method(method.opt).accepts(name) for method in config.methods):
            raise unknown("parameter", name, accepted)
    if not parameters:
        raise UsageError(f"sweep needs the name of a parameter, such as lr; accepted: {', '.join(accepted)}")
    owners = {name for method in config.methods for name in (method.label, method.opt)}
    for name in grids:
        owner, _, parameter = name.rpartition(".")
        if parameter not in parameters:
            raise UsageError(f"--grid {name}: {parameter!r} is not among the swept parameters {', '.join(parameters)}")
        if owner and owner not in owners:
            raise UsageError(f"--grid {name}: {owner!r} is not among the methods {', '.join(sorted(owners))}")


def _swept(method: Method, config: Config, parameters: Sequence[str]) -> Swept:
    entry = find_method(method.opt)
    # A step rule finds the length of the step itself.
    found = FOUND_BY_STEP if method.options.get("step") is not None else ()
    own = [name for name in parameters if entry.accepts(name) and name not in found]
    relative = "lr" in own and not config.sweep.absolute_lr and entry.accepts("damping") and entry.lr_follows_damping
    axes = tuple(_axis(name, method, config, relative) for name in own)
    fixed = {name: value for name, value in method.options.items() if name not in own}
    if "T" in own and fixed.get("S") == min(method.options["T"], DEFAULT_S):
        del fixed["S"]  # it was not given, and follows each T
    dampings = next((axis.values for axis in axes if axis.name == "damping"), (fixed.get("damping"),))
    if relative and not all(dampings):
        raise UsageError("with damping 0 there is no step relative to it: use --absolute-lr, or dampings above 0")
    missing = tuple(name for name in parameters if name not in own)
    return Swept(method_label(method.opt, fixed), method.opt, fixed, axes, missing)


def _axis(name: str, method: Method, config: Config, relative: bool) -> Axis:
    entry, grids = find_method(method.opt), config.sweep.grids
    shown_as = ALPHA if relative and name == "lr" else name
    # The most specific one: of this variant, of every variant of the method, of all methods.
    for given in (f"{method.label}.{name}", f"{method.opt}.{name}", name):
        if given in grids:
            # Asked for as lr, whatever it is called for this method.
            return replace(parse_axis(name, grids[given], entry.options.get(name)), name=shown_as)
    axis = default_axis(shown_as, entry.lr_range)
    return axis.thinned() if config.run.quick else axis


def method_label(opt: str, fixed: Mapping[str, Any]) -> str:
    """NAME, and -key=value for every fixed option that is not the default's: the same in every sweep of a folder."""
    defaults = resolve_method(opt).options if find_method(opt).options else {}
    # Labelled beside its defaults, not beside the other methods of this sweep.
    return labels([(opt, fixed), (opt, {name: defaults.get(name) for name in fixed})])[0]


def _with_as_many(method: Swept, largest: int) -> Swept:
    """A method that lacks a parameter spends as many trials, on a finer grid of lr, or of damping where that is all."""
    names = [axis.name for axis in method.axes]
    step = next((name for name in (ALPHA, "lr", "damping") if name in names), None)
    if not method.left_out or step is None:
        return method
    axis = method.axis(step)
    # As many cells as the largest grid in all, not on this one axis.
    return method.with_axis(axis.finer(largest // (method.size // len(axis.values))))
