"""A published claim: run what is missing to judge it, and judge it."""

import csv
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kfbench.claims import ClaimFile, check_labels
from kfbench.config import dump, load_config
from kfbench.engine.observer import Observer
from kfbench.engine.similarity import followed_config, similarity
from kfbench.engine.sweep import SweepObserver, sweep
from kfbench.engine.sweep_plan import method_label, plan
from kfbench.engine.toy import toy_losses
from kfbench.engine.wallclock import wallclock
from kfbench.errors import UsageError
from kfbench.identity import fingerprint
from kfbench.methods import find_method, parse_spec
from kfbench.results.environment import environment
from kfbench.results.measures import DIRECTIONS, TUNED, Evidence, figures
from kfbench.results.records import SCHEMA_VERSION, json_or_empty, read_json, write_json, write_yaml
from kfbench.results.timings import CONTROL, per_update, ratios
from kfbench.results.trials import parse_row
from kfbench.results.verdicts import judge, verdict
from kfbench.sections import Config


@dataclass(frozen=True)
class Surroundings:
    """Where the runs of a claim go and who watches them: an observer for each command it may need."""

    sweep_folder: Callable[[Config], AbstractContextManager[Path]]
    sweep: SweepObserver
    training: Callable[[Config], Observer]
    line: Callable[[str], None]


class ClaimInterruptedError(Exception):
    """The runs of a claim were interrupted; the same command continues them."""


def judge_claim(file: ClaimFile, directory: Path, earlier: Path | None, around: Surroundings) -> dict[str, Any]:
    """Run what is missing into ``directory`` and the folders of its sweeps; returns what verdict.json holds.

    ``earlier`` is the folder of the same claim's committed summary: trials listed there are not run again.
    Raises ClaimInterruptedError.
    """
    claim, measures = file.claim, {part.measure for part in file.claim.parts}
    evidence = Evidence()
    record: dict[str, Any] = {}
    if file.tunes():
        record |= _tune(file, directory, earlier, around, evidence)
    elif measures & set(TUNED):
        raise UsageError(f"{file.path.name} has no sweep block, which its measures need")
    if measures & set(DIRECTIONS):
        record["similarity"] = _follow(file, directory, around, evidence)
    if "seconds_per_update" in measures:
        record["wallclock"] = _time(file, directory, around, evidence)
    if "toy_loss" in measures:
        evidence.toy = record["toy"] = toy_losses()
    parts = _parts(file, evidence)
    record = {
        "schema_version": SCHEMA_VERSION,
        **claim.model_dump(include={"id", "source", "says", "notes"}),
        "scale": file.scale,
        "hash": file.hash,
        "verdict": verdict(parts) if file.scale != "smoke" else None,
        "parts": parts,
        **record,
    }
    write_yaml(directory / "config.yaml", dump(file.settings("sweep"), "sweep"))
    write_json(directory / "environment.json", environment(torch.device(file.settings("sweep").run.device)))
    write_json(directory / "verdict.json", record)
    return record


def _parts(file: ClaimFile, evidence: Evidence) -> list[dict[str, Any]]:
    try:
        return [judge(part, *figures(part, evidence)) for part in (p.model_dump() for p in file.claim.parts)]
    except ValueError as error:
        raise UsageError(f"{file.path.name}: {error}") from error


def _tune(
    file: ClaimFile, directory: Path, earlier: Path | None, around: Surroundings, evidence: Evidence
) -> dict[str, Any]:
    """The published options, and the tuned ones, of every method, with fresh seeds."""
    config = file.settings("sweep")
    check_labels(file, TUNED, [method.label for method in plan(config)])
    with around.sweep_folder(config) as folder:
        _bring(earlier, folder)
        published: dict[str, Any] = {}
        for spec in file.claim.published:
            summary = _swept(_fixed(file, spec), folder, around)
            published |= summary["methods"]
        tuning = _swept(config, folder, around)
        evidence.tuning = tuning
        with open(folder / "trials.csv", encoding="utf-8", newline="") as rows:
            evidence.trials = [parse_row(row) for row in csv.DictReader(rows)]
        evidence.epochs = {label: _epochs(folder, method) for label, method in tuning["methods"].items()}
        _keep_trials(folder / "trials.csv", directory / "trials.csv", [*tuning["methods"], *published])
    return {"status": tuning["status"], "methods": _told(tuning["methods"]), "published": _told(published)}


def _swept(config: Config, folder: Path, around: Surroundings) -> dict[str, Any]:
    summary = sweep(config, folder, around.sweep)
    if summary["status"] == "interrupted":
        raise ClaimInterruptedError
    return summary


def _fixed(file: ClaimFile, spec: Any) -> Config:
    """A sweep of one cell: the options as published."""
    opt, options = parse_spec(spec)
    swept = [name for name in ("lr", "damping") if name in options]
    grids = {name: [options[name]] for name in swept}
    rest = {name: value for name, value in options.items() if name not in swept}
    more = {"parameters": swept, "grids": grids, "extend": 0, "refine": 0, "absolute_lr": True}
    return file.settings("sweep", [{"opt": opt, **rest}], **more)


def _bring(earlier: Path | None, folder: Path) -> None:
    """Trials of a committed summary, so that they are not run again."""
    if earlier is not None and (earlier / "trials.csv").is_file() and not (folder / "trials.csv").exists():
        shutil.copyfile(earlier / "trials.csv", folder / "trials.csv")


