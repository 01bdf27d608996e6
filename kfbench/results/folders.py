"""Output folders: a new one by default, each for one command at a time, and nothing replaced unless asked."""

import itertools
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from kfbench.config.identity import budget, fingerprint, refuse_other
from kfbench.config.load import load_config
from kfbench.config.schema import Config
from kfbench.config.yaml_file import read_yaml
from kfbench.errors import UsageError
from kfbench.results.contents import command_of, foreign_entry
from kfbench.results.locking import lock

RUNS = Path("runs")


class OutputFolder:
    """``with folder as directory``: where one command writes, made where it is missing and locked until the block ends.

    A block that fails before anything was written leaves everything as it was. What --overwrite replaces goes
    only at ``begin``, and comes back where the command then writes no config.yaml, at the latest with the next
    command on that folder. UsageError while another command is at work there.
    """

    def __init__(
        self, out: Path | None, command: str, label: str, overwrite: bool, accept: Callable[[Path], None]
    ) -> None:
        """Without ``out`` a new one under runs/; ``accept`` refuses what lies in one that is not to be replaced."""
        self._out, self._command, self._overwrite, self._accept = out, command, overwrite, accept
        self._stem = f"{command}-{label}" if label else command
        self._made: list[Path] = []
        self._locks: list[int] = []
        self._old: Path | None = None

    def __enter__(self) -> Path:
        if self._out is None:
            self._directory, self._made = _new_folder(self._stem)
            self._locks = [lock(self._directory)]
            return self._directory
        refuse_file(self._out, "--out")
        # The link stays, what it points to is replaced.
        self._directory = self._out.resolve() if self._out.is_symlink() else self._out
        self._take()
        try:
            # Only now: what another command does there is done, and what was set aside is back.
            (self._check_replaceable if self._overwrite else self._accept)(self._directory)
        except BaseException:
            self._leave(failed=True)
            raise
        return self._directory

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(failed=error is not None)  # Ctrl-C too

    @property
    def replaces(self) -> bool:
        """Whether ``begin`` will set something aside: what lies there then counts for nothing."""
        return self._overwrite and _holds_something(self._directory)

    def begin(self) -> None:
        """Everything fits, and config.yaml is written next: now the old run is set aside."""
        if not self.replaces:
            return
        aside = _aside(self._directory)
        if aside.exists():
            raise UsageError(f"--overwrite: {aside} is in the way, where the old run would wait; move it elsewhere")
        self._directory.rename(aside)
        self._old = aside
        self._directory.mkdir(exist_ok=True)
        # The one of before has gone with the old run, and keeps others from putting that back.
        self._locks.append(lock(self._directory))

    def _take(self) -> None:
        while True:
            self._made += [path for path in _make(self._directory, exist_ok=True) if path not in self._made]
            try:
                held = lock(self._directory)
            except FileNotFoundError:  # a command that failed has removed it in between
                continue
            except BaseException:
                self._made = []  # it is another's by now
                raise
            self._locks = [held]
            try:
                if not _put_back(self._directory):
                    return
            except BaseException:
                self._leave(failed=True)
                raise
            self._leave(failed=False)  # of the empty folder that made way
            self._made = []

    def _check_replaceable(self, directory: Path) -> None:
        if not _holds_something(directory):
            return
        if not (directory / "config.yaml").is_file():
            raise UsageError(f"--overwrite: {self._out} is no output folder of kfbench (no config.yaml): it stays")
        if Path.cwd().is_relative_to(directory.resolve()):
            raise UsageError(f"--overwrite: {self._out} holds the working directory, so it stays; run it elsewhere")
        owner = command_of(directory)
        if owner is None:
            raise UsageError(f"--overwrite: {self._out} is no output folder of kfbench by its config.yaml: it stays")
        if owner != self._command:
            raise UsageError(f"--overwrite: {self._out} is a folder of {owner}, not of {self._command}: it stays")
        if foreign := foreign_entry(directory, owner):
            raise UsageError(f"--overwrite: {foreign} is not of kfbench, so {self._out} stays; move it elsewhere first")

    def _leave(self, failed: bool) -> None:
        try:
            if self._old is not None and (self._directory / "config.yaml").is_file():
                _remove(self._old)
            elif self._old is not None:
                if len(self._locks) > 1:  # else it is not the one that ``begin`` made
                    shutil.rmtree(self._directory, ignore_errors=True)
                self._old.rename(self._directory)
            elif failed:
                with suppress(OSError):  # the first folder that holds something ends it
                    for folder in self._made:
                        folder.rmdir()
        finally:
            for held in self._locks:
                os.close(held)
            self._locks, self._old = [], None


