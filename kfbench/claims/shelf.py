"""Where verdicts lie, which of them still hold, and what of a claim is kept for a commit."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kfbench.claims.file import RULES, ClaimFile
from kfbench.claims.verdicts import outcome, verdict
from kfbench.errors import UsageError
from kfbench.results.folders import RUNS, refuse_file
from kfbench.results.reading import DamagedError, record_or_empty
from kfbench.results.records import write_atomically
from kfbench.results.schemas import Environment, Verdict

# Of what a claim leaves, the small things that are worth a commit.
_KEPT = ("config.yaml", "environment.json", "verdict.json", "trials.csv", "epochs.csv")
_PICTURES = "*.png"
# Folders of a claim's runs that cannot be continued.
_RUNS_OF_A_CLAIM = ("similarity-", "wallclock-")


def own_folder(file: ClaimFile) -> Path:
    """Where a claim runs unless told otherwise."""
    return RUNS / f"compare-{file.claim.id}-{file.scale}"


def committed_folder(file: ClaimFile) -> Path:
    """Where the summary of a claim is committed, beside the folder of its YAML."""
    return file.path.resolve().parent.parent / "docs" / "results" / file.scale / file.claim.id


def check_folder(directory: Path, file: ClaimFile) -> None:
    """Only a new folder, one of this very claim, or what is left of a claim that was stopped, is written to."""
    refuse_file(directory, "--out")
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    left = all(name in _KEPT or name.startswith(_RUNS_OF_A_CLAIM) for name in names)
    # One that was stopped has no verdict yet to tell whose it is.
    own = read_verdict(directory).get("id", file.claim.id if left else None) == file.claim.id
    if names and not own:
        raise UsageError(f"{directory} holds something else than claim {file.claim.id!r}; give another --out")


def read_verdict(directory: Path) -> dict[str, Any]:
    """verdict.json of a folder, or nothing; DamagedError where it cannot be read, or contradicts itself."""
    path = directory / "verdict.json"
    record = record_or_empty(path, Verdict)
    parts = record.get("parts", [])
    judged_so = record.get("rules") == RULES  # by others its outcomes were others: it is stale, as its hash tells
    for part in parts:
        if part.get("below") is None and part.get("above") is None:
            raise DamagedError(f"{path} cannot be believed: a part of it has no threshold")
        if judged_so and outcome(part) != part["outcome"]:
            raise DamagedError(f"{path} cannot be believed: {part['outcome']!r} is not what its figures say")
    if parts and judged_so and record["verdict"] not in (None, verdict(parts, record.get("trend", False))):
        raise DamagedError(f"{path} cannot be believed: {record['verdict']!r} is not what its parts say")
    return record


def known_verdict(file: ClaimFile, directory: Path) -> dict[str, Any]:
    """The verdict of the last run there, else the committed one; of this configuration, if there is one.

    DamagedError for one that cannot be read, or is of another claim.
    """
    here, kept = (_own_verdict(file, folder) for folder in (directory, committed_folder(file)))
    same = [record for record in (here, kept) if record.get("hash") == file.hash]
    return next((record for record in (*same, here, kept) if record), {})


def _own_verdict(file: ClaimFile, folder: Path) -> dict[str, Any]:
    record = read_verdict(folder)
    if record and (record["id"], record["scale"]) != (file.claim.id, file.scale):
        of = f"of {record['id']} at scale {record['scale']}, not of {file.claim.id} at scale {file.scale}"
        raise DamagedError(f"{folder / 'verdict.json'} is {of}")
    return record


@contextmanager
def claim_folder(directory: Path) -> Iterator[None]:
    """Made where it is missing; removed again, with what was made for it, if nothing came of it."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # up to the first that holds something
            for path in missing:
                path.rmdir()


def clear_runs(directory: Path) -> None:
    """Throw away what cannot be continued."""
    for path in directory.iterdir():
        if path.name.startswith(_RUNS_OF_A_CLAIM):
            shutil.rmtree(path)


def keep(directory: Path, target: Path) -> None:
    """Copy the small summary of a claim, for a commit; UsageError for one that was judged by uncommitted code."""
    if record_or_empty(directory / "environment.json", Environment).get("git_dirty"):
        raise UsageError(f"{directory} was judged by code that differs from its commit: judge it again, by --overwrite")
    target.mkdir(parents=True, exist_ok=True)
    for path in (*(directory / name for name in _KEPT), *directory.glob(_PICTURES)):
        if path.is_file():  # not every claim has trials or pictures
            write_atomically(target / path.name, path.read_bytes())
