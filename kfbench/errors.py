"""What goes wrong for a user, with the exit code that says so (design: exit codes of the commands)."""

import difflib
from collections.abc import Iterable


class KfbenchError(Exception):
    """One sentence for the user: the value received and what is accepted. No traceback is shown."""

    exit_code = 2


class UsageError(KfbenchError):
    """Wrong usage, configuration, data or path: found before the first update."""


class StorageError(KfbenchError):
    """A folder that vanished, is read-only or full; what was written before stays valid."""


class RunFailed(KfbenchError):
    """A run that failed or diverged; other seeds went on."""

    exit_code = 3


class Interrupted(KfbenchError):
    """Ctrl-C or SIGTERM; the run can be continued."""

    exit_code = 130


def unknown(kind: str, name: str, accepted: Iterable[str], hint: str = "") -> UsageError:
    """The one sentence for a name that is not known, with the nearest one that is."""
    accepted = list(accepted)
    near = difflib.get_close_matches(name, accepted, n=1)
    suggestion = f" (did you mean {near[0]!r}?)" if near else ""
    return UsageError(f"unknown {kind} {name!r}{suggestion}; accepted: {', '.join(accepted)}{hint}")