def output_folder(
    out: Path | None, command: str, resume: bool = False, overwrite: bool = False, label: str = ""
) -> OutputFolder:
    """The folder of one run, by default a new one under runs/, named after command and label.

    An existing ``out`` that holds something needs ``resume``, which needs a run there, or ``overwrite``.
    """
    if resume and overwrite:
        raise UsageError("give --resume or --overwrite, not both")
    if resume and out is not None:
        need_run(out)
    ways = "--resume to continue it or --overwrite to replace it" if command == "train" else "--overwrite to replace it"

    def accept(directory: Path) -> None:
        if resume:
            _check_run(directory)
        elif _holds_something(directory):
            raise UsageError(f"--out {out} exists; give {ways}")

    return OutputFolder(out, command, label, overwrite, accept)


def shared_folder(out: Path | None, command: str, config: Config, overwrite: bool) -> OutputFolder:
    """The folder of a sweep or comparison, by default runs/COMMAND-HASH: continued where it is there.

    All commands on one problem with one budget share it. UsageError for a folder of something
    else, or of another problem or budget.
    """
    shared = budget(config)

    def accept(directory: Path) -> None:
        if not _holds_something(directory):
            return
        file = directory / "config.yaml"
        has_trials = command == "sweep" and (directory / "trials.csv").is_file()
        if not has_trials and (not file.is_file() or command not in read_yaml(file)):
            raise UsageError(f"{directory} holds something else than a {command}; give another --out")
        if file.is_file():
            refuse_other(budget(load_config(file, command=command)), shared, directory, command)

    return OutputFolder(out or RUNS / f"{command}-{fingerprint(shared)}", command, "", overwrite, accept)


def need_run(out: Path) -> None:
    """UsageError where nothing lies that --resume could continue; what a killed --overwrite set aside is put back."""
    place = out.resolve() if out.is_symlink() else out
    if any(os.path.isdir(path) for path in _asides(place)):
        with OutputFolder(out, "train", "", False, _check_run):  # which puts it back
            return
    _check_run(out)


def _check_run(directory: Path) -> None:
    if not (directory / "config.yaml").is_file():
        raise UsageError(f"--resume: {directory} holds no run (no config.yaml)")


def refuse_file(path: Path, flag: str) -> None:
    """UsageError where there is a file at the path of a folder."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{flag} {path} is a file, expected a folder")


def _holds_something(directory: Path) -> bool:
    """More than what a command leaves that was killed while it wrote its first file."""
    return any(path.suffix != ".tmp" for path in directory.iterdir())


def _new_folder(name: str) -> tuple[Path, list[Path]]:
    """A folder that nobody else has: another run may begin in the same second."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    for i in itertools.count(1):
        directory = RUNS / (stem if i == 1 else f"{stem}-{i}")
        with suppress(FileExistsError):  # mkdir decides: whoever only looked could be overtaken
            return directory, _make(directory, exist_ok=False)
    raise AssertionError("unreachable")


def _make(directory: Path, exist_ok: bool) -> list[Path]:
    """Make the folder; returns those that were missing, the deepest first."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]  # while they still are
    directory.mkdir(parents=True, exist_ok=exist_ok)
    return missing


def _aside(directory: Path) -> Path:
    """Where the old run waits until the new one has begun: beside it, under a name that nobody else gives."""
    whole = directory.resolve()
    return whole.parent / f".{whole.name}.replaced-by-kfbench"


def _asides(directory: Path) -> tuple[Path, ...]:
    """That, and where it was left before it had this name."""
    aside = _aside(directory)
    return aside, aside.with_suffix(".replaced")


def _put_back(directory: Path) -> bool:
    """Whether an old run came back, whose --overwrite was killed before the new one began. Whoever calls has the lock.

    Where the new one did begin, what is left of the old one goes.
    """
    for aside in _asides(directory):
        owner = command_of(aside) if os.path.isdir(aside) else None
        if owner is None or foreign_entry(aside, owner) is not None:
            continue  # nothing, or somebody else's
        if {path.name for path in directory.iterdir()} <= {"config.yaml.tmp"}:
            os.close(lock(aside, directory))  # held by the command that set it aside, while that lives
            (directory / "config.yaml.tmp").unlink(missing_ok=True)
            aside.rename(directory)
            return True
    aside = _aside(directory)
    if os.path.isdir(aside) and command_of(directory) is not None:
        owner = command_of(aside)
        torn = not (aside / "config.yaml").exists()  # its removal was killed
        if (owner is not None or torn) and foreign_entry(aside, owner) is None:
            _remove(aside)
    return False


def _remove(run: Path) -> None:
    # First what makes it a run: a removal that is killed leaves nothing that could be taken for one.
    (run / "config.yaml").unlink(missing_ok=True)
    shutil.rmtree(run, ignore_errors=True)
