"""What claims are judged on: figures of two methods, paired, from the records of the other commands. Needs no torch."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from kfbench.results.trials import ROBUST, Row

Pairs = tuple[list[float], list[float]]
# Between the two labels of a pair.
PAIR = " ~ "


@dataclass
class Evidence:
    """Records of one claim, as far as its measures need them."""

    tuning: Mapping[str, Any] = field(default_factory=dict)  # summary.json of the sweep
    trials: Sequence[Row] = ()  # of trials.csv
    epochs: Mapping[str, Mapping[int, Sequence[Mapping[str, float]]]] = field(default_factory=dict)  # label, seed
    similarity: Mapping[str, Any] = field(default_factory=dict)  # its summary.json
    spectrum: Sequence[Mapping[str, Any]] = ()  # rows of spectrum.csv
    timing: Mapping[str, Sequence[float]] = field(default_factory=dict)  # label -> seconds per update in each round
    toy: Mapping[str, Sequence[float]] = field(default_factory=dict)  # label -> losses of both points


def figures(part: Mapping[str, Any], evidence: Evidence) -> Pairs:
    """Both sides of one part of a claim, paired;
    ValueError, one sentence, for a label that the records do not have."""
    return _MEASURES[part["measure"]](part, evidence)


def _paired(of: Mapping[Any, float], to: Mapping[Any, float]) -> Pairs:
    common = sorted(of.keys() & to.keys())
    return [of[key] for key in common], [to[key] for key in common]


def _looked_up(found: Mapping[str, Any], label: str) -> Any:
    if label not in found:
        raise _missing(label, found)
    return found[label]


def _missing(label: str, found: Iterable[str]) -> ValueError:
    return ValueError(f"the claim names {label!r}, which the records do not have; they have {', '.join(sorted(found))}")


def _final_losses(label: str, evidence: Evidence) -> dict[int, float]:
    """By seed; infinite for a method of which no tried point survives."""
    methods = evidence.tuning["methods"]
    final = _looked_up(methods, label)["final"]
    if final is None:
        seeds: list[int] = next((other["final"]["seeds"] for other in methods.values() if other["final"]), [])
        return dict.fromkeys(seeds, math.inf)
    return dict(zip(final["seeds"], final["losses"], strict=True))


def _final_train_loss(part: Mapping[str, Any], evidence: Evidence) -> Pairs:
    """Training loss at the end, with fresh seeds, of each method's best point."""
    return _paired(_final_losses(part["of"], evidence), _final_losses(part["to"], evidence))


def _seconds_to_loss(part: Mapping[str, Any], evidence: Evidence) -> Pairs:
    """Seconds in updates until ``of`` reaches, at an epoch's end, the loss at which ``to`` ended; infinite if never."""
    ours, theirs = (_looked_up(evidence.epochs, part[side]) for side in ("of", "to"))
    of, to = {}, {}
    for seed in ours.keys() & theirs.keys():
        last = theirs[seed][-1]
        reached = [row["seconds_updates"] for row in ours[seed] if row["train_loss"] <= last["train_loss"]]
        of[seed], to[seed] = min(reached, default=math.inf), last["seconds_updates"]
    return _paired(of, to)


def _least_damping(part: Mapping[str, Any], evidence: Evidence) -> Pairs:
    """The smallest damping that, its step tuned for it, ends within twice the best loss; by tuning seed."""
    return _paired(_least_dampings(part["of"], evidence), _least_dampings(part["to"], evidence))


def _least_dampings(label: str, evidence: Evidence) -> dict[int, float]:
    curves: dict[int, dict[float, float]] = {}
    for row in evidence.trials:
        loss = row["final_train_loss"]
        if row["method"] == label and row["round"] != "final" and loss is not None and math.isfinite(loss):
            curve = curves.setdefault(int(row["seed"]), {})
            damping = float(row["damping"])
            curve[damping] = min(loss, curve.get(damping, math.inf))
    if not curves:
        raise _missing(label, {row["method"] for row in evidence.trials})
    return {
        seed: min(damping for damping, loss in curve.items() if loss <= ROBUST * min(curve.values()))
        for seed, curve in curves.items()
    }


def _cosine_distance(part: Mapping[str, Any], evidence: Evidence) -> Pairs:
    """1 - the mean cosine of two whole directions over the followed trajectory, in FOOF's inner product."""
    return _paired(_distances(part["of"], evidence), _distances(part["to"], evidence))


