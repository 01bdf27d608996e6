"""What claims are judged on: figures of two methods, paired, from the records of the other commands. Needs no torch."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, geometric_mean, stdev
from typing import Any

from kfbench.results.seeds import one_sided_student
from kfbench.sweep.losses import ROBUST

# Between the two labels of a pair.
PAIR = " ~ "


@dataclass
class Evidence:
    """Records of one claim, as far as its measures need them."""

    tuning: Mapping[str, Any] = field(default_factory=dict)  # "methods" of the sweep's summary.json
    published: Mapping[str, Any] = field(default_factory=dict)  # the same of the published options, by label
    epochs: Mapping[str, Mapping[int, Sequence[Mapping[str, float]]]] = field(default_factory=dict)  # label, seed
    similarity: Mapping[str, Any] = field(default_factory=dict)  # its summary.json
    spectrum: Sequence[Mapping[str, Any]] = ()  # rows of spectrum.csv
    cost_ratios: Mapping[str, Sequence[float]] = field(default_factory=dict)  # label -> ratio to the reference by round
    toy: Mapping[str, Sequence[float]] = field(default_factory=dict)  # label -> losses of both points


@dataclass(frozen=True)
class Figures:
    """Both sides of one part of a claim, paired.

    ``slack`` are factors by which the interval of their ratio is wider on each side, for what tuning leaves open;
    ``edges`` the sides of the grids of both at which their best points lie.
    """

    of: list[float]
    to: list[float]
    slack: tuple[float, float] = (1.0, 1.0)
    edges: tuple[Sequence[str], Sequence[str]] = ((), ())


def figures(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """What a part is judged on; ValueError, one sentence, for a label that the records do not have."""
    return _MEASURES[part["measure"]](part, evidence)


def _paired(of: Mapping[Any, float], to: Mapping[Any, float], slack: tuple[float, float] = (1.0, 1.0)) -> Figures:
    # A seed that one side lacks, because it failed there, has no ratio.
    common = sorted(of.keys() & to.keys())
    return Figures([of[key] for key in common], [to[key] for key in common], slack)


def _looked_up(records: Mapping[str, Any], label: str) -> Any:
    if label not in records:
        raise _missing(label, records)
    return records[label]


def _missing(label: str, known: Iterable[str]) -> ValueError:
    return ValueError(f"the claim names {label!r}, which the records do not have; they have {', '.join(sorted(known))}")


def _final_losses(label: str, evidence: Evidence) -> dict[int, float]:
    """By seed, of the tuned or the published options, whichever are lower on average; infinite where all diverge."""
    candidates = [_looked_up(evidence.tuning, label)["final"]]
    if label in evidence.published:
        candidates.append(evidence.published[label]["final"])
    known = [final for final in candidates if final is not None]
    if not known and evidence.tuning[label]["failed"]:
        return {}  # it crashed: that says nothing of its loss
    if not known:
        # No point came through with fresh seeds: infinite for those with which the other methods ran.
        seeds: list[int] = next((other["final"]["seeds"] for other in evidence.tuning.values() if other["final"]), [])
        return dict.fromkeys(seeds, math.inf)
    best = min(known, key=lambda final: float(final["mean"]))
    return dict(zip(best["seeds"], best["losses"], strict=True))


def _final_train_loss(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """Training loss at the end, with fresh seeds; another cell may be truly better than the one that was chosen."""
    sides = part["of"], part["to"]
    of, to = (_final_losses(label, evidence) for label in sides)
    better_of, better_to = (_better_by(evidence.tuning[label]) for label in sides)
    return replace(_paired(of, to, (1 / better_of, better_to)), edges=_edges(part, evidence))


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


def _seconds_to_loss(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """Seconds in updates until ``of`` reaches, at an epoch's end, the loss at which ``to`` ended; infinite if never."""
    ours, theirs = (_looked_up(evidence.epochs, part[side]) for side in ("of", "to"))
    of, to = {}, {}
    for seed in ours.keys() & theirs.keys():
        last = theirs[seed][-1]
        reached = [row["seconds_updates"] for row in ours[seed] if row["train_loss"] <= last["train_loss"]]
        # Where the other one diverged there is no loss to reach.
        seconds = min(reached, default=math.inf) if math.isfinite(last["train_loss"]) else math.nan
        of[seed], to[seed] = seconds, last["seconds_updates"]
    return replace(_paired(of, to), edges=_edges(part, evidence))


