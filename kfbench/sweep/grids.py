"""Grids: what ``--grid`` accepts, the default of each parameter, and how a grid is extended or made finer."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from kfbench.config.schema import MethodOptions
from kfbench.config.specs import is_plain
from kfbench.config.yaml_file import parse_yaml
from kfbench.errors import UsageError, shown

# The step relative to the damping: lr = alpha * damping (FOOF paper, appendix D.3). For large damping
# every direction tends to G / damping, so that a rectangle of lr would leave most rows without their optimum.
ALPHA = "alpha"
# Scales without a natural end: only these are extended beyond what was asked for.
_SCALES = (ALPHA, "lr", "damping")

# 1, 3, 10, 30, ...: the values of the FOOF paper (appendix D.2).
_HALVES = "half-decades"
_DEFAULTS: dict[str, Any] = {
    ALPHA: f"1e-2:1e1:{_HALVES}",
    "damping": "1e-4:1e2:decades",
    "momentum": [0.0, 0.5, 0.9, 0.95],
    "weight_decay": [0.0, 1e-5, 1e-4, 1e-3, 1e-2],
    "ema": [0.0, 0.5, 0.9, 0.95, 0.99],
    "T": [1, 10, 100],
    "S": [1, 10, 50],
    "warmup_batches": [0, 10, 50],
    "lr_decay": [0.3, 0.1, 0.03, 0.01],
}

_LARGEST_RANGE = 10_000
# Between these lies any use, and no product or ratio of two of them overflows.
_SMALLEST, _LARGEST = 1e-100, 1e100
# A step, in decades: more cannot be extended within what a number holds.
_WIDEST = 50

Side = Literal["lower", "upper"]


@dataclass(frozen=True)
class Axis:
    """The values of one swept parameter; ``step`` is "half-decades", a ratio, or None where it has none."""

    name: str
    values: tuple[Any, ...]
    step: str | float | None = None

    @property
    def extendable(self) -> bool:
        """Whether the grid may grow beyond its ends."""
        return self.step is not None and self.name in _SCALES

    def edge(self, side: Side) -> Any:
        """The last value on that side."""
        return self.values[-1 if side == "upper" else 0]

    def beyond(self, side: Side) -> tuple[float, ...]:
        """The values that an extension adds past one end: the next one, and more of a fine grid up to half a decade."""
        sign, end = 1 if side == "upper" else -1, self.edge(side)
        if self.step == _HALVES:
            return (_half_decade(_half_index(end) + sign),)
        assert isinstance(self.step, float)
        count = max(math.floor(math.log(10) / 2 / math.log(self.step) + 1e-6), 1)
        return tuple(_round(end * self.step ** (sign * i)) for i in range(1, count + 1))

    def extended(self, side: Side) -> "Axis":
        """With those values, in order."""
        new = self.beyond(side)
        return replace(self, values=(*self.values, *new) if side == "upper" else (*reversed(new), *self.values))

    def finer(self, count: int) -> "Axis":
        """Over the same range, evenly spaced in the logarithm; the same where there is no range."""
        # Never a coarser one than was asked for.
        if self.step is None or len(self.values) < 2 or count <= len(self.values):
            return self
        low, high = self.values[0], self.values[-1]
        ratio = (high / low) ** (1 / (count - 1))
        return replace(self, values=tuple(_round(low * ratio**i) for i in range(count)), step=ratio)

    def thinned(self) -> "Axis":
        """First, middle and last, for a smoke run."""
        few = dict.fromkeys((self.values[0], self.values[len(self.values) // 2], self.values[-1]))
        return replace(self, values=tuple(few))

    def neighbourhood(self, value: float) -> tuple[float, float]:
        """One step to each side of a value of the grid."""
        if self.step == _HALVES:
            i = _half_index(value)
            return _half_decade(i - 1), _half_decade(i + 1)
        assert isinstance(self.step, float)
        return value / self.step, value * self.step


def parse_axis(name: str, given: Any, default: Any = None) -> Axis:
    """An axis from START:STOP:STEP, from "a,b,c" or from a list.

    STEP is half-decades (1, 3, 10, ...), decades, 2-decades, ..., or a number of values. The type of
    the parameter's default tells whole numbers from others.
    """
    whole, real = type(default) is int, type(default) is float or name in _SCALES
    if given is None:
        raise UsageError(f"--grid {name} holds no value; {_accepted(name)}")
    if isinstance(given, str) and given.count(":") == 2:
        return _range(name, given, whole)
    values = given if isinstance(given, (list, tuple)) else [given]
    if isinstance(given, str):
        values = [parse_yaml(part, f"--grid {name}") for part in given.split(",") if part.strip()]
    # As options are resolved, and so that points can be looked up.
    values = [_with_tuples(value) for value in values]
    for value in values:
        _check_value(name, value, whole or real)
    if not values:
        raise UsageError(f"--grid {name}={shown(given)} is empty; {_accepted(name)}")
    # 1 and 1.0 are one value, but would hash, and name a folder, as two.
    values = [float(value) if real and type(value) is int else value for value in values]
    # By repr: true equals 1, and is another value.
    if len({repr(value) for value in values}) < len(values):
        raise UsageError(f"--grid {name}={shown(given)} holds a value twice")
    if name in _SCALES and values != sorted(values):
        raise UsageError(f"--grid {name}={shown(given)} is not ascending")
    return Axis(name, tuple(values), _ratio(values))


def default_axis(name: str, lr_range: tuple[float, float]) -> Axis:
    """The default grid of a parameter; UsageError where it has none."""
    if name == "lr":
        return parse_axis(name, f"{lr_range[0]!r}:{lr_range[1]!r}:{_HALVES}")
    if name in _DEFAULTS:
        return parse_axis(name, _DEFAULTS[name])
    if name in MethodOptions.model_fields:
        choices = _choices(MethodOptions.model_fields[name].annotation)
        if choices:
            return Axis(name, choices)
    raise UsageError(f"parameter {name!r} has no default grid; {_accepted(name)}")


def _with_tuples(value: Any) -> Any:
    return tuple(map(_with_tuples, value)) if isinstance(value, (list, tuple)) else value


def _check_value(name: str, value: Any, number: bool) -> None:
    """UsageError for what is no value of an option, and, where a ``number`` is meant, for what is none within range."""
    if not number:
        if isinstance(value, dict) or not is_plain(value):
            raise UsageError(f"--grid {name}: {shown(value)} is no number, text, true or false, nor a list of these")
        return
    if type(value) not in (int, float):
        raise UsageError(f"--grid {name} takes numbers, got {shown(value)}")
    if value and not _SMALLEST <= abs(value) <= _LARGEST:
        raise UsageError(f"--grid {name} takes 0 and numbers from {_SMALLEST:g} to {_LARGEST:g}, got {shown(value)}")


def _accepted(name: str) -> str:
    return f"give --grid {name}=START:STOP:half-decades (or decades, 2-decades, a number of values) or {name}=a,b,c"


def _range(name: str, given: str, whole: bool) -> Axis:
    start, stop = (_positive(part, name, given) for part in given.split(":")[:2])
    if start > stop:
        raise UsageError(f"--grid {name}={shown(given)} is reversed: START {start:g} is above STOP {stop:g}")
    values, step = _spaced(start, stop, given.split(":")[2], name, given)
    if whole:
        return Axis(name, tuple(dict.fromkeys(round(value) for value in values)))  # small ones may coincide
    return Axis(name, values, step)


def _positive(text: str, name: str, given: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not _SMALLEST <= value <= _LARGEST:
        bounds = f"from {_SMALLEST:g} to {_LARGEST:g}"
        raise UsageError(f"--grid {name}={shown(given)}: START and STOP must be numbers {bounds}, got {shown(text)}")
    return value


def _spaced(start: float, stop: float, spacing: str, name: str, given: str) -> tuple[tuple[float, ...], str | float]:
    if spacing == _HALVES:
        # Rounding, here and below, must not lose a value at an end.
        first, last = math.ceil(_half_position(start) - 1e-6), math.floor(_half_position(stop) + 1e-6)
        values = tuple(_half_decade(i) for i in range(first, last + 1))
        if not values:
            raise UsageError(f"--grid {name}={shown(given)} is empty: no 1e-i or 3e-i lies in it")
        return values, _HALVES
    if spacing.isdecimal():
        # The length first: of thousands of digits Python makes no number.
        if len(spacing) > 9 or not 2 <= (count := int(spacing)) <= _LARGEST_RANGE or start == stop:
            needed = f"a number of values needs START below STOP and 2 to {_LARGEST_RANGE} values"
            raise UsageError(f"--grid {name}={shown(given)}: {needed}")
        ratio = (stop / start) ** (1 / (count - 1))
        return tuple(_round(start * ratio**i) for i in range(count)), ratio
    decades = spacing.removesuffix("decades").removesuffix("-")
    # Of the first digits alone: of thousands Python makes no number.
    if not spacing.endswith("decades") or not (decades or "1").isdecimal() or not 0 < int(decades[:4] or 1) <= _WIDEST:
        raise UsageError(f"--grid {name}={shown(given)}: unknown step {shown(spacing)}; {_accepted(name)}")
    ratio = 10.0 ** int(decades or 1)
    count = math.floor(math.log(stop / start, ratio) + 1e-6) + 1
    return tuple(_round(start * ratio**i) for i in range(count)), ratio


def _ratio(values: Sequence[Any]) -> float | None:
    """Of an ascending list of positive numbers, the ratio of its last two, by which it may be extended."""
    # Whole numbers, such as T, and choices are no scale.
    if not all(type(value) is float and value > 0 for value in values) or len(values) < 2:
        return None
    ratio = values[-1] / values[-2] if all(a < b for a, b in itertools.pairwise(values)) else None
    return None if ratio is None or ratio > 10.0**_WIDEST else ratio


def _half_position(value: float) -> float:
    """Index on the lattice ..., 1, 3, 10, 30, ..., with fractions between its points."""
    decade = math.floor(math.log10(value) + 1e-9)  # a power of ten may come out just below its exponent
    mantissa = value / 10.0**decade
    within = math.log(mantissa) / math.log(3) if mantissa <= 3 else 1 + math.log(mantissa / 3) / math.log(10 / 3)
    return 2 * decade + within


def _half_index(value: float) -> int:
    return round(_half_position(value))


def _half_decade(index: int) -> float:
    decade, odd = divmod(index, 2)
    return float(f"{3 if odd else 1}e{decade}")


def _round(value: float) -> float:
    """Without the last digits of floating point, so that 0.1 * 0.3 has one name."""
    return float(f"{value:.10g}")


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a Literal, or both of a bool."""
    for kind in get_args(annotation):
        if kind is bool:
            return (False, True)
        if get_args(kind):
            return get_args(kind)
    return ()