def _distances(pair: str, evidence: Evidence) -> dict[int, float]:
    wanted = set(pair.split(PAIR))
    rows = [row for row in evidence.similarity["cosines"] if row["layer"] == "*" and row["metric"] == "foof"]
    found = {row["seed"]: 1 - row["mean"] for row in rows if {row["method_a"], row["method_b"]} == wanted}
    if not found:
        raise _missing(pair, {PAIR.join((row["method_a"], row["method_b"])) for row in rows})
    return found


def _progress(part: Mapping[str, Any], evidence: Evidence) -> Pairs:
    """Mean relative decrease of the mini-batch loss along the followed trajectory."""
    rows = [row for row in evidence.similarity["progress"] if row["kind"] == part["kind"]]
    by_method: dict[str, dict[int, float]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["seed"]] = row["mean"]
    return _paired(_looked_up(by_method, part["of"]), _looked_up(by_method, part["to"]))


def _spectral(key: str) -> Callable[[Mapping[str, Any], Evidence], Pairs]:
    def measure(part: Mapping[str, Any], evidence: Evidence) -> Pairs:
        """Of every look where the inequality must hold everywhere, else the mean of each seed and layer."""
        if part["everywhere"]:
            values: dict[str, dict[Any, float]] = {}
            for row in evidence.spectrum:
                look = (int(row["seed"]), int(row["update"]), row["layer"])
                values.setdefault(row["method"], {})[look] = float(row[key])
        else:
            values = {}
            for row in evidence.similarity["spectrum"]:
                values.setdefault(row["method"], {})[(row["seed"], row["layer"])] = row[_MEANS[key]]
        return _paired(_looked_up(values, part["of"]), _looked_up(values, part["to"]))

    return measure


_MEANS = {"frobenius_error": "mean_error", "spectrum_distance": "mean_distance"}


def _error_growth(part: Mapping[str, Any], evidence: Evidence) -> Pairs:
    """By how much the error is larger in the last fifth of a refresh's life than in the first; by seed and layer."""
    return _paired(_grown(part["of"], evidence), _grown(part["to"], evidence))


def _grown(label: str, evidence: Evidence) -> dict[Any, float]:
    own = [row for row in evidence.spectrum if row["method"] == label]
    if not own:
        raise _missing(label, {row["method"] for row in evidence.spectrum})
    oldest = max(int(row["updates_since_refresh"]) for row in own)
    young: dict[Any, list[float]] = {}
    old: dict[Any, list[float]] = {}
    for row in own:
        place, age = (int(row["seed"]), row["layer"]), int(row["updates_since_refresh"])
        if age <= oldest / 5:
            young.setdefault(place, []).append(float(row["frobenius_error"]))
        elif age >= oldest * 4 / 5:
            old.setdefault(place, []).append(float(row["frobenius_error"]))
    return {place: fmean(old[place]) - fmean(young[place]) for place in young.keys() & old.keys()}


def _seconds_per_update(part: Mapping[str, Any], evidence: Evidence) -> Pairs:
    """By round."""
    of, to = (_looked_up(evidence.timing, part[side]) for side in ("of", "to"))
    return list(of), list(to)


def _toy_loss(part: Mapping[str, Any], evidence: Evidence) -> Pairs:
    """The loss of the named point of the toy, or of both; of: "sgd, point 2"."""
    return [_toy(part["of"], evidence)], [_toy(part["to"], evidence)]


def _toy(text: str, evidence: Evidence) -> float:
    label, _, which = text.partition(", ")
    losses = _looked_up(evidence.toy, label)
    return sum(losses) if which == "both points" else losses[int(which.removeprefix("point ")) - 1]


_MEASURES: dict[str, Callable[[Mapping[str, Any], Evidence], Pairs]] = {
    "final_train_loss": _final_train_loss,
    "seconds_to_loss": _seconds_to_loss,
    "least_damping": _least_damping,
    "cosine_distance": _cosine_distance,
    "progress": _progress,
    "frobenius_error": _spectral("frobenius_error"),
    "spectrum_distance": _spectral("spectrum_distance"),
    "error_growth": _error_growth,
    "seconds_per_update": _seconds_per_update,
    "toy_loss": _toy_loss,
}
# Which records each measure needs.
TUNED = ("final_train_loss", "seconds_to_loss", "least_damping")
DIRECTIONS = ("cosine_distance", "progress", "frobenius_error", "error_growth", "spectrum_distance")
