"""Output folders: a new one by default, and nothing replaced unless asked."""

import fcntl
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kfbench.config.identity import budget, fingerprint, refuse_other
from kfbench.config.load import load_config
from kfbench.config.schema import Config
from kfbench.config.yaml_file import read_yaml
from kfbench.errors import UsageError

RUNS = Path("runs")


@contextmanager
def output_folder(
    out: Path | None, name: str, resume: bool, overwrite: bool, can_resume: bool = True
) -> Iterator[Path]:
    """The folder a command writes to; removed again if the command fails before writing anything.

    Without ``out`` it is a new one under runs/. An existing ``out`` needs ``resume`` or
    ``overwrite``, and only a folder of kfbench (or an empty one) is ever overwritten.
    """
    if resume and overwrite:
        raise UsageError("give --resume or --overwrite, not both")
    old: Path | None = None
    if out is None:
        directory, made = _new_folder(name)
    else:
        _check_existing(out, resume, overwrite, can_resume)
        directory = out.resolve() if out.is_symlink() else out
        old = _set_aside(directory) if overwrite and directory.exists() else None
        made = _make(directory, exist_ok=True)
    try:
        yield directory
    except BaseException:
        _remove_empty(made)
        if old is not None and not directory.exists():
            old.rename(directory)
            old = None
        raise
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def shared_folder(out: Path | None, command: str, config: Config, overwrite: bool) -> Iterator[Path]:
    """The folder of a sweep or comparison, by default runs/COMMAND-HASH: continued where it is there.

    All commands on one problem with one budget share it. UsageError for a folder of something
    else, or of another problem or budget.
    """
    shared = budget(config)
    directory = RUNS / f"{command}-{fingerprint(shared)}" if out is None else out
    if overwrite and directory.is_dir():
        os.close(lock(directory))  # refused while another command runs there
    if overwrite or not directory.exists() or (directory.is_dir() and not _holds_something(directory)):
        with output_folder(directory, command, False, overwrite) as directory:
            yield directory
        return
    refuse_file(directory, "--out")
    file = directory / "config.yaml"
    has_trials = command == "sweep" and (directory / "trials.csv").is_file()
    if not has_trials and (not file.is_file() or command not in read_yaml(file)):
        raise UsageError(f"{directory} holds something else than a {command}; give another --out")
    if file.is_file():
        refuse_other(budget(load_config(file, command=command)), shared, directory, command)
    yield directory


def refuse_file(path: Path, flag: str) -> None:
    """UsageError where there is a file at the path of a folder."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{flag} {path} is a file, expected a folder")


def _holds_something(directory: Path) -> bool:
    """More than what a command leaves that was killed while it wrote its first file."""
    return any(path.suffix != ".tmp" for path in directory.iterdir())


def _check_existing(out: Path, resume: bool, overwrite: bool, can_resume: bool) -> None:
    if resume and not (out / "config.yaml").is_file():
        raise UsageError(f"--resume: {out} holds no run (no config.yaml)")
    if not out.exists():
        return
    refuse_file(out, "--out")
    empty = not _holds_something(out)
    if not (resume or overwrite or empty):
        ways = "--resume to continue it or --overwrite to replace it" if can_resume else "--overwrite to replace it"
        raise UsageError(f"--out {out} exists; give {ways}")
    if overwrite and not empty and not (out / "config.yaml").is_file():
        raise UsageError(f"--overwrite: {out} is no output folder of kfbench (no config.yaml), so it is left alone")
    if overwrite and Path.cwd().is_relative_to(out.resolve()):
        raise UsageError(f"--overwrite: {out} holds the working directory, so it is left alone; run it from elsewhere")


def _new_folder(name: str) -> tuple[Path, list[Path]]:
    """A folder that nobody else has: another run may begin in the same second."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    for i in itertools.count(1):
        directory = RUNS / (stem if i == 1 else f"{stem}-{i}")
        with suppress(FileExistsError):
            return directory, _make(directory, exist_ok=False)
    raise AssertionError("unreachable")


def _make(directory: Path, exist_ok: bool) -> list[Path]:
    """Make the folder; returns those that were missing, the deepest first."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=exist_ok)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    """Up to the first that holds something."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _set_aside(directory: Path) -> Path:
    """Move the old run out of the way; it returns if the new one never begins."""
    aside = directory.with_name(f".{directory.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    return directory.rename(aside)


def lock(directory: Path) -> int:
    """Held until the process ends, however it ends."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UsageError(f"{directory} is in use by another command; wait for it, or give another --out") from error
    return handle
