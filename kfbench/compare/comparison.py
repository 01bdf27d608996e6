"""Who wins: the arithmetic of a comparison, on records alone. Needs no torch."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kfbench.errors import UsageError, unknown
from kfbench.results.intervals import median_interval
from kfbench.results.records import SCHEMA_VERSION
from kfbench.results.seeds import over_seeds, paired_ratio

Row = dict[str, Any]


@dataclass(frozen=True)
class SeedRecord:
    """One seed that ended: its summary, its rows of epochs.csv as numbers, (update, loss) of updates.csv."""

    folder: Path
    summary: Row
    epochs: tuple[Row, ...]
    losses: tuple[tuple[int, float | None], ...] = ()

    @property
    def seed(self) -> int:
        """Its number: what runs are paired by."""
        return int(self.summary["seed"])

    @property
    def final_train_loss(self) -> float:
        """At the end of training; infinite where the run diverged."""
        return float(self.summary["final_train_loss"])


@dataclass(frozen=True)
class MethodRuns:
    """One method: which options, which seeds ended, on what, and after how many trials of tuning (None: unknown)."""

    label: str
    opt: str
    options: Row
    seeds: tuple[SeedRecord, ...]
    environment: Row = field(default_factory=dict)
    trials: int | None = None

    @property
    def finals(self) -> dict[int, float]:
        """Seed -> final training loss."""
        return {record.seed: record.final_train_loss for record in self.seeds}


@dataclass(frozen=True)
class Comparison:
    """Runs on one problem with one budget, and a sentence for each folder that was left out."""

    problem: Row
    run: Row
    methods: tuple[MethodRuns, ...]
    damaged: tuple[str, ...] = ()


def summarise(comparison: Comparison, target: float | None = None, reference: str | None = None) -> dict[str, Any]:
    """What summary.json of `compare` holds: methods by rank, the target loss, differences to the reference.

    ``target`` is a training loss (default: see ``_default_target``); ``reference`` a label, or a
    name that only one method has (default: the best). At least one method is there. UsageError
    for an unknown reference.
    """
    means = {method.label: mean_final(method) for method in comparison.methods}
    # One more for every lower mean: equal losses, and all that diverged, share a rank.
    ranks = {label: 1 + sum(other < mean for other in means.values()) for label, mean in means.items()}
    methods = sorted(comparison.methods, key=lambda method: ranks[method.label])
    chosen = find_reference(reference, {method.label: method.opt for method in methods}) or methods[0].label  # the best
    rule = "as asked for"
    if target is None:
        target, rule = _default_target(methods)
    rows = {m.label: _method_summary(m, ranks[m.label], target) for m in methods}
    statuses = [row["status"] for row in rows.values()]
    return {
        "schema_version": SCHEMA_VERSION,
        # The worse first.
        "status": "failed" if comparison.damaged else "diverged" if "diverged" in statuses else "done",
        "quick": bool(comparison.run.get("quick")),
        "problem": comparison.problem,
        "run": comparison.run,
        "target": {"loss": target, "rule": rule},
        "reference": chosen,
        "methods": rows,
        "differences": differences(methods, chosen),
        "damaged": list(comparison.damaged),
        "notes": _notes(methods),
    }


def find_reference(reference: str | None, opts: Mapping[str, str]) -> str | None:
    """The label that ``reference`` names among labels with their methods' names; UsageError where there is none."""
    if reference is None or reference in opts:
        return reference
    labels = [label for label, opt in opts.items() if opt == reference]
    if len(labels) > 1:
        raise UsageError(f"reference {reference!r} may be any of {', '.join(labels)}; name one of them")
    if not labels:
        raise unknown("reference", reference, opts)
    return labels[0]


def mean_final(method: MethodRuns) -> float:
    """Mean final training loss over seeds; infinite where one diverged."""
    return statistics.fmean(method.finals.values())


def shared_target(comparison: Comparison) -> float | None:
    """The target loss that all the runs were given; None where they were given none, or several."""
    given = {record.summary.get("target_loss") for method in comparison.methods for record in method.seeds}
    return given.pop() if len(given) == 1 else None


def _default_target(ranked: Sequence[MethodRuns]) -> tuple[float | None, str]:
    """The loss that every seed of SGD reaches in the end; without SGD, every seed of the last that did not diverge.

    SGD's mean would be missed by about half its own seeds.
    """
    finite = [method for method in ranked if math.isfinite(mean_final(method))]
    chosen = next((method for method in finite if method.opt == "sgd"), finite[-1] if finite else None)
    if chosen is None:
        return None, "none: every method diverged"
    return max(chosen.finals.values()), f"the highest final loss of any seed of {chosen.label}"


