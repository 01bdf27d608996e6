"""A process of its own for what `wallclock` measures apart, and what it means that one ends."""

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from kfbench.errors import described
from kfbench.training.interruption import Interruption

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# How long a request to stop may go unseen while the process works.
_GLANCE_SECONDS = 0.2
# A signal to the whole group may end the process before this one has heard of it.
_GRACE_SECONDS = 0.5
_LAST_SECONDS = 5.0


class ChildError(Exception):
    """A process that ended before it was through, though nobody had asked for a stop."""


def values_of(
    context: Any, function: Callable[..., Iterable[Any]], arguments: tuple[Any, ...], stop: Interruption
) -> Iterator[Any]:
    """What ``function(*arguments)`` yields in a process of its own, as it comes.

    A request to stop ends it early: the process is killed, and whatever became of it by itself is
    part of that interruption. ChildError where it dies, or fails, for another reason.
    """
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, function, arguments), daemon=True)
    try:
        _start(process)
        theirs.close()  # so that the pipe ends when the process does
        while True:
            while not ours.poll(_GLANCE_SECONDS):
                if stop.requested:
                    return
            kind, value = ours.recv()
            if kind == "failed" and not stop.requested:
                raise ChildError(value)
            if kind != "yielded":
                return
            yield value
    except (EOFError, OSError) as error:
        time.sleep(_GRACE_SECONDS)
        if not stop.requested:
            raise ChildError(_how_it_ended(process) or described(error)) from error
    finally:
        ours.close()
        if process.pid is not None:
            process.kill()
            process.join()


def _start(process: Any) -> None:
    """With the signals of an interruption held back: while it starts, they are for the leader alone."""
    resource_tracker.ensure_running()  # which would let them through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _how_it_ended(process: Any) -> str | None:
    if process.pid is None:
        return None
    process.join(_LAST_SECONDS)
    code = process.exitcode
    if code is not None and code < 0:
        return f"it was ended by signal {-code}" + (", perhaps for want of memory" if -code == signal.SIGKILL else "")
    return f"it ended with exit code {code} and no result"


def _work(connection: Connection, function: Callable[..., Iterable[Any]], arguments: tuple[Any, ...]) -> None:
    """In the new process. A signal ends it without a word: the leader says what that means."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    try:
        for value in function(*arguments):
            connection.send(("yielded", value))
        connection.send(("through", None))
    except Exception as error:
        connection.send(("failed", described(error)))
