"""What goes wrong for a user, with the exit code that says so (design: exit codes of the commands)."""

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any


class KfbenchError(Exception):
    """One sentence for the user: the value received and what is accepted. No traceback is shown.

    It is one line, also where it quotes the many lines of somebody else's error.
    """

    exit_code = 2

    def __init__(self, sentence: str) -> None:
        super().__init__(cut(printable(" ".join(filter(None, map(str.strip, sentence.splitlines()))))))


def described(error: BaseException) -> str:
    """The kind of somebody else's error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# Of a sentence that names all methods there are the longest is half of it.
_LONGEST = 3000


def cut(sentence: str) -> str:
    """Without the middle where nobody would read it all: somebody else's error may quote what it was given."""
    half = _LONGEST // 2
    return sentence if len(sentence) <= _LONGEST else f"{sentence[:half]} ... {sentence[-half:]}"


class UsageError(KfbenchError):
    """Wrong usage, configuration, data or path: found before the first update."""


# C0 and C1, and what turns the direction of text around.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """As a terminal may get it: what would steer it, and what is no text, is spelled out."""
    readable = text.encode("utf-8", "backslashreplace").decode()
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), readable)


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 200, 200, 60


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
