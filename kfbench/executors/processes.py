"""One process a job on this machine: one that crashes, is killed for its memory or hangs takes nothing else with it."""

import errno
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

from kfbench.errors import KfbenchError, UsageError, described
from kfbench.executors.contract import Job, Outcome, Request
from kfbench.results.locking import lock

# What the module that the server imports before it forks may read, as JSON: such a server takes no arguments.
PRELOAD_VARIABLE = "KFBENCH_PRELOAD"
# How long a trial may take to save its checkpoint when it is asked to stop.
_GRACE_SECONDS = 60.0
# And to end once it has sent its result.
_LAST_SECONDS = 5.0
# Of what says which accelerators a job may use: a fork server has that of its own start.
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
# How often it is tried to start a process, and how long between: the server that forks them may be killed, too.
_STARTS, _BETWEEN_STARTS = 3, 0.5


@dataclass
class _Running:
    job: Job
    process: Any
    connection: Connection
    began: float


class ProcessExecutor:
    """Up to ``jobs`` processes on this machine, forked from a server that has imported much; spawned elsewhere.

    ``module`` is what the server imports, once, before it forks; it finds ``preload`` in its environment. Without
    ``main`` no job imports the program of this process: that of a cluster has threads, beside which a fork may hang.
    """

    @classmethod
    def of(cls, request: Request) -> "ProcessExecutor":
        """As a leader wants it."""
        return cls(request.jobs, request.module, request.preload)

    def __init__(self, jobs: int, module: str, preload: Mapping[str, Any], main: bool = True) -> None:
        self._jobs, self._main = jobs, main
        self._running: dict[str, _Running] = {}
        os.environ[PRELOAD_VARIABLE] = json.dumps(preload)
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            # "__main__" is what it would import by itself, and is lost where a list is given.
            self._context.set_forkserver_preload(["__main__", module] if main else [module])

    def submit(self, job: Job) -> None:
        """Start it in a process of its own."""
        ours, theirs = self._context.Pipe(duplex=False)
        visible = {name: os.environ[name] for name in _VISIBLE if name in os.environ}
        process = self._context.Process(target=_run, args=(theirs, job, visible))
        with nullcontext() if self._main else _main_hidden():
            _start(process)
        theirs.close()  # so that the pipe ends when the process does
        self._running[job.key] = _Running(job, process, ours, time.monotonic())

    @property
    def free(self) -> int:
        """How many more jobs may be submitted now."""
        return self._jobs - len(self._running)

    def wait(self, seconds: float) -> list[Outcome]:
        """The jobs that ended, or were ended because they took longer than the timeout."""
        running: dict[Any, _Running] = {r.connection: r for r in self._running.values()}
        running |= {r.process.sentinel: r for r in self._running.values()}  # a child of it may keep the pipe open
        # Until the caller wants to look around, or the next job is late.
        patience = max(min([seconds, *map(_left, self._running.values())]), 0.0)
        ready = wait(list(running), timeout=patience) if running else []
        # By key: of one job both pipe and process may be ready.
        outcomes = [self._collect(r) for r in {running[one].job.key: running[one] for one in ready}.values()]
        # Asked only now: a job that ended in time is collected, however late anybody looks.
        for late in [r for r in self._running.values() if _left(r) <= 0]:
            late.process.kill()
            late.process.join()
            outcomes.append(self._remove(late, "late", f"took longer than {late.job.timeout:g} s"))
        return outcomes

    def stop(self) -> None:
        """SIGTERM to all, which makes a trial save its checkpoint; SIGKILL to those that do not end."""
        for running in self._running.values():
            running.process.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        try:
            for running in self._running.values():
                running.process.join(max(deadline - time.monotonic(), 0))
        finally:  # also where a second Ctrl-C ends the waiting
            for running in self._running.values():
                running.process.kill()
            self._running = {}

    def _collect(self, running: _Running) -> Outcome:
        try:
            kind, value = running.connection.recv() if running.connection.poll() else ("crashed", None)
        except (EOFError, OSError):  # it died before, or while, it sent something
            kind, value = "crashed", None
        running.process.join(_LAST_SECONDS)
        running.process.kill()  # a thread that it left behind keeps it from ending
        running.process.join()
        if kind == "crashed" and value is None:
            value = _how_it_ended(running.process.exitcode)
        return self._remove(running, kind, value)

    def _remove(self, running: _Running, kind: str, value: Any) -> Outcome:
        running.connection.close()
        del self._running[running.job.key]
        return Outcome(running.job.key, kind, value, time.monotonic() - running.began)


def _start(process: Any) -> None:
    """OSError where the server that forks processes has ended, and so has every one begun in its place."""
    for attempt in range(_STARTS):
        try:
            process.start()
            return
        except (EOFError, ConnectionError) as error:  # it is begun anew by the next start
            if attempt == _STARTS - 1:
                raise OSError(errno.ECHILD, "the process from which trials are forked ends as it starts") from error
            time.sleep(_BETWEEN_STARTS)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """The new process is told of no program that it should import."""
    ours = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = ours


def _left(running: _Running) -> float:
    return running.began + running.job.timeout - time.monotonic()


def _how_it_ended(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "was killed (signal 9), perhaps for want of memory"
    if code is not None and code < 0:
        return f"was ended by signal {-code} ({signal.Signals(-code).name})"
    return f"ended with exit code {code} and no result"


def _run(connection: Connection, job: Job, visible: Mapping[str, str]) -> None:
    """In the new process: run the job and send what became of it."""
    _die_with_the_leader()  # first: imports take seconds in which the leader may go
    with suppress(OSError):
        os.setpgid(0, 0)  # Ctrl-C in the terminal is the leader's to hear; it then asks the trials to stop
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a scheduler's warning to all: whoever began this will act on it
    os.environ.update(visible)
    try:
        folder: dict[str, Any] = {}
        if job.folder is not None:
            job.folder.mkdir(parents=True, exist_ok=True)
            _take_alone(job.folder)
            folder = {"folder": str(job.folder), "anew": job.anew}
        _print_into(job.log or Path(os.devnull))
        module, _, name = job.function.partition(":")
        connection.send(("returned", getattr(importlib.import_module(module), name)(*job.arguments, **folder)))
    except KfbenchError as error:
        connection.send(("refused", str(error)))
    except OSError as error:
        traceback.print_exc()
        if _is_of_the_disk(error, job):
            connection.send(("disk", (error.errno, error.strerror or str(error), str(error.filename or ""))))
        else:
            connection.send(("crashed", described(error)))
    except Exception as error:
        connection.send(("crashed", described(error)))
        traceback.print_exc()  # into the log


def _take_alone(folder: Path) -> None:
    """Lock it until this process ends: on a shared disk an attempt before, whose leader is lost, may still save there.

    UsageError where it does not end.
    """
    deadline = time.monotonic() + _GRACE_SECONDS
    while True:
        try:
            lock(folder)
            return
        except UsageError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_BETWEEN_STARTS)


def _is_of_the_disk(error: OSError, job: Job) -> bool:
    """Whether the next trial would meet it too: no space, or the folder of the sweep is not to be written."""
    ours = job.folder is not None and str(error.filename or "").startswith(str(job.folder))
    return ours or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def _die_with_the_leader() -> None:
    """Where the leader is killed, its trials must not go on beside those of the next leader."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)  # from a thread nothing else ends the process

    threading.Thread(target=watch, daemon=True).start()


def _print_into(log: Path) -> None:
    """Standard output and error, also of C++ code that ends the process."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # what is still in the buffer was meant for elsewhere
        os.dup2(file, stream.fileno())
    os.close(file)
