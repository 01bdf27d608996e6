"""The part of `kfbench compare` that judges published claims."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfbench.claims.file import ClaimFile, claims_in, holds_claim, read_claim
from kfbench.claims.plots import plot_ratios
from kfbench.claims.tables import caveats, figure_rows, part_rows, verdict_rows
from kfbench.claims.verdicts import REFUTED
from kfbench.errors import UsageError
from kfbench.results.folders import RUNS, refuse_file, shared_folder
from kfbench.results.records import json_or_empty, write_atomically
from kfbench.results.tables import print_table

# Of what a claim leaves, the small things that are worth a commit.
_KEPT = ("config.yaml", "environment.json", "verdict.json", "trials.csv", "epochs.csv")
_PICTURES = "*.png"
# Flags that a claim takes beside its scale.
PLACES = ("data_dir", "device", "threads")
# Folders of a claim's runs that cannot be continued.
_RUNS_OF_A_CLAIM = ("similarity-", "wallclock-")


def claim_paths(what: Sequence[Path]) -> tuple[list[Path], bool]:
    """The claims among files and folders, and whether a whole folder of them was named."""
    files = [path for path in what if path.is_file() and holds_claim(path)]
    folders = [path for path in what if path.is_dir() and not (path / "config.yaml").exists()]
    inside = [path for folder in folders for path in claims_in(folder)]
    if (files or inside) and len(files) + len(folders) < len(what):
        raise UsageError(f"give claims or folders of runs, not both: got {', '.join(map(str, what))}")
    return files + inside, bool(inside)


@dataclass(frozen=True)
class Choice:
    """What the user chose for claims."""

    scale: str
    keep: Path | None
    overwrite: bool
    plot: bool
    format: str


def judge(
    paths: Sequence[Path], whole_folder: bool, choice: Choice, out: Path | None, strict: bool, flags: Mapping[str, Any]
) -> int:
    """Judge every claim named, or show what is known of a whole folder of them; returns the exit code.

    ``flags`` say where it runs (``PLACES``), never what: the claim's file and the scale do.
    """
    if out is not None and (whole_folder or len(paths) > 1):
        raise UsageError(f"--out {out} is of one claim, got {len(paths)}")
    files = [read_claim(path, choice.scale, flags) for path in paths]
    ids = [file.claim.id for file in files]
    if twice := next((id for i, id in enumerate(ids) if id in ids[:i]), None):
        raise UsageError(f"two of these files hold a claim {twice!r}: {', '.join(map(str, paths))}")
    if whole_folder and (choice.keep is not None or choice.overwrite):
        raise UsageError("a folder of claims is only shown: give --keep and --overwrite with one file")
    for folder in (choice.keep, *choice.keep.parents) if choice.keep is not None else ():
        refuse_file(folder, "--keep")
    records = _show_all(files, choice) if whole_folder else [_judge_one(file, choice, out) for file in files]
    if strict and any(record["verdict"] == REFUTED for record in records):
        return 1  # else a refuted claim is a result like any other
    return 3 if any(record.get("status") == "failed" for record in records) else 0


def _show_all(files: Sequence[ClaimFile], choice: Choice) -> list[dict[str, Any]]:
    """The table of all verdicts that are known at a scale; runs nothing."""
    records = [_known(file, _own_folder(file)) or _unknown(file) for file in files]
    stale = [record for file, record in zip(files, records, strict=True) if record.get("hash") not in (None, file.hash)]
    for record in stale:
        record["verdict"] = f"stale ({record['verdict']})"
    print_table(verdict_rows(records), choice.format, {"scale": choice.scale, "claims": records})
    if stale:
        ids = ", ".join(record["id"] for record in stale)
        print(f"Warning: judged with another configuration, run again: {ids}", file=sys.stderr)
    if choice.plot:
        path = RUNS / f"verdicts-{choice.scale}.png"
        path.parent.mkdir(exist_ok=True)
        plot_ratios(records, path)
        print(f"picture: {path}", file=sys.stderr)
    return records


def _judge_one(file: ClaimFile, choice: Choice, out: Path | None) -> dict[str, Any]:
    """Run what is missing for one claim, print the figure's data and the verdict; returns the record."""
    directory = out or _own_folder(file)
    _check_folder(directory, file)
    record = {} if choice.overwrite else _known(file, directory)
    if record.get("hash") == file.hash:
        print("judged before with this configuration; --overwrite follows, times and judges again", file=sys.stderr)
    else:
        record = _judged(file, directory, choice.overwrite)
    here = _read_verdict(directory / "verdict.json").get("hash") == file.hash
    if choice.plot and here:
        plot_ratios([record], directory / "ratios.png")
    _report(record, choice.format)
    if choice.keep is not None and here:
        _keep(directory, choice.keep / file.scale / file.claim.id)
    if not here and (out is not None or choice.keep is not None or choice.plot):
        print(f"the committed verdict is shown and nothing is written: {_committed_folder(file)}", file=sys.stderr)
    return record


