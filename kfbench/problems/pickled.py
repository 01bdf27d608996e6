"""Pickles as data: the few operations that files of arrays, numbers and text need, with nothing imported or called.

``pickle`` itself calls whatever a file names. Here the operations are read by ``pickletools`` and done on plain values;
what numpy's own functions would make of a file is read off their arguments.
"""

import math
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kfbench.errors import UsageError, described

_MOST_BYTES = 2**30  # six times the largest of CIFAR's
_MARK = object()
# What files of arrays name, written by numpy before 2 or since; bytes by Python 3 in Python 2's format.
_NAMES = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "class",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}
_UNSIGNED_BYTES = ("u1", "|u1", "uint8")


def read_pickle(path: Path) -> Any:
    """Numbers, text, tuples, lists, dictionaries by text, arrays of bytes; UsageError, one sentence, for all else.

    Python 2's strings, which may be text or bytes, are text of the same codes (latin-1).
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"{path} cannot be read: it is longer than {_MOST_BYTES} bytes")
        return _Machine().run(path.read_bytes())
    except _ForeignError as error:
        raise UsageError(f"{path} is refused: it {error}; nothing in it was executed") from None
    # Operations out of order find no operand, or one of another type.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise UsageError(f"{path} cannot be read, it is damaged or no pickle: {described(error)}") from error


class _ForeignError(Exception):
    """What no file of arrays, numbers and text holds."""


class _Name:
    """A global name: what it would be is one of the kinds above."""

    def __init__(self, name: str) -> None:
        if name not in _NAMES:
            raise _ForeignError(f"names {name.replace(' ', '.', 1)}, expected only numpy's arrays of bytes")
        self.kind = _NAMES[name]


class _Array:
    """An array that has not got its state yet; as numpy's, made first and filled then."""

    array: np.ndarray

    def fill(self, state: Any) -> None:
        _, shape, dtype, by_columns, content = state  # the first is the version of the state
        if not isinstance(dtype, _Type) or dtype.name not in _UNSIGNED_BYTES:
            raise _ForeignError(f"holds an array of {getattr(dtype, 'name', dtype)!r}, expected unsigned bytes")
        raw = content.encode("latin-1") if isinstance(content, str) else content
        if math.prod(shape) != len(raw):
            raise ValueError(f"an array of shape {shape} has {len(raw)} bytes")
        self.array = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if by_columns else "C")


class _Type:
    """The element type of an array."""

    def __init__(self, name: Any) -> None:
        self.name = name.decode("latin-1") if isinstance(name, bytes) else name

    def fill(self, state: Any) -> None:
        """Byte order and alignment, which unsigned bytes have none of."""


class _Machine:
    """The stack and the memory of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for operation, argument, _ in pickletools.genops(content):
            if operation.name == "STOP":
                return _arrays_of(self.stack.pop())
            step = _STEPS.get(operation.name)
            if step is None:
                raise _ForeignError(f"uses the operation {operation.name}, which no file of arrays needs")
            step(self, argument)
        raise ValueError("it ends before it stops")

    def since_mark(self) -> list[Any]:
        at = next((i for i in reversed(range(len(self.stack))) if self.stack[i] is _MARK), None)
        if at is None:
            raise LookupError("an operation finds no mark")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise LookupError("an operation finds no operand")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def remember(self, place: int | None) -> None:
        self.memory[len(self.memory) if place is None else place] = self.stack[-1]

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError("what is no list is appended to")
        self.stack[-1].extend(values)

    def set_items(self, pairs: list[Any], new: dict[str, Any] | None = None) -> None:
        if new is not None:
            self.stack.append(new)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            key = key.decode("latin-1") if isinstance(key, bytes) else key
            if not isinstance(key, str):  # the hash of a nested tuple can take for ever
                raise TypeError(f"a dictionary has a key of type {type(key).__name__}")
            self.stack[-1][key] = value

    def call(self) -> None:
        name, arguments = self.last(2)
        if name.kind == "array":
            self.stack.append(_Array())
        elif name.kind == "dtype":
            self.stack.append(_Type(arguments[0]))
        elif name.kind == "encode":
            self.stack.append(arguments[0].encode("latin-1"))
        else:
            raise _ForeignError("calls a class")

    def fill(self) -> None:
        (state,) = self.last(1)
        self.stack[-1].fill(state)


def _arrays_of(value: Any) -> Any:
    """The value, or the values of a dictionary, with arrays as numpy's."""
    if isinstance(value, dict):
        return {key: each.array if isinstance(each, _Array) else each for key, each in value.items()}
    return value.array if isinstance(value, _Array) else value


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_VALUES, _push),
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, argument: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), lambda machine, place: machine.remember(place)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, place: _push(machine, machine.memory[place])),
    "NONE": lambda machine, _: _push(machine, None),
    "NEWTRUE": lambda machine, _: _push(machine, True),
    "NEWFALSE": lambda machine, _: _push(machine, False),
    "MARK": lambda machine, _: _push(machine, _MARK),
    "EMPTY_TUPLE": lambda machine, _: _push(machine, ()),
    "EMPTY_LIST": lambda machine, _: _push(machine, []),
    "EMPTY_DICT": lambda machine, _: _push(machine, {}),
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: _push(machine, tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: _push(machine, tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: _push(machine, tuple(machine.last(3))),
    "LIST": lambda machine, _: _push(machine, machine.since_mark()),
    "DICT": lambda machine, _: machine.set_items(machine.since_mark(), {}),
    "APPEND": lambda machine, _: machine.extend(machine.last(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "GLOBAL": lambda machine, name: _push(machine, _Name(name)),
    "STACK_GLOBAL": lambda machine, _: _push(machine, _Name(" ".join(machine.last(2)))),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.fill(),
}
