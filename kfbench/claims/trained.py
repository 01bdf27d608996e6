"""Figures of training: losses with fresh seeds, and what the trials of the tuning say. Needs no torch."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

from kfbench.claims.evidence import Evidence, Figures, looked_up, paired
from kfbench.results.seeds import one_sided_student
from kfbench.sweep.losses import ROBUST


def _better_final(label: str, evidence: Evidence) -> Mapping[str, Any] | None:
    """Runs with fresh seeds of the tuned or the published options, whichever end lower on average."""
    candidates = [looked_up(evidence.tuning, label)["final"]]
    if label in evidence.published:
        candidates.append(evidence.published[label]["final"])
    known = [final for final in candidates if final is not None]
    return min(known, key=lambda final: float(final["mean"]), default=None)


def _final_losses(label: str, evidence: Evidence) -> dict[int, float]:
    """By seed; infinite where all diverge."""
    best = _better_final(label, evidence)
    if best is None and evidence.tuning[label]["failed"]:
        return {}  # it crashed: that says nothing of its loss
    if best is None:
        # No point came through with fresh seeds: infinite for those with which the other methods ran.
        seeds: list[int] = next((other["final"]["seeds"] for other in evidence.tuning.values() if other["final"]), [])
        return dict.fromkeys(seeds, math.inf)
    return dict(zip(best["seeds"], best["losses"], strict=True))


def final_train_loss(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """Training loss at the end, with fresh seeds; another cell may be truly better than the one that was chosen."""
    sides = part["of"], part["to"]
    of, to = (_final_losses(label, evidence) for label in sides)
    better_of, better_to = (_better_by(evidence.tuning[label]) for label in sides)
    return replace(paired(of, to, (1 / better_of, better_to)), edges=_edges(part, evidence))


def test_error(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """Share of the test images that are taken for another class at the end, of the runs that final losses are of."""
    of, to = (_test_errors(part[side], evidence) for side in ("of", "to"))
    return replace(paired(of, to), edges=_edges(part, evidence))


def _test_errors(label: str, evidence: Evidence) -> dict[int, float]:
    final = _better_final(label, evidence)
    accuracies = {row["run_dir"]: row["test_accuracy"] for row in evidence.trials}
    runs = zip(final["seeds"], final["run_dirs"], strict=True) if final else ()
    # A run that diverged has no accuracy, and an autoencoder no classes.
    known = {seed: accuracies.get(run) for seed, run in runs}
    return {seed: math.nan if accuracy is None else 1 - accuracy for seed, accuracy in known.items()}


def _edges(part: Mapping[str, Any], evidence: Evidence) -> tuple[Sequence[str], Sequence[str]]:
    of, to = (evidence.tuning.get(part[side], {}).get("best_edges", ()) for side in ("of", "to"))
    return of, to


def _better_by(method: Mapping[str, Any]) -> float:
    """By what factor some cell of the grid may be truly better than the chosen one, which chance helped to choose.

    The logarithm of a cell's loss, over k tuning seeds, deviates by s / sqrt(k), s as of the fresh seeds, a difference
    by sqrt(2) as much: a cell whose tuned loss was higher by a gap may be lower by t s sqrt(2 / k) less the gap, with
    t the 95 % quantile of Student. The coverage is simulated in tests/claims/test_tuning_left.py.
    """
    final = method["final"]
    fresh = [math.log(loss) for loss in final["losses"] if 0 < loss < math.inf] if final else []
    by_cell: dict[tuple[Any, ...], list[float]] = {}
    for *cell, _, loss in method["losses_by_seed"]:
        by_cell.setdefault(tuple(cell), []).append(math.inf if loss is None else loss)
    logs = [fmean(map(math.log, own)) for own in by_cell.values() if all(0 < loss < math.inf for loss in own)]
    if len(fresh) < 2 or len(logs) < 2:
        return 1.0
    chosen, *others = sorted(logs)
    noise = one_sided_student(len(fresh)) * stdev(fresh) * math.sqrt(2 / max(map(len, by_cell.values())))
    return math.exp(max(0.0, noise - (others[0] - chosen)))


def seconds_to_loss(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """Seconds in updates until ``of`` reaches, at an epoch's end, the loss at which ``to`` ended; infinite if never."""
    ours, theirs = (looked_up(evidence.epochs, part[side]) for side in ("of", "to"))
    of, to = {}, {}
    for seed in ours.keys() & theirs.keys():
        last = theirs[seed][-1]
        reached = [row["seconds_updates"] for row in ours[seed] if row["train_loss"] <= last["train_loss"]]
        # Where the other one diverged there is no loss to reach.
        seconds = min(reached, default=math.inf) if math.isfinite(last["train_loss"]) else math.nan
        of[seed], to[seed] = seconds, last["seconds_updates"]
    return replace(paired(of, to), edges=_edges(part, evidence))


