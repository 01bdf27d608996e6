"""The part of `kfbench compare` that judges published claims."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfbench.claims.file import ClaimFile, claim_block, claim_of, claims_in
from kfbench.claims.plots import plot_ratios
from kfbench.claims.shelf import (
    check_folder,
    claim_folder,
    clear_runs,
    committed_folder,
    keep,
    known_verdict,
    own_folder,
    read_verdict,
)
from kfbench.claims.tables import caveats, figure_rows, part_rows, verdict_rows
from kfbench.claims.verdicts import REFUTED
from kfbench.config.command_blocks import Placed
from kfbench.config.yaml_file import read_yaml
from kfbench.errors import UsageError
from kfbench.executors.choosing import check_installed
from kfbench.results.environment import commit
from kfbench.results.folders import RUNS, refuse_file
from kfbench.results.reading import DamagedError
from kfbench.results.tables import print_table

# Flags that a claim takes beside its scale.
PLACES = ("data_dir", "device", "threads", *Placed.model_fields)


def read_files(paths: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """The YAMLs among files and folders, as read."""
    # A pipe too, such as <(...): whatever reads it is the only one to.
    return {path: read_yaml(path) for path in dict.fromkeys(paths) if not path.is_dir()}


def find_claims(
    folders: Sequence[Path], files: Mapping[Path, dict[str, Any]]
) -> tuple[dict[Path, dict[str, Any]], bool]:
    """The claims among ``files`` as read and in ``folders``, and whether a whole folder of them was named."""
    named = {path: tree for path, tree in files.items() if claim_block(tree)}
    what = [*folders, *(path for path in files if path not in folders)]
    # With a config.yaml it is a folder of runs.
    places = [path for path in what if path.is_dir() and not (path / "config.yaml").exists()]
    inside = {folder: trees for folder in places if (trees := claims_in(folder))}
    # One that is named is run, those of a folder are shown: of both, one would be left undone without a word.
    if (named or inside) and len(what) not in (len(named), len(inside)):
        raise UsageError(
            f"give claims, folders of claims or folders of runs, not several kinds: got {', '.join(map(str, what))}"
        )
    return named or {path: tree for trees in inside.values() for path, tree in trees.items()}, bool(inside)


@dataclass(frozen=True)
class Choice:
    """What the user chose for claims."""

    scale: str
    keep: Path | None
    overwrite: bool
    plot: bool
    format: str


def judge(
    claims: Mapping[Path, dict[str, Any]],
    whole_folder: bool,
    choice: Choice,
    out: Path | None,
    strict: bool,
    flags: Mapping[str, Any],
) -> int:
    """Judge every claim named, or show what is known of a whole folder of them; returns the exit code.

    ``claims`` are YAMLs as read, by path; ``flags`` say where it runs (``PLACES``), never what: the claim's file
    and the scale do.
    """
    if out is not None and (whole_folder or len(claims) > 1):
        raise UsageError(f"--out {out} is of one claim, got {len(claims)}")
    files = [claim_of(path, tree, choice.scale, flags) for path, tree in claims.items()]
    for file in files:
        check_installed(file.config.sweep)
    ids = [file.claim.id for file in files]
    if twice := next((id for i, id in enumerate(ids) if id in ids[:i]), None):
        raise UsageError(f"two of these files hold a claim {twice!r}: {', '.join(map(str, claims))}")
    if whole_folder and (choice.keep is not None or choice.overwrite):
        raise UsageError("a folder of claims is only shown: give --keep and --overwrite with one file")
    # Now, not when hours of runs are to be kept.
    if choice.keep is not None and commit()["git_dirty"]:
        raise UsageError("--keep is for verdicts of a clean commit, and kfbench's own code differs from its commit")
    for folder in (choice.keep, *choice.keep.parents) if choice.keep is not None else ():
        refuse_file(folder, "--keep")
    records = _show_all(files, choice) if whole_folder else [_judge_one(file, choice, out) for file in files]
    if strict and any(record["verdict"] == REFUTED for record in records):
        return 1  # else a refuted claim is a result like any other
    return 3 if any(record.get("status") == "failed" for record in records) else 0


def _show_all(files: Sequence[ClaimFile], choice: Choice) -> list[dict[str, Any]]:
    """The table of all verdicts that are known at a scale; runs nothing."""
    records = [_known(file) for file in files]
    # What was not run has no hash.
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


def _known(file: ClaimFile) -> dict[str, Any]:
    """What is known of one claim; a verdict that cannot be read hides no other."""
    try:
        return known_verdict(file, own_folder(file)) or _unknown(file)
    except DamagedError as error:
        print(f"Warning: {error}", file=sys.stderr)
        return _unknown(file) | {"verdict": "cannot be read", "status": "failed"}


def _unknown(file: ClaimFile) -> dict[str, Any]:
    return {**file.claim.model_dump(include={"id", "source", "says"}), "scale": file.scale, "verdict": "not run"}


def _judge_one(file: ClaimFile, choice: Choice, out: Path | None) -> dict[str, Any]:
    """Run what is missing for one claim, print the figure's data and the verdict; returns the record."""
    directory = out or own_folder(file)
    try:
        check_folder(directory, file)
        record = {} if choice.overwrite else known_verdict(file, directory)
    except DamagedError as error:
        raise DamagedError(f"{error}; remove it, then the claim is judged again") from error
    if record.get("hash") == file.hash:
        print("judged before with this configuration; --overwrite follows, times and judges again", file=sys.stderr)
    else:
        record = _judged(file, directory, choice.overwrite)
    # A committed verdict may be shown while its folder holds another one, or none.
    here = read_verdict(directory).get("hash") == file.hash
    if choice.plot and here:
        plot_ratios([record], directory / "ratios.png")
    _report(record, choice.format)
    if choice.keep is not None and here:
        target = choice.keep / file.scale / file.claim.id
        keep(directory, target)
        print(f"kept in {target}", file=sys.stderr)
    if not here and (out is not None or choice.keep is not None or choice.plot):
        print(f"the committed verdict is shown and nothing is written: {committed_folder(file)}", file=sys.stderr)
    return record


def _judged(file: ClaimFile, directory: Path, anew: bool) -> dict[str, Any]:
    # Not above: they need torch, which a verdict that is known does not.
    from kfbench.claims.run import ClaimInterruptedError, Surroundings, check_claim, judge_claim
    from kfbench.cli.progress import progress_observer, sweep_observer

    check_claim(file)
    observer = sweep_observer()
    around = Surroundings(observer, progress_observer, lambda line: print(line, file=sys.stderr, flush=True))
    try:
        with claim_folder(directory):
            if anew:
                clear_runs(directory)
            return judge_claim(file, directory, committed_folder(file), around)
    except ClaimInterruptedError:
        print("interrupted; the same command continues", file=sys.stderr)
        raise KeyboardInterrupt from None  # which ends in the exit code 130
    finally:
        observer.close()


def _report(record: Mapping[str, Any], format: str) -> None:
    print(f"{record['id']}: {record['says']} ({record['source']})", file=sys.stderr)
    rows = figure_rows(record)
    if rows and format == "table":  # the other formats hold one table
        print_table(rows, format, record)
        print()
    print_table(part_rows(record["parts"]), format, record)
    for line in caveats(record):
        print(f"note: {line}", file=sys.stderr)
    if record["scale"] == "smoke":
        print("smoke run: no verdict, not for comparison", file=sys.stderr)
    else:
        print(f"verdict at scale {record['scale']}: {record['verdict']}", file=sys.stderr)
