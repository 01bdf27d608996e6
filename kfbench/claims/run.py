"""A published claim: run what is missing to judge it, and judge it."""

import shutil
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kfbench.claims.directions import asked_config, check_directions, check_followed
from kfbench.claims.evidence import Evidence, Figures
from kfbench.claims.file import OF_TIME, RULES, ClaimFile
from kfbench.claims.inverses import LABELS, inverse_errors
from kfbench.claims.measures import DIRECTIONS, FINISHED, TUNED, figures
from kfbench.claims.toy import toy_losses
from kfbench.claims.verdicts import judge, verdict
from kfbench.config.identity import fingerprint
from kfbench.config.load import dump
from kfbench.config.methods import resolve_method
from kfbench.config.schema import Config
from kfbench.config.specs import parse_spec
from kfbench.errors import UsageError, unknown
from kfbench.results.environment import environment
from kfbench.results.folders import shared_folder
from kfbench.results.reading import DamagedError, read_record, read_table, record_or_empty
from kfbench.results.records import (
    ENDED,
    SCHEMA_VERSION,
    write_csv,
    write_json,
    write_yaml,
)
from kfbench.results.schemas import Record, SimilarityRecord, WallclockSummary
from kfbench.similarity.followed import followed_config
from kfbench.similarity.means import SPECTRUM_COLUMNS
from kfbench.similarity.run import similarity
from kfbench.sweep.ledger import adopt
from kfbench.sweep.losses import parse_row
from kfbench.sweep.plan import Swept, plan, trial
from kfbench.sweep.run import sweep
from kfbench.sweep.watcher import SweepObserver
from kfbench.training.observer import Observer
from kfbench.wallclock.gate import read_windows
from kfbench.wallclock.ratios import CONTROL, compose, per_update, ratios
from kfbench.wallclock.run import wallclock

# What a verdict keeps of the runs with fresh seeds, so that it can be judged anew where these are not.
_NUMBERS = ("update", "train_loss", "seconds_updates")
_EPOCHS = ("method", "run_dir", "seed", *_NUMBERS)
# Of a method in a sweep's summary, what would only make a verdict long: trials.csv has it.
_NOT_TOLD = ("losses", "losses_by_seed", "per_epoch")
# Of spectrum.csv, which a claim reads back.
_COUNTS, _ERRORS = ("seed", "update", "updates_since_refresh"), SPECTRUM_COLUMNS[-3:]


@dataclass(frozen=True)
class Surroundings:
    """Where the runs of a claim go and who watches them: an observer for each command it may need."""

    sweep: SweepObserver
    training: Callable[[Config], Observer]
    line: Callable[[str], None]


class ClaimInterruptedError(Exception):
    """The runs of a claim were interrupted; the same command continues them."""


def judge_claim(file: ClaimFile, directory: Path, earlier: Path, around: Surroundings) -> dict[str, Any]:
    """Run what is missing into ``directory`` and the folder of its sweep; returns what verdict.json holds.

    ``earlier`` is where the same claim's summary may be committed: trials listed there are not run again.
    UsageError for what does not fit, before anything runs. Raises ClaimInterruptedError.
    """
    check_claim(file)
    measures = file.measures
    if measures & set(DIRECTIONS):
        check_followed(file)
    # In this order: directions follow a method as it was tuned.
    evidence = Evidence()
    record: dict[str, Any] = {"status": "done"}
    if file.tunes:
        record |= _tune(file, directory, earlier, around, evidence)
    if measures & set(DIRECTIONS):
        record["similarity"] = _follow(file, directory, around, evidence)
    if "seconds_per_update" in measures:
        record["wallclock"] = _time(file, directory, around, evidence)
    if "inverse_error" in measures:
        evidence.inverses = record["inverses"] = inverse_errors(file.config)
    if "toy_loss" in measures:
        evidence.toy = record["toy"] = toy_losses()
    parts = _parts(file, evidence)
    record = {
        "schema_version": SCHEMA_VERSION,
        **file.claim.model_dump(include={"id", "source", "says", "notes"}),
        "scale": file.scale,
        "hash": file.hash,
        "rules": RULES,
        "trend": file.shows_a_trend,
        "verdict": verdict(parts, file.shows_a_trend) if file.scale != "smoke" else None,
        "parts": parts,
        **record,
    }
    write_yaml(directory / "config.yaml", dump(file.config, "sweep"))
    write_json(directory / "environment.json", environment(torch.device(file.config.run.device)))
    # Last, since where it lies the claim counts as judged.
    write_json(directory / "verdict.json", record)
    return record