def _method_summary(method: MethodRuns, rank: int, target: float | None) -> dict[str, Any]:
    hits = [_hit(record, target) for record in method.seeds]
    return {
        "opt": method.opt,
        "options": method.options,
        "rank": rank,
        "trials": method.trials,
        "to_target": {
            # A seed that missed it is infinite: so is the median where half of them did.
            "updates": statistics.median(update for update, _ in hits),
            "seconds_updates": statistics.median(seconds for _, seconds in hits),
            **_spread("updates", [update for update, _ in hits]),
            **_spread("seconds_updates", [seconds for _, seconds in hits]),
            "missed": sum(math.isinf(update) for update, _ in hits),
            "of": len(hits),
        },
        **over_seeds([record.summary for record in method.seeds]),
    }


def _spread(name: str, values: Sequence[float]) -> Row:
    """Lowest and highest of the seeds, and the interval of their median, between order statistics.

    Fewer than six seeds have none (None); seeds that missed the target may make its upper end infinite.
    """
    low, high = median_interval(values)
    known = math.isfinite(low) or low > 0  # infinite above: missed by so many that the median may be too
    bounds = (low, high) if known else (None, None)
    return {
        f"{name}_lowest": min(values),
        f"{name}_highest": max(values),
        f"{name}_low": bounds[0],
        f"{name}_high": bounds[1],
    }


def _hit(record: SeedRecord, target: float | None) -> tuple[float, float]:
    """(update, seconds in updates) at the first end of an epoch whose training loss is there; infinite if none is."""
    for row in record.epochs:
        if target is not None and row["train_loss"] is not None and row["train_loss"] <= target:
            return row["update"], row["seconds_updates"] or 0.0
    return math.inf, math.inf


def differences(methods: Sequence[MethodRuns], reference: str) -> list[dict[str, Any]]:
    """For every other method, its final losses as multiples of the reference's, paired by seed.

    A method that shares no seed with the reference has no ratio (n = 0). The intervals are of one
    comparison each, not of all together.
    """
    base = next(method for method in methods if method.label == reference).finals
    return [_difference(m.label, m.finals, reference, base) for m in methods if m.label != reference]


def _difference(label: str, own: Mapping[int, float], reference: str, base: Mapping[int, float]) -> dict[str, Any]:
    seeds = sorted(own.keys() & base.keys())
    pairs: dict[str, Any] = {"method": label, "reference": reference, "seeds": seeds, "n": len(seeds)}
    if not seeds:
        return pairs | {"ratio": None, "low": None, "high": None, "significant": False}
    ratio = paired_ratio([own[seed] for seed in seeds], [base[seed] for seed in seeds])
    return pairs | {"ratio": ratio.mean, "low": ratio.low, "high": ratio.high, "significant": ratio.significant}


def _notes(methods: Sequence[MethodRuns]) -> list[str]:
    """What the reader must know beside the table."""
    notes = []
    machines = {tuple(m.environment.get(key) for key in ("cpu", "gpu", "device", "threads")) for m in methods}
    if len(machines) > 1:
        notes.append("the methods ran on different processors or numbers of threads: their seconds do not compare")
    if len({tuple(sorted(m.finals)) for m in methods}) > 1:
        notes.append("the methods have different seeds: means are over all that ended, pairs over those in common")
    for method in methods:
        diverged = sum(record.summary["status"] == "diverged" for record in method.seeds)
        calls = [record.summary.get("closure_calls_per_update") for record in method.seeds]
        if known := [call for call in calls if call is not None]:
            each = f"{statistics.fmean(known):.3g}"
            notes.append(f"an update of {method.label} evaluates loss and gradient {each} times: compare its seconds")
        if diverged:
            notes.append(f"{method.label} diverged with {diverged} of {len(method.seeds)} seeds: its mean is infinite")
    return notes


def mean_curve(method: MethodRuns) -> list[Row]:
    """Mean, lowest and highest training loss over the seeds after each update that all of them were evaluated at.

    Where some seed diverged the curve ends: a mean over the survivors would flatter.
    """
    by_update: dict[int, list[Row]] = {}
    for record in method.seeds:
        for row in record.epochs:
            if row["train_loss"] is not None and math.isfinite(row["train_loss"]):
                by_update.setdefault(int(row["update"]), []).append(row)
    return [
        {
            "update": update,
            "seconds": statistics.fmean(row["seconds_updates"] or 0.0 for row in rows),
            "mean": statistics.fmean(row["train_loss"] for row in rows),
            "low": min(row["train_loss"] for row in rows),
            "high": max(row["train_loss"] for row in rows),
        }
        for update, rows in sorted(by_update.items())
        if len(rows) == len(method.seeds)  # seeds that diverged have no finite row here
    ]
