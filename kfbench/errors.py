"""What goes wrong for a user, with the exit code that says so (design: exit codes of the commands)."""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any


class KfbenchError(Exception):
    """One sentence for the user: the value received and what is accepted. No traceback is shown.

    It is one line, also where it quotes the many lines of somebody else's error.
    """

    exit_code = 2

    def __init__(self, sentence: str) -> None:
        super().__init__(" ".join(filter(None, map(str.strip, sentence.splitlines()))))


def described(error: BaseException) -> str:
    """The kind of somebody else's error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class UsageError(KfbenchError):
    """Wrong usage, configuration, data or path: found before the first update."""


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 200, 200


def shown(value: Any) -> str:
    """A value received, as one would write it; cut where it is too long for a sentence."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= 300 else text[:297] + "..."


def unknown(kind: str, name: str, accepted: Iterable[str], hint: str = "") -> UsageError:
    """The one sentence for a name that is not known, with the nearest one that is."""
    accepted = list(accepted)
    near = difflib.get_close_matches(name[:100], accepted, n=1)
    suggestion = f" (did you mean {near[0]!r}?)" if near else ""
    return UsageError(f"unknown {kind} {shown(name)}{suggestion}; accepted: {', '.join(accepted)}{hint}")
