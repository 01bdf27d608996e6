"""SPECs: which optimizer is meant, ours by name or a user's by path, and which options it has."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from kfbench.config.importing import import_object
from kfbench.config.method_table import METHODS, PRECONDITIONED_OPTIONS, SGD_CONSTRUCTOR, STEP_OPTIONS, MethodEntry
from kfbench.config.section import BEYOND_NUMBERS
from kfbench.errors import UsageError, described, shown, unknown

# Asked of the class, hence without ``fisher``, which a constructor may set: ``updates/turn.py`` looks at that.
_CONTRACT = ("orders", "observe", "refresh", "apply", "state_dict", "load_state_dict")
_ORDERS = ("independent", "same")  # as the schema has them
_LISTS = ("adapt",)  # options whose values hold commas


def parse_spec(entry: Any) -> tuple[str, dict[str, Any]]:
    """``NAME[:k=v,...]``, ``package.module:Class[:k=v,...]`` or a mapping with "opt" -> name, options."""
    if isinstance(entry, Mapping):
        options = dict(entry)
        opt = options.pop("opt", None)
        if not isinstance(opt, str) or not opt:
            raise UsageError(f"a method needs a key 'opt' with its name, got {shown(dict(entry))}")
        for key in options:
            if not isinstance(key, str):
                raise UsageError(f"options of {shown(opt)} are named by text, got {shown(key)}")
        return opt, options
    if not isinstance(entry, str) or not entry:
        raise UsageError(f"a SPEC is NAME[:k=v,...] or package.module:Class[:k=v,...], got {shown(entry)}")
    # A path has a ":" of its own, and so may values: options begin at the first segment with "=", and go on to the end.
    segments = entry.split(":")
    first_options = next((i for i, segment in enumerate(segments) if "=" in segment), len(segments))
    name, options_text = ":".join(segments[:first_options]), ":".join(segments[first_options:])
    if not name.strip(":"):
        raise UsageError(f"SPEC {shown(entry)} names no method before its options")
    return name, _parse_options(options_text, entry) if options_text else {}


def _parse_options(text: str, spec: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in _split(text, spec):
        key, separator, value = part.partition("=")
        if not separator and next(reversed(options), None) in _LISTS:  # adapt=damping,gamma
            options[next(reversed(options))] += f",{part}"
            continue
        if not separator or not key or not value:
            raise UsageError(f"SPEC {shown(spec)}: options look like k=v,k=v, got {shown(part)}")
        if key in options:
            raise UsageError(f"SPEC {shown(spec)} gives {shown(key)} twice")
        options[key] = _value(value)
    return options


def _split(text: str, spec: str) -> list[str]:
    """At commas, but for those inside brackets: betas=(0.9,0.99) is one value."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if depth:
        raise UsageError(f"SPEC {shown(spec)} has brackets that do not match")
    return parts


def _value(text: str) -> Any:
    """A Python literal, true, false, none, or text."""
    constants = {"true": True, "false": False, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # literals that Python only tolerates: they are text here
            value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # all that literal_eval may raise
        return text
    return value if is_plain(value) else text  # a set, say, is no value of YAML


def is_plain(value: Any) -> bool:
    """Whether a value can stand in a YAML file and be read back."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(inner) for key, inner in value.items())
    # Exact types: yaml.safe_dump refuses their subclasses, such as numpy's float64.
    if type(value) is int:
        return abs(value) < BEYOND_NUMBERS
    return value is None or type(value) in (bool, float, str)


def find_method(opt: str) -> MethodEntry:
    """The entry of a known name, or one made from a user's class; UsageError where there is neither."""
    if opt in METHODS:
        return METHODS[opt]
    if ":" not in opt:
        raise unknown("method", opt, METHODS, ", or package.module:Class")
    return _user_entry(opt)


def _user_entry(path: str) -> MethodEntry:
    imported = import_object(path, "method")
    if not isinstance(imported, type):
        raise UsageError(f"method {path!r} is a {type(imported).__name__}, expected a class")
    try:
        return _entry_of(path, imported)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # a metaclass may answer any question with an error
        raise UsageError(f"method {path!r} cannot be looked at: {described(error)}") from error


def _entry_of(path: str, imported: type) -> MethodEntry:
    """What a user's class says of itself; UsageError for what no method can say."""
    import torch  # only where a class must be told apart; slow to import

    if issubclass(imported, torch.optim.Optimizer):
        return _optimizer_entry(path, imported)
    missing = [name for name in _CONTRACT if not hasattr(imported, name)]
    if missing:
        raise UsageError(
            f"method {path!r} is neither a torch.optim.Optimizer nor a preconditioner: it lacks {', '.join(missing)}"
        )
    return _preconditioner_entry(path, imported)


def _optimizer_entry(path: str, user_class: type) -> MethodEntry:
    closure = inspect.signature(user_class.step).parameters.get("closure")  # type: ignore[attr-defined]
    options, open_ended = _constructor_options(user_class)
    options.pop("params", None)  # ours to give
    return MethodEntry(
        summary=_first_line(user_class, path),
        paper="user's class",
        optimizer=path,
        optimizer_options=tuple(options),
        preconditioner=None,
        options={**STEP_OPTIONS, **options},  # where both have one of that name, it is the constructor's
        open_ended=open_ended,
        needs_closure=closure is not None and closure.default is inspect.Parameter.empty,
    )


def _preconditioner_entry(path: str, user_class: type) -> MethodEntry:
    options, open_ended = _constructor_options(user_class)
    # Averages are kept by the method itself: it has an ema only where its constructor names one.
    ours = {key: value for key, value in PRECONDITIONED_OPTIONS.items() if key != "ema"}
    orders = user_class.orders  # type: ignore[attr-defined]
    if not isinstance(orders, (tuple, list)) or not orders or not all(order in _ORDERS for order in orders):
        raise UsageError(f"method {path!r} must name its orders, of 'independent' and 'same', got {shown(orders)}")
    own_points = inspect.getattr_static(user_class, "own_points", None)
    if not hasattr(type(own_points), "__get__"):  # what a property gives is known of an object alone
        check_own_points(path, own_points)
    return MethodEntry(
        summary=_first_line(user_class, path),
        paper="user's class",
        optimizer="torch.optim:SGD",
        optimizer_options=SGD_CONSTRUCTOR,
        preconditioner=path,
        # An option that the constructor requires (None here) may have a default among ours.
        options={**options, **ours, "order": orders[0], **{k: v for k, v in options.items() if v is not None}},
        constructor=tuple(options),
        open_ended=open_ended,
    )


def check_own_points(path: str, points: Any) -> None:
    """UsageError where these are neither None nor a number of points."""
    if points is not None and (type(points) is not int or points < 1):
        raise UsageError(f"method {path!r}: own_points must be a whole number from 1, or None, got {shown(points)}")


def _first_line(user_class: type, path: str) -> str:
    return ((user_class.__doc__ or "").strip() or path).splitlines()[0]


def _constructor_options(user_class: type) -> tuple[dict[str, Any], bool]:
    """The constructor's parameters with their defaults, and whether it takes **kwargs.

    None stands for a parameter that is required, or whose default is no plain value: the
    constructor is then called without it.
    """
    parameters = list(inspect.signature(user_class).parameters.values())
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    defaults = {p.name: None if p.default is p.empty or not is_plain(p.default) else p.default for p in named}
    return defaults, any(p.kind == p.VAR_KEYWORD for p in parameters)
