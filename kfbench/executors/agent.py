"""What runs on a node for one job: a process for it, a folder of its own, and what it has to send home."""

import hashlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import kfbench
from kfbench.config.identity import fingerprint
from kfbench.errors import KfbenchError, UsageError
from kfbench.executors.contract import Job, Outcome, Request
from kfbench.executors.parcels import Parcel, Sender
from kfbench.executors.processes import ProcessExecutor

# How often it is looked for a checkpoint, and whether the leader wants an end; a job that ends is seen at once.
_LOOK_SECONDS = 0.5


@cache
def _code() -> tuple[str, str]:
    """Which kfbench this is: its version, and a digest of its modules, which one that is installed shares."""
    root, digest = Path(kfbench.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return kfbench.__version__, digest.hexdigest()


@dataclass(frozen=True)
class Errand:
    """A job, and what a node must know of its leader to do it: plain values, so that it can be sent."""

    job: Job
    module: str
    prepare: str
    preload: Mapping[str, Any]
    seen_as: tuple[int, ...] | None
    """What tells the leader's own folder from another at that path; None: records are sent home in any case."""
    code: tuple[str, str] = field(default_factory=_code)
    paths: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))
    working_folder: str = field(default_factory=os.getcwd)


@dataclass(frozen=True)
class Report:
    """What came of an errand so far; ``outcome`` is in the last one, unless the leader wanted an end."""

    parcel: Parcel = Parcel()  # noqa: RUF009 - it is frozen
    outcome: Outcome | None = None


def errand(job: Job, request: Request) -> Errand:
    """The errand of a job, whose folder is there."""
    shared = request.placed.ship != "always" and job.folder is not None
    seen_as = _identity(job.folder) if shared and job.folder is not None else None
    return Errand(job, request.module, request.prepare, request.preload, seen_as)


def attend(errand: Errand, files: Callable[[], Mapping[str, bytes]], wanted: Callable[[], bool]) -> Iterator[Report]:
    """Run the job in a process; yields what is to be sent home at every checkpoint, at last with the outcome.

    ``files`` gives what lies in the leader's folder, and is asked only where the node does not see that; ``wanted``
    is asked now and then: where the answer is no, the job saves what it has and ends without an outcome.
    """
    job, began = errand.job, time.monotonic()
    if not wanted():
        yield Report()
        return
    try:
        executor = _ready(errand)
    except KfbenchError as error:
        value = f"node {platform.node()}: {error}"
        yield Report(outcome=Outcome(job.key, "refused", value, time.monotonic() - began))
        return
    with _workplace(errand, files) as (folder, sender):
        executor.submit(replace(job, folder=folder))
        try:
            while not (outcomes := executor.wait(_LOOK_SECONDS)):
                if not wanted():
                    executor.stop()  # which has it save its checkpoint
                    break
                if sender is not None and sender.is_due():
                    yield Report(sender.parcel())
        finally:
            executor.stop()  # also where nobody asks for more
        parcel = sender.parcel() if sender is not None else Parcel()
        yield Report(parcel, _as_seen_from_home(outcomes[0], sender) if outcomes else None)


def _as_seen_from_home(outcome: Outcome, sender: Sender | None) -> Outcome:
    """A full disk of a node is none of the leader's: another node may have room."""
    if outcome.kind != "disk" or sender is None:
        return outcome
    _, sentence, name = outcome.value
    return replace(outcome, kind="crashed", value=f"node {platform.node()}: {name}: {sentence}")


@contextmanager
def _workplace(errand: Errand, files: Callable[[], Mapping[str, bytes]]) -> Iterator[tuple[Path | None, Sender | None]]:
    """The job's folder and who sends what lies there: nobody where it is the leader's own."""
    home = errand.job.folder
    if home is None or (errand.seen_as is not None and _identity(home) == errand.seen_as):
        yield home, None
        return
    folder = Path(tempfile.mkdtemp(prefix="kfbench-trial-"))
    try:
        known = files()
        for path, content in known.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        yield folder, Sender(folder, known)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _identity(folder: Path) -> tuple[int, ...] | None:
    """Equal where two nodes see one folder at this path; of another folder it would be another by its times."""
    with suppress(OSError):
        status = folder.stat()
        return status.st_ino, status.st_mtime_ns, status.st_ctime_ns
    return None


# One a process: what forks its jobs has imported torch, and serves the next errand too.
_executors: dict[str, ProcessExecutor] = {}


def _ready(errand: Errand) -> ProcessExecutor:
    """What starts jobs here, once the node is as the errand needs it; KfbenchError where it is not."""
    key = fingerprint({"module": errand.module, "prepare": errand.prepare, "preload": errand.preload})
    if key in _executors:
        return _executors[key]
    if errand.code != (ours := _code()):
        raise UsageError(f"its kfbench is {_spelled(ours)}, the leader's {_spelled(errand.code)}; install the same")
    # Where the leader finds a user's own modules, as far as that is here.
    sys.path += [path for path in errand.paths if path not in sys.path and Path(path or ".").exists()]
    with suppress(OSError):
        os.chdir(errand.working_folder)
    executor = ProcessExecutor(1, errand.module, errand.preload, main=False)
    executor.submit(Job("prepare", errand.prepare, (errand.preload,)))
    while not (outcomes := executor.wait(_LOOK_SECONDS)):
        pass
    if outcomes[0].kind != "returned":
        raise UsageError(str(outcomes[0].value))
    _executors[key] = executor
    return executor


def _spelled(code: tuple[str, str]) -> str:
    version, digest = code
    return f"{version} of digest {digest[:12]}"
