"""Output folders: a new one by default, and nothing replaced unless asked."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kfbench.errors import UsageError

RUNS = Path("runs")


@contextmanager
def output_folder(out: Path | None, name: str, resume: bool, overwrite: bool) -> Iterator[Path]:
    """The folder a command writes to; removed again if the command fails before writing anything.

    Without ``out`` it is a new one under runs/. An existing ``out`` needs ``resume`` or
    ``overwrite``, and only a folder of kfbench (or an empty one) is ever overwritten.
    """
    if resume and overwrite:
        raise UsageError("give --resume or --overwrite, not both")
    directory = _new_folder(name) if out is None else out
    if out is not None:
        _check_existing(out, resume, overwrite)
    old = _set_aside(directory) if overwrite and directory.exists() else None
    created = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield directory
    except BaseException:
        if created and not any(directory.iterdir()):
            directory.rmdir()
            if old is not None:
                old.rename(directory)
                old = None
        raise
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def _check_existing(out: Path, resume: bool, overwrite: bool) -> None:
    if resume and not (out / "config.yaml").is_file():
        raise UsageError(f"--resume: {out} holds no run (no config.yaml)")
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out} is a file, expected a folder")
    empty = not any(out.iterdir())
    if not (resume or overwrite or empty):
        raise UsageError(f"--out {out} exists; give --resume to continue it or --overwrite to replace it")
    if overwrite and not empty and not (out / "config.yaml").is_file():
        raise UsageError(f"--overwrite: {out} is no output folder of kfbench (no config.yaml), so it is left alone")


def _new_folder(name: str) -> Path:
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    candidates = (RUNS / (stem if i == 1 else f"{stem}-{i}") for i in range(1, 10_000))
    return next(path for path in candidates if not path.exists())


def _set_aside(directory: Path) -> Path:
    """Move the old run out of the way; it returns if the new one never begins."""
    aside = directory.with_name(f".{directory.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    return directory.rename(aside)