def least_damping(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """The smallest damping that, its step tuned for it, ends within twice the best loss; by tuning seed.

    Known to half a step of the grid; at the grid's lower end it may be lower still.
    """
    of, to = (looked_up(evidence.tuning, part[side]) for side in ("of", "to"))
    ours, theirs = _least_dampings(of), _least_dampings(to)
    half = math.sqrt(_step(of) * _step(to))  # half a step of each, in the logarithm
    if not ours or not theirs:
        return paired({}, {})
    censored = [min(least.values()) <= min(m["axes"]["damping"]) for least, m in ((ours, of), (theirs, to))]
    return paired(ours, theirs, (0.0 if censored[0] else 1 / half, math.inf if censored[1] else half))


def _step(method: Mapping[str, Any]) -> float:
    dampings = sorted(method["axes"]["damping"])
    # The widest, since a list of values need not be even.
    return max((b / a for a, b in itertools.pairwise(dampings)), default=1.0)


def _least_dampings(method: Mapping[str, Any]) -> dict[int, float]:
    place = list(method["axes"]).index("damping")
    curves: dict[int, dict[float, float]] = {}
    for *cell, seed, loss in method["losses_by_seed"]:
        if loss is not None and math.isfinite(loss):
            curve = curves.setdefault(seed, {})
            curve[cell[place]] = min(loss, curve.get(cell[place], math.inf))
    return {
        seed: min(damping for damping, loss in curve.items() if loss <= ROBUST * min(curve.values()))
        for seed, curve in curves.items()
    }


def stable_share(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """Of the cells of the grid that learnt, the share that did not lose it again; by tuning seed.

    One has learnt whose loss, at the end of some epoch, was at most half of the untrained network's. It has lost it
    where it ends above twice the lowest of these, or diverges.
    """
    of, to = (_stable_shares(part[side], evidence) for side in ("of", "to"))
    return paired(of, to)


def _stable_shares(label: str, evidence: Evidence) -> dict[int, float]:
    method = looked_up(evidence.tuning, label)
    untrained = [rows[0]["train_loss"] for runs in evidence.epochs.values() for rows in runs.values()]
    # On the grid alone: points that lie around the best would say how many there were.
    grid = set(itertools.product(*method["axes"].values()))
    own = {tuple(tried) for tried in method["losses_by_seed"] if tuple(tried[:-2]) in grid}
    stable: dict[int, list[bool]] = {}
    for row in evidence.trials if untrained else ():
        cell = (float(row[name] or "nan") for name in method["axes"])
        lowest, last = row["best_train_loss"], row["final_train_loss"]
        # The folder of a sweep may hold trials of others.
        if row["method"] != label or (*cell, int(row["seed"]), last) not in own:
            continue
        if lowest is not None and lowest <= fmean(untrained) / 2:
            stable.setdefault(int(row["seed"]), []).append(last <= ROBUST * lowest)
    return {seed: fmean(kept) for seed, kept in stable.items()}