def _keep_trials(source: Path, target: Path, labels: Sequence[str]) -> None:
    """The rows of this claim's methods: a folder of sweeps may hold those of others."""
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    column = lines[0].rstrip("\n").split(",").index("method")
    rows = zip(csv.reader(lines[1:]), lines[1:], strict=True)
    target.write_text("".join([lines[0], *(line for row, line in rows if row[column] in labels)]), encoding="utf-8")


def _epochs(folder: Path, method: Mapping[str, Any]) -> dict[int, list[dict[str, float]]]:
    """Seed -> rows of epochs.csv of the best point's runs with fresh seeds, as far as they are on disk."""
    found = {}
    final = method["final"] or {"seeds": [], "run_dirs": []}
    for seed, run in zip(final["seeds"], final["run_dirs"], strict=True):
        path = folder / run / f"seed-{seed}" / "epochs.csv"
        if path.is_file():
            with open(path, encoding="utf-8", newline="") as file:
                names = ("update", "train_loss", "seconds_updates")
                found[seed] = [{name: float(row[name] or "nan") for name in names} for row in csv.DictReader(file)]
    return found


def _told(methods: Mapping[str, Any]) -> dict[str, Any]:
    """What of the methods of a sweep a verdict keeps; every trial is in trials.csv."""
    return {
        label: {key: value for key, value in method.items() if key not in ("losses", "per_epoch")}
        for label, method in methods.items()
    }


def _follow(file: ClaimFile, directory: Path, around: Surroundings, evidence: Evidence) -> dict[str, Any]:
    """`similarity` along the trajectory of the followed method, as tuned where the claim tunes."""
    config = _similarity_config(file, evidence.tuning)
    folder = directory / f"similarity-{fingerprint(dump(config, 'similarity'))}"
    if json_or_empty(folder / "summary.json").get("status") != "done":
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if similarity(config, folder, around.training(followed_config(config)))["status"] == "interrupted":
            raise ClaimInterruptedError
    summary = evidence.similarity = read_json(folder / "summary.json")
    if (folder / "spectrum.csv").is_file():
        with open(folder / "spectrum.csv", encoding="utf-8", newline="") as rows:
            evidence.spectrum = list(csv.DictReader(rows))
    return {key: summary[key] for key in ("follow", "cosines", "progress", "spectrum")}


def _similarity_config(file: ClaimFile, tuning: Mapping[str, Any]) -> Config:
    """The followed method and those asked, each at its tuned options, or with the followed one's step and damping."""
    settings, looks = file.settings("sweep"), file.similarity
    if tuning:
        tuned = _tuned_entries(tuning)
    else:
        tuned = {_label(m.opt, m.options): {"opt": m.opt, **m.options} for m in settings.methods}
    if looks.follow not in tuned:
        names = ", ".join(tuned)
        raise UsageError(f"{file.path.name}: similarity.follow must be one of {names}, got {looks.follow!r}")
    followed = tuned[looks.follow]
    entries = [(looks.follow, followed), *(_entry(spec, tuned, followed) for spec in file.claim.ask)]
    run = settings.run
    seeds = {"seed": run.seed + run.seeds, "seeds": settings.sweep.final_seeds} if tuning else {}
    config = file.settings("sweep", [entry for _, entry in entries], **seeds)
    labels = [label for label, _ in entries]
    methods = tuple(m.model_copy(update={"label": label}) for m, label in zip(config.methods, labels, strict=True))
    return config.model_copy(update={"methods": methods, "similarity": looks})


def _tuned_entries(tuning: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Label -> the method at its best point; UsageError where a method has none."""
    found = {}
    for label, method in tuning["methods"].items():
        if method["best"] is not None:
            options = {name: value for name, value in method["best"].items() if name != "alpha" and value is not None}
            found[label] = {"opt": method["opt"], **options}
    return found


def _label(opt: str, options: Mapping[str, Any]) -> str:
    """As a sweep of lr and damping calls the method."""
    return method_label(opt, {name: value for name, value in options.items() if name not in ("lr", "damping")})


def _entry(spec: Any, tuned: Mapping[str, Any], followed: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Label and options of one asked method; what it does not say of step and damping is the followed one's."""
    if isinstance(spec, str) and spec in tuned:
        return spec, tuned[spec]
    opt, options = parse_spec(spec)
    accepts = find_method(opt).accepts
    label = _label(opt, load_config(specs=[spec]).methods[0].options)
    shared = {name: followed[name] for name in ("lr", "damping", "T", "S") if name in followed and accepts(name)}
    return label, {"opt": opt, **shared, **options}


def _time(file: ClaimFile, directory: Path, around: Surroundings, evidence: Evidence) -> dict[str, Any]:
    """`wallclock` of the file's methods, the first of which is the reference."""
    config = file.settings("wallclock", compose="never")  # whole periods: nothing to put together again
    folder = directory / f"wallclock-{fingerprint(dump(config, 'wallclock'))}"
    if json_or_empty(folder / "summary.json").get("status") != "done":
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if wallclock([config], folder, around.line)["status"] == "interrupted":
            raise ClaimInterruptedError
    summary = read_json(folder / "summary.json")
    cell = summary["cells"][0]
    with open(folder / "windows.csv", encoding="utf-8", newline="") as rows:
        costs = per_update(list(csv.DictReader(rows)))
    reference = cell["reference"]
    evidence.timing = {
        label: ratios(costs, label, reference) for label in costs if label != reference and not label.endswith(CONTROL)
    }
    longest = max(map(len, evidence.timing.values()))
    evidence.timing = {reference: [1.0] * longest, **evidence.timing}
    return {"methods": cell["methods"], "warnings": cell["warnings"]}
