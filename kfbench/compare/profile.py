"""Performance profiles: who is how often how near to the best, over several problems (Dolan & More 2002)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kfbench.compare.comparison import Comparison, shared_target, summarise
from kfbench.compare.gathering import gather
from kfbench.config.identity import differing_keys
from kfbench.errors import UsageError
from kfbench.results.records import SCHEMA_VERSION, CsvLog, write_json, write_yaml
from kfbench.results.styles import title

Row = dict[str, Any]

# What is compared, in words.
MEASURES = {
    "updates": "updates to target",
    "seconds": "seconds to target",
    "loss": "final training loss",
}
# Factors that the table shows the shares of.
FACTORS = (1.0, 2.0, 10.0)


def performance_ratios(costs: Mapping[str, float]) -> dict[str, float]:
    """Each method's cost as a multiple of the lowest, eq 1: at least 1, infinite where it has no finite cost.

    Of a lowest cost of 0 only those that share it have a ratio. ValueError for a cost below 0, or one that is nan.
    """
    for label, cost in costs.items():
        if not cost >= 0:
            raise ValueError(f"the cost of {label} is {cost}; ratios need costs of at least 0")
    best = min(costs.values())
    if math.isinf(best):
        return dict.fromkeys(costs, math.inf)
    return {label: 1.0 if cost == best else cost / best if best else math.inf for label, cost in costs.items()}


def share_within(ratios: Sequence[float], tau: float) -> float:
    """rho(tau), eq 2: the share of problems on which the ratio is at most ``tau``."""
    return sum(ratio <= tau for ratio in ratios) / len(ratios)


def profile_curve(ratios: Sequence[float]) -> list[tuple[float, float]]:
    """(tau, rho) where the step function rises, and at 1; problems that were not solved raise it nowhere."""
    rises = sorted({1.0, *(ratio for ratio in ratios if math.isfinite(ratio))})
    return [(tau, share_within(ratios, tau)) for tau in rises]


def profile(folders: Sequence[Path], measure: str) -> dict[str, Any]:
    """What summary.json of `compare --profile` holds, of folders of finished runs, one for each problem.

    A cost is the median over seeds of what it took to the problem's target, as `compare` finds that, or the mean final
    loss. Methods go by their labels; one that is not on every problem is left out, with a note. UsageError for fewer
    than two problems, for one problem twice, or where no two methods are on all of them.
    """
    named = {path.resolve(): path for path in reversed(folders)}  # a folder that is named twice counts once
    comparisons = {path: gather([path]) for path in reversed(named.values())}
    for path, found in comparisons.items():
        if not found.methods:
            raise UsageError(f"{path} holds no run to compare: {'; '.join(found.damaged)}")
    _check_problems(comparisons)
    summaries = {path: summarise(found, shared_target(found)) for path, found in comparisons.items()}
    labels, notes = _common(summaries)
    problems = [_problem(folder, summary, labels, measure) for folder, summary in summaries.items()]
    ratios = {label: [row["ratios"][label] for row in problems] for label in labels}
    opts = next(iter(summaries.values()))["methods"]
    # Who is most often the best first; of equals who is so within the next factor.
    labels.sort(key=lambda label: [share_within(ratios[label], tau) for tau in FACTORS], reverse=True)
    statuses = [summary["status"] for summary in summaries.values()]
    for folder, summary in summaries.items():
        notes += [f"{folder}: {note}" for note in summary["notes"]]
    unsolved = [row["problem"] for row in problems if all(map(math.isinf, row["ratios"].values()))]
    notes += [f"no method has a finite cost on {name}: it counts as solved by none" for name in unsolved]
    return {
        "schema_version": SCHEMA_VERSION,
        "status": next((status for status in ("failed", "diverged") if status in statuses), "done"),
        "quick": any(summary["quick"] for summary in summaries.values()),
        "measure": measure,
        "problems": problems,
        "methods": {label: {"opt": opts[label]["opt"], **_figures(ratios[label])} for label in labels},
        "damaged": [sentence for summary in summaries.values() for sentence in summary["damaged"]],
        "notes": notes,
    }


def _check_problems(comparisons: Mapping[Path, Comparison]) -> None:
    if len(comparisons) < 2:
        raise UsageError(f"a profile is over at least two problems, one folder each, got {len(comparisons)}")
    folders = list(comparisons)
    for i, folder in enumerate(folders):
        for other in folders[:i]:
            a, b = ({"problem": c.problem, "run": c.run} for c in (comparisons[other], comparisons[folder]))
            if not differing_keys(a, b):
                raise UsageError(f"{other} and {folder} hold the same problem, which a profile counts once: give one")


def _common(summaries: Mapping[Path, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """The labels that are on every problem, and a note for each that is not."""
    named = list(dict.fromkeys(label for summary in summaries.values() for label in summary["methods"]))
    missing = {
        label: [folder for folder, summary in summaries.items() if label not in summary["methods"]] for label in named
    }
    labels = [label for label in named if not missing[label]]
    if len(labels) < 2:
        there = "; ".join(f"{folder}: {', '.join(summary['methods'])}" for folder, summary in summaries.items())
        raise UsageError(f"a profile needs at least two methods that are on every problem, got {there}")
    return labels, [
        f"{label} is left out: it is not in {', '.join(map(str, where))}" for label, where in missing.items() if where
    ]


def _problem(folder: Path, summary: Mapping[str, Any], labels: Sequence[str], measure: str) -> Row:
    costs = {label: _cost(summary["methods"][label], measure) for label in labels}
    try:
        ratios = performance_ratios(costs)
    except ValueError as error:
        raise UsageError(f"{folder}: {error}") from error
    shared = {"problem": str(folder), "title": title(summary["problem"], summary["run"]), "target": summary["target"]}
    return {**shared, "costs": costs, "ratios": ratios}


def _cost(method: Mapping[str, Any], measure: str) -> float:
    if measure == "loss":
        return float(method["mean"]["final_train_loss"])
    return float(method["to_target"]["updates" if measure == "updates" else "seconds_updates"])


def _figures(ratios: Sequence[float]) -> Row:
    finite = [ratio for ratio in ratios if math.isfinite(ratio)]
    return {
        "within": {f"{tau:g}": sum(ratio <= tau for ratio in ratios) for tau in FACTORS},
        "solved": len(finite),
        "of": len(ratios),
        "worst_ratio": max(finite, default=None),
        "curve": [list(point) for point in profile_curve(ratios)],
    }


def write_profile(summary: Mapping[str, Any], block: Mapping[str, Any], directory: Path, plot: bool) -> None:
    """config.yaml with the command's own ``block``, summary.json, profile.csv, and profile.png where that is wanted."""
    # Of several problems there is no one configuration: theirs are where the runs lie.
    write_yaml(directory / "config.yaml", {"problem": {}, "methods": [], "run": {}, "compare": block})
    write_json(directory / "summary.json", summary)
    log = CsvLog(directory / "profile.csv", ("method", "tau", "share"))
    for label, method in summary["methods"].items():
        log.append([{"method": label, "tau": tau, "share": share} for tau, share in method["curve"]])
    log.close()
    if plot:
        from kfbench.compare.plots import plot_profile  # matplotlib is slow to import

        plot_profile(summary, directory / "profile.png")