def check_claim(file: ClaimFile) -> None:
    """UsageError for whatever would only show after hours: labels, grids, published SPECs, methods that are asked."""
    settings = file.config
    methods = _planned(settings) if file.tunes else {}
    labels = list(methods)
    if file.measures & set(TUNED) and not labels:
        needed = ", ".join(sorted(file.measures & set(TUNED)))
        raise UsageError(f"{file.path.name} has no sweep block, which {needed} needs: what is tuned, over which grids")
    _check_labels(file, TUNED, labels)
    if file.measures & set(FINISHED) and not settings.sweep.top:
        needed = ", ".join(sorted(file.measures & set(FINISHED)))
        raise UsageError(f"{file.path.name}: {needed} needs fresh seeds, so sweep.top of 1 or more, got 0")
    for part in file.claim.parts:
        for label in (part.of, part.to) if part.measure == "least_damping" else ():
            if "damping" not in (axis.name for axis in methods[label].axes):
                raise UsageError(f"{file.path.name}: least_damping of {label!r}, whose damping is not swept")
        if part.measure == "toy_loss":  # quick enough to be measured for the check alone
            _figures(file, part.model_dump(), Evidence(toy=toy_losses()))
    fixed = [label for spec in file.claim.published for label in _planned(_fixed(file, spec))]
    for index, label in enumerate(fixed):
        if label in fixed[:index]:
            raise UsageError(f"{file.path.name}: published gives {label!r} twice")
    if file.measures & set(DIRECTIONS):
        check_directions(file)
    _check_labels(file, ("inverse_error",), LABELS)
    _check_labels(file, ("seconds_per_update",), [method.label for method in settings.methods])


def _planned(config: Config) -> dict[str, Swept]:
    """The methods of a sweep by label; UsageError for a cell that does not fit."""
    methods = {method.label: method for method in plan(config)}
    for method in methods.values():
        for cell in method.cells():
            trial(config, method, cell, "grid", config.run.seed)
    return methods


def _check_labels(file: ClaimFile, measures: Sequence[str], labels: Sequence[str]) -> None:
    for part in file.claim.parts:
        for label in (part.of, part.to) if part.measure in measures else ():
            if label not in labels:
                raise unknown(f"method in {file.path.name}", label, labels)


def _parts(file: ClaimFile, evidence: Evidence) -> list[dict[str, Any]]:
    judged = []
    for part in (part.model_dump() for part in file.claim.parts):
        judged.append(judge(part, _figures(file, part, evidence)))
    return judged


def _figures(file: ClaimFile, part: Mapping[str, Any], evidence: Evidence) -> Figures:
    try:
        return figures(part, evidence)
    except ValueError as error:
        raise UsageError(f"{file.path.name}: {error}") from error


def _tune(file: ClaimFile, directory: Path, earlier: Path, around: Surroundings, evidence: Evidence) -> dict[str, Any]:
    """The published options, and the tuned ones, of every method, with fresh seeds."""
    with shared_folder(None, "sweep", file.config, overwrite=False) as folder:
        # Before the sweeps, which then find these trials ended.
        adopted = adopt(folder, earlier / "trials.csv")
        # What only counts losses may have been trained anywhere.
        swept = partial(_swept, folder=folder, around=around, any_device=not file.measures & OF_TIME)
        summaries = [swept(_fixed(file, spec)) for spec in file.claim.published]
        evidence.published = {label: m for summary in summaries for label, m in summary["methods"].items()}
        # The tuned ones last: summary.json and best.yaml of the folder are those of its last sweep.
        summaries.append(swept(file.config))
        evidence.tuning = summaries[-1]["methods"]
        kept = _final_epochs(folder, evidence.tuning, (directory, earlier))
        evidence.epochs = _by_seed(kept)
        # A folder of sweeps may hold the methods of others.
        own = {*evidence.tuning, *evidence.published}
        trials = [row for row in read_table(folder / "trials.csv", ("method",)) if row["method"] in own]
        evidence.trials = [parse_row(row) for row in trials]
        write_csv(directory / "trials.csv", list(trials[0]) if trials else [], trials)
    write_csv(directory / "epochs.csv", _EPOCHS if kept else [], kept)
    failed = any(summary["status"] == "failed" for summary in summaries)
    return {
        "status": "failed" if failed else "done",
        "adopted_trials": adopted,
        "methods": _told(evidence.tuning),
        "published": _told(evidence.published),
    }


def _swept(config: Config, folder: Path, around: Surroundings, any_device: bool) -> dict[str, Any]:
    summary = sweep(config, folder, around.sweep, any_device=any_device)
    if summary["status"] == "interrupted":
        raise ClaimInterruptedError
    return summary