def _own_folder(file: ClaimFile) -> Path:
    return RUNS / f"compare-{file.claim.id}-{file.scale}"


def _check_folder(directory: Path, file: ClaimFile) -> None:
    """Only a new folder, one of this very claim, or what is left of a claim that was stopped, is written to."""
    refuse_file(directory, "--out")
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    left = all(name in _KEPT or name.startswith(_RUNS_OF_A_CLAIM) for name in names)
    own = _read_verdict(directory / "verdict.json").get("id", file.claim.id if left else None) == file.claim.id
    if names and not own:
        raise UsageError(f"{directory} holds something else than claim {file.claim.id!r}; give another --out")


def _read_verdict(path: Path) -> dict[str, Any]:
    try:
        return json_or_empty(path)
    except ValueError as error:
        raise UsageError(f"{path} cannot be read ({error}); remove it, then the claim is judged again") from error


def _judged(file: ClaimFile, directory: Path, anew: bool) -> dict[str, Any]:
    from kfbench.claims.run import ClaimInterruptedError, Surroundings, judge_claim
    from kfbench.cli.progress import progress_observer
    from kfbench.cli.sweep_progress import sweep_observer

    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir() if anew else ():
        if path.name.startswith(_RUNS_OF_A_CLAIM):
            shutil.rmtree(path)
    observer = sweep_observer()
    around = Surroundings(
        lambda config: shared_folder(None, "sweep", config, overwrite=False),
        observer,
        progress_observer,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    try:
        return judge_claim(file, directory, _committed_folder(file), around)
    except ClaimInterruptedError:
        print("interrupted; the same command continues", file=sys.stderr)
        raise KeyboardInterrupt from None
    finally:
        observer.close()


def _report(record: Mapping[str, Any], format: str) -> None:
    print(f"{record['id']}: {record['says']} ({record['source']})", file=sys.stderr)
    rows = figure_rows(record)
    if rows and format == "table":
        print_table(rows, format, record)
        print()
    print_table(part_rows(record["parts"]), format, record)
    for line in caveats(record):
        print(f"note: {line}", file=sys.stderr)
    if record["scale"] == "smoke":
        print("smoke run: no verdict, not for comparison", file=sys.stderr)
    else:
        print(f"verdict at scale {record['scale']}: {record['verdict']}", file=sys.stderr)


def _results(path: Path) -> Path:
    """Where the summaries of the claims beside this file are committed."""
    return path.resolve().parent.parent / "docs" / "results"


def _committed_folder(file: ClaimFile) -> Path:
    return _results(file.path) / file.scale / file.claim.id


def _known(file: ClaimFile, directory: Path) -> dict[str, Any]:
    """The verdict of the last run there, else the committed one; of this configuration, if there is one."""
    here = _read_verdict(directory / "verdict.json")
    kept = _read_verdict(_committed_folder(file) / "verdict.json")
    same = [record for record in (here, kept) if record.get("hash") == file.hash]
    return next((record for record in (*same, here, kept) if record), {})


def _unknown(file: ClaimFile) -> dict[str, Any]:
    return {**file.claim.model_dump(include={"id", "source", "says"}), "scale": file.scale, "verdict": "not run"}


def _keep(directory: Path, target: Path) -> None:
    """The small summary of a claim, for a commit."""
    target.mkdir(parents=True, exist_ok=True)
    for path in (*(directory / name for name in _KEPT), *directory.glob(_PICTURES)):
        if path.is_file():
            write_atomically(target / path.name, path.read_bytes())
    print(f"kept in {target}", file=sys.stderr)
