"""Where verdicts lie, which of them still hold, and what of a claim is kept for a commit."""

import shutil
from pathlib import Path
from typing import Any

from kfbench.claims.file import ClaimFile
from kfbench.errors import UsageError
from kfbench.results.folders import RUNS, refuse_file
from kfbench.results.records import json_or_empty, write_atomically

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
    own = read_verdict(directory).get("id", file.claim.id if left else None) == file.claim.id
    if names and not own:
        raise UsageError(f"{directory} holds something else than claim {file.claim.id!r}; give another --out")


def read_verdict(directory: Path) -> dict[str, Any]:
    """verdict.json of a folder, or nothing; UsageError where it cannot be read."""
    path = directory / "verdict.json"
    try:
        return json_or_empty(path)
    except ValueError as error:
        raise UsageError(f"{path} cannot be read ({error}); remove it, then the claim is judged again") from error


def known_verdict(file: ClaimFile, directory: Path) -> dict[str, Any]:
    """The verdict of the last run there, else the committed one; of this configuration, if there is one."""
    here, kept = read_verdict(directory), read_verdict(committed_folder(file))
    same = [record for record in (here, kept) if record.get("hash") == file.hash]
    return next((record for record in (*same, here, kept) if record), {})


def clear_runs(directory: Path) -> None:
    """Throw away what cannot be continued."""
    for path in directory.iterdir():
        if path.name.startswith(_RUNS_OF_A_CLAIM):
            shutil.rmtree(path)


def keep(directory: Path, target: Path) -> None:
    """Copy the small summary of a claim, for a commit."""
    target.mkdir(parents=True, exist_ok=True)
    for path in (*(directory / name for name in _KEPT), *directory.glob(_PICTURES)):
        if path.is_file():
            write_atomically(target / path.name, path.read_bytes())