def _fixed(file: ClaimFile, spec: Any) -> Config:
    """A sweep of one cell: the options as published."""
    opt, options = parse_spec(spec)
    # As axes, which labels leave out: that of the tuned method is then the same.
    swept = tuple(name for name in ("lr", "damping") if name in options)
    grids = {name: [options[name]] for name in swept}
    rest = {name: value for name, value in options.items() if name not in swept}
    # Absolute, since an lr on the axis of a method with a damping would be taken for alpha.
    only = {"parameters": swept, "grids": grids, "extend": 0, "refine": 0, "absolute_lr": True}
    return file.config.with_methods([resolve_method({"opt": opt, **rest})]).with_sweep(**only)


def _final_epochs(folder: Path, methods: Mapping[str, Any], kept: Sequence[Path]) -> list[dict[str, Any]]:
    """Rows of epochs.csv of the best points' runs, as a verdict keeps them.

    They come from the folders of the runs, else from the first kept epochs.csv that has the very run.
    """
    rows = []
    for label, method in methods.items():
        final = method["final"] or {"seeds": [], "run_dirs": []}
        for seed, run in zip(final["seeds"], final["run_dirs"], strict=True):
            key = {"method": label, "run_dir": run, "seed": str(seed)}
            own = _rows_of_run(folder / run / f"seed-{seed}" / "epochs.csv", {})
            known = (_rows_of_run(path / "epochs.csv", key) for path in kept)
            of_run = own or next(filter(None, known), [])
            rows += [{**{name: row[name] for name in _NUMBERS}, **key} for row in of_run]
    return rows


def _rows_of_run(path: Path, key: Mapping[str, str]) -> list[dict[str, str]]:
    """Those rows of an epochs.csv whose columns have the values of ``key``; none where there is no file, or no row."""
    if not path.exists() or not path.read_bytes().strip():
        return []
    columns, numbers = (*_NUMBERS, *key), [name for name in _NUMBERS if name != "update"]
    return [row for row in read_table(path, columns, ("update",), numbers) if key.items() <= row.items()]


def _by_seed(rows: Sequence[Mapping[str, str]]) -> dict[str, dict[int, list[dict[str, float]]]]:
    """Label -> seed -> the numbers of each row."""
    epochs: dict[str, dict[int, list[dict[str, float]]]] = {}
    for row in rows:
        numbers = {name: float(row[name] or "nan") for name in _NUMBERS}
        epochs.setdefault(row["method"], {}).setdefault(int(row["seed"]), []).append(numbers)
    return epochs


def _told(methods: Mapping[str, Any]) -> dict[str, Any]:
    """What of the methods of a sweep a verdict keeps."""
    return {label: {k: v for k, v in method.items() if k not in _NOT_TOLD} for label, method in methods.items()}


def _once(
    folder: Path, kind: type[Record], ended: Collection[str], run: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """The summary of a command that cannot be continued: as it stands where it has ended, else of a run begun anew."""
    try:
        known = record_or_empty(folder / "summary.json", kind)
    except DamagedError as error:
        warnings.warn(f"{error}; it is run again", stacklevel=2)
        known = {}
    if known.get("status") not in ended:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if run()["status"] == "interrupted":
            raise ClaimInterruptedError
    return read_record(folder / "summary.json", kind)


def _follow(file: ClaimFile, directory: Path, around: Surroundings, evidence: Evidence) -> dict[str, Any]:
    """`similarity` along the trajectory of the followed method, as tuned where the claim tunes."""
    config = asked_config(file, evidence.tuning)
    folder = directory / f"similarity-{fingerprint(dump(config, 'similarity'))}"
    observer = around.training(followed_config(config))
    summary = evidence.similarity = _once(folder, SimilarityRecord, ENDED, lambda: similarity(config, folder, observer))
    looks = folder / "spectrum.csv"
    evidence.spectrum = read_table(looks, SPECTRUM_COLUMNS, _COUNTS, _ERRORS) if looks.exists() else []
    return {key: summary[key] for key in ("status", "follow", "cosines", "progress", "spectrum")}


def _time(file: ClaimFile, directory: Path, around: Surroundings, evidence: Evidence) -> dict[str, Any]:
    """`wallclock` of the file's methods, the first of which is the reference."""
    config = file.config
    folder = directory / f"wallclock-{fingerprint(dump(config, 'wallclock'))}"
    cell = _once(folder, WallclockSummary, ("done",), lambda: wallclock([config], folder, around.line))["cells"][0]
    schedules = {label: (m["T"], m["S"]) for label, m in cell["methods"].items() if m["composed"]}
    costs = compose(per_update(read_windows(folder / "windows.csv")), schedules)
    reference = cell["reference"]
    others = [label for label in costs if label != reference and not label.endswith(CONTROL)]
    measured = {label: ratios(costs, label, reference) for label in others}
    evidence.cost_ratios = {reference: [1.0] * max(map(len, measured.values())), **measured}
    return {"methods": cell["methods"], "warnings": cell["warnings"]}
