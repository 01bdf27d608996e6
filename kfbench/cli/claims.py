"""The part of `kfbench compare` that judges published claims."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kfbench.claims import ClaimFile, claims_in, holds_claim, read_claim
from kfbench.errors import UsageError
from kfbench.results.claim_tables import caveats, figure_rows, part_rows, plot_ratios, verdict_rows
from kfbench.results.folders import RUNS
from kfbench.results.records import json_or_empty
from kfbench.results.tables import print_table
from kfbench.results.verdicts import REFUTED, committed

# Of what a claim leaves, the small things that are worth a commit.
_KEPT = ("config.yaml", "environment.json", "verdict.json", "trials.csv")
_PICTURES = "*.png"


def claim_paths(what: Sequence[Path]) -> tuple[list[Path], bool]:
    """The claims among files and folders, and whether a whole folder of them was named."""
    files = [path for path in what if path.is_file() and holds_claim(path)]
    folders = [path for path in what if path.is_dir() and not (path / "config.yaml").exists()]
    inside = [path for folder in folders for path in claims_in(folder)]
    if (files or inside) and len(files) + len(folders) < len(what):
        raise UsageError(f"give claims or folders of runs, not both: got {', '.join(map(str, what))}")
    return files + inside, bool(inside)


def show_verdicts(paths: Sequence[Path], scale: str, format: str, plot: Path | None) -> int:
    """The table of all verdicts that are known, of claims at a scale; runs nothing."""
    files = [read_claim(path, scale) for path in paths]
    records = [_known(file) or _unknown(file) for file in files]
    print_table(verdict_rows(records), format, {"scale": scale, "claims": records})
    for file, record in zip(files, records, strict=True):
        if record.get("hash") not in (None, file.hash):
            print(f"Warning: {file.claim.id} was judged with another configuration; run it again", file=sys.stderr)
    if plot is not None:
        plot_ratios(records, plot)
    return 0


def judge_one(
    path: Path,
    scale: str,
    out: Path | None,
    keep: Path | None,
    overwrite: bool,
    flags: Mapping[str, Any],
    format: str,
    plot: bool,
) -> dict[str, Any]:
    """Run what is missing for one claim, print the figure's data and the verdict; returns the record."""
    file = read_claim(path, scale, flags)
    record = {} if overwrite else _known(file)
    directory = out or RUNS / f"compare-{file.claim.id}-{scale}"
    if record.get("hash") == file.hash:
        print("judged before with this configuration; --overwrite judges again", file=sys.stderr)
    else:
        record = _judged(file, directory)
    if plot and (directory / "verdict.json").is_file():
        plot_ratios([record], directory / "ratios.png")
    _report(record, format)
    if keep is not None:
        _keep(directory, keep / scale / file.claim.id)
    return record


def exit_code(records: Sequence[Mapping[str, Any]], strict: bool) -> int:
    """A refuted claim is a result: 0, or 1 where the user is strict about it; 3 where runs failed."""
    if strict and any(record["verdict"] == REFUTED for record in records):
        return 1
    return 3 if any(record.get("status") == "failed" for record in records) else 0


def _judged(file: ClaimFile, directory: Path) -> dict[str, Any]:
    from kfbench.cli.progress import progress_observer
    from kfbench.cli.sweep_progress import sweep_observer
    from kfbench.engine.claims import Watching, judge_claim

    directory.mkdir(parents=True, exist_ok=True)
    observer = sweep_observer()
    watching = Watching(observer, progress_observer, lambda line: print(line, file=sys.stderr, flush=True))
    try:
        return judge_claim(file, directory, _committed_folder(file), watching)
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


def _known(file: ClaimFile) -> dict[str, Any]:
    """The verdict of the last run here, else the committed one; of this configuration, if there is one."""
    here = json_or_empty(RUNS / f"compare-{file.claim.id}-{file.scale}" / "verdict.json")
    kept = committed(_results(file.path), file.claim.id, file.scale)
    same = [record for record in (here, kept) if record.get("hash") == file.hash]
    return next(iter([*same, here, kept]))


def _unknown(file: ClaimFile) -> dict[str, Any]:
    return {**file.claim.model_dump(include={"id", "source", "says"}), "scale": file.scale, "verdict": "not run"}


def _keep(directory: Path, target: Path) -> None:
    """The small summary of a claim, for a commit."""
    target.mkdir(parents=True, exist_ok=True)
    for path in (*(directory / name for name in _KEPT), *directory.glob(_PICTURES)):
        if path.is_file():
            shutil.copyfile(path, target / path.name)
    print(f"kept in {target}", file=sys.stderr)