def _least_damping(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """The smallest damping that, its step tuned for it, ends within twice the best loss; by tuning seed.

    Known to half a step of the grid; at the grid's lower end it may be lower still.
    """
    of, to = (_looked_up(evidence.tuning, part[side]) for side in ("of", "to"))
    ours, theirs = _least_dampings(of), _least_dampings(to)
    half = math.sqrt(_step(of) * _step(to))  # half a step of each, in the logarithm
    if not ours or not theirs:
        return _paired({}, {})
    censored = [min(least.values()) <= min(m["axes"]["damping"]) for least, m in ((ours, of), (theirs, to))]
    return _paired(ours, theirs, (0.0 if censored[0] else 1 / half, math.inf if censored[1] else half))


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


def _cosine_distance(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """1 - the mean cosine of two whole directions over the followed trajectory, in FOOF's inner product."""
    return _paired(_distances(part["of"], evidence), _distances(part["to"], evidence))


def _distances(pair: str, evidence: Evidence) -> dict[int, float]:
    wanted = set(pair.split(PAIR))  # a set, as records have each pair in one order only
    rows = [row for row in evidence.similarity["cosines"] if row["layer"] == "*" and row["metric"] == "foof"]
    distances = {row["seed"]: 1 - _or_nan(row["mean"]) for row in rows if {row["method_a"], row["method_b"]} == wanted}
    if not distances:
        raise _missing(pair, {PAIR.join((row["method_a"], row["method_b"])) for row in rows})
    return distances


def _progress(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """Mean relative decrease of the mini-batch loss along the followed trajectory."""
    rows = [row for row in evidence.similarity["progress"] if row["kind"] == part["kind"]]
    by_method: dict[str, dict[int, float]] = {}
    for row in rows:
        # A step after which the loss is no number is worse than any mean of the others says.
        by_method.setdefault(row["method"], {})[row["seed"]] = math.nan if row["not_finite"] else _or_nan(row["mean"])
    return _paired(_looked_up(by_method, part["of"]), _looked_up(by_method, part["to"]))


def _or_nan(value: float | None) -> float:
    """A mean of no finite look is none."""
    return math.nan if value is None else value


def _spectral(key: str) -> Callable[[Mapping[str, Any], Evidence], Figures]:
    def measure(part: Mapping[str, Any], evidence: Evidence) -> Figures:
        """Of every look where the inequality must hold everywhere, else of each seed: looks, then layers, averaged."""
        looks = [_looks(part[side], evidence) for side in ("of", "to")]
        if part["everywhere"]:
            of, to = ({(*_place(row), int(row["update"])): float(row[key]) for row in own} for own in looks)
            return _paired(of, to)
        ours, theirs = (_over_layers(_layer_means(own, key)) for own in looks)
        return _paired(ours, theirs)

    return measure


def _looks(label: str, evidence: Evidence) -> list[Mapping[str, Any]]:
    """A method's rows of spectrum.csv."""
    own = [row for row in evidence.spectrum if row["method"] == label]
    if not own:
        raise _missing(label, {row["method"] for row in evidence.spectrum})
    return own


def _place(row: Mapping[str, Any]) -> tuple[int, str]:
    return int(row["seed"]), row["layer"]


def _layer_means(rows: Iterable[Mapping[str, Any]], key: str) -> dict[tuple[int, str], float]:
    """(seed, layer) -> mean over looks."""
    by_place: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        by_place.setdefault(_place(row), []).append(float(row[key]))
    return {place: fmean(values) for place, values in by_place.items()}


def _over_layers(values: Mapping[tuple[int, str], float]) -> dict[int, float]:
    """Seed -> geometric mean over layers, which are no replicates."""
    seeds = {seed for seed, _ in values}
    by_seed = {seed: [v for (s, _), v in values.items() if s == seed] for seed in seeds}
    # A zero among them makes the mean zero, which the function refuses to say.
    return {seed: geometric_mean(own) if min(own) > 0 else min(own) for seed, own in by_seed.items()}


def _error_growth(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """How many times as large the error is in the last fifth of a refresh's life as when it is first looked at."""
    return _paired(_grown(part["of"], evidence), _grown(part["to"], evidence))


def _grown(label: str, evidence: Evidence) -> dict[int, float]:
    looks = _looks(label, evidence)
    oldest = max(map(_age, looks))
    young = _layer_means(_first_looks(looks), "frobenius_error")
    # Of age 0 are looks right at a refresh: where all are, with T = 1 say, nothing can have grown.
    old = _layer_means((row for row in looks if _age(row) and _age(row) >= oldest * 4 / 5), "frobenius_error")
    grown = {place: old[place] / young[place] if young[place] else math.inf for place in young.keys() & old.keys()}
    return _over_layers(grown)


def _first_looks(looks: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first look at every refresh: looks need not meet the very update at which it is first used."""
    first, last = [], dict[tuple[int, str], int]()
    for row in sorted(looks, key=lambda row: int(row["update"])):
        # An age that did not rise since the last look tells of a refresh in between.
        if _age(row) <= last.get(_place(row), _age(row)):
            first.append(row)
        last[_place(row)] = _age(row)
    return first


def _age(row: Mapping[str, Any]) -> int:
    return int(row["updates_since_refresh"])


def _cost_ratio(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """Time of an update by round, as a ratio to the reference's two windows of the same round."""
    of, to = (_looked_up(evidence.cost_ratios, part[side]) for side in ("of", "to"))
    return Figures(list(of), list(to))


def _toy_loss(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """The loss of the named point of the toy, or of both: "sgd, point 2"."""
    return Figures([_toy(part["of"], evidence)], [_toy(part["to"], evidence)])


_POINTS: dict[str, Callable[[Sequence[float]], float]] = {
    "point 1": lambda losses: losses[0],
    "point 2": lambda losses: losses[1],
    "both points": sum,
}


def _toy(text: str, evidence: Evidence) -> float:
    label, _, which = text.partition(", ")
    if which not in _POINTS:
        raise _missing(text, [f"{label}, {point}" for point in _POINTS])
    return _POINTS[which](_looked_up(evidence.toy, label))


_MEASURES: dict[str, Callable[[Mapping[str, Any], Evidence], Figures]] = {
    "final_train_loss": _final_train_loss,
    "seconds_to_loss": _seconds_to_loss,
    "least_damping": _least_damping,
    "cosine_distance": _cosine_distance,
    "progress": _progress,
    "frobenius_error": _spectral("frobenius_error"),
    "spectrum_distance": _spectral("spectrum_distance"),
    "error_growth": _error_growth,
    "seconds_per_update": _cost_ratio,
    "toy_loss": _toy_loss,
}
# Which records each measure needs.
TUNED = ("final_train_loss", "seconds_to_loss", "least_damping")
OF_FRESH_SEEDS = ("final_train_loss", "seconds_to_loss")
DIRECTIONS = ("cosine_distance", "progress", "frobenius_error", "error_growth", "spectrum_distance")
