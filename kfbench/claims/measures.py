"""What claims are judged on: every measure by its name, and those of directions, costs, the toy. Needs no torch."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, geometric_mean
from typing import Any

from kfbench.claims.evidence import Evidence, Figures, looked_up, missing, paired
from kfbench.claims.trained import final_train_loss, least_damping, seconds_to_loss, stable_share, test_error

# Between the two labels of a pair.
PAIR = " ~ "


def figures(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """What a part is judged on; ValueError, one sentence, for a label that the records do not have."""
    return _MEASURES[part["measure"]](part, evidence)


def _cosine_distance(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """1 - the mean cosine of two directions over the followed trajectory: of the network, or of each of its layers."""
    metric, each = part.get("metric") or "foof", part.get("layers") == "each"
    of, to = (_distances(part[side], evidence, metric, each) for side in ("of", "to"))
    return paired(of, to)


def _distances(pair: str, evidence: Evidence, metric: str, each: bool) -> dict[int, float]:
    wanted = set(pair.split(PAIR))  # a set, as records have each pair in one order only
    rows = [row for row in evidence.similarity["cosines"] if row["metric"] == metric and (row["layer"] != "*") == each]
    own = [row for row in rows if {row["method_a"], row["method_b"]} == wanted]
    if not own:
        raise missing(pair, {PAIR.join((row["method_a"], row["method_b"])) for row in rows})
    distances = {_place(row): 1 - _or_nan(row["mean"]) for row in own}
    return _over_layers(distances) if each else {seed: distance for (seed, _), distance in distances.items()}


def _progress(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """Mean relative decrease of the mini-batch loss along the followed trajectory."""
    rows = [row for row in evidence.similarity["progress"] if row["kind"] == part["kind"]]
    by_method: dict[str, dict[int, float]] = {}
    for row in rows:
        # A step after which the loss is no number is worse than any mean of the others says.
        by_method.setdefault(row["method"], {})[row["seed"]] = math.nan if row["not_finite"] else _or_nan(row["mean"])
    return paired(looked_up(by_method, part["of"]), looked_up(by_method, part["to"]))


def _or_nan(value: float | None) -> float:
    """A mean of no finite look is none."""
    return math.nan if value is None else value


def _spectral(key: str) -> Callable[[Mapping[str, Any], Evidence], Figures]:
    def measure(part: Mapping[str, Any], evidence: Evidence) -> Figures:
        """Of every look where the inequality must hold everywhere, else of each seed: looks, then layers, averaged."""
        looks = [_looks(part[side], evidence) for side in ("of", "to")]
        if part["everywhere"]:
            of, to = ({(*_place(row), int(row["update"])): float(row[key]) for row in own} for own in looks)
            return paired(of, to)
        ours, theirs = (_over_layers(_layer_means(own, key)) for own in looks)
        return paired(ours, theirs)

    return measure


def _looks(label: str, evidence: Evidence) -> list[Mapping[str, Any]]:
    """A method's rows of spectrum.csv."""
    own = [row for row in evidence.spectrum if row["method"] == label]
    if not own:
        raise missing(label, {row["method"] for row in evidence.spectrum})
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
    # A zero among them makes the mean zero, which the function refuses to say; what is no number makes it none.
    return {seed: geometric_mean(own) if min(own) > 0 else sum(map(abs, own)) * 0 for seed, own in by_seed.items()}


def _error_growth(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """How many times as large the error is in the last fifth of a refresh's life as when it is first looked at."""
    return paired(_grown(part["of"], evidence), _grown(part["to"], evidence))


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
    of, to = (looked_up(evidence.cost_ratios, part[side]) for side in ("of", "to"))
    return Figures(list(of), list(to))


def _inverse_error(part: Mapping[str, Any], evidence: Evidence) -> Figures:
    """Of an approximate inverse of the whole Kronecker-factored Fisher, by seed."""
    return paired(*(looked_up(evidence.inverses, part[side]) for side in ("of", "to")))


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
        raise missing(text, [f"{label}, {point}" for point in _POINTS])
    return _POINTS[which](looked_up(evidence.toy, label))


_MEASURES: dict[str, Callable[[Mapping[str, Any], Evidence], Figures]] = {
    "final_train_loss": final_train_loss,
    "test_error": test_error,
    "seconds_to_loss": seconds_to_loss,
    "least_damping": least_damping,
    "stable_share": stable_share,
    "cosine_distance": _cosine_distance,
    "progress": _progress,
    "frobenius_error": _spectral("frobenius_error"),
    "spectrum_distance": _spectral("spectrum_distance"),
    "fisher_cosine_distance": _spectral("fisher_cosine_distance"),
    "error_growth": _error_growth,
    "seconds_per_update": _cost_ratio,
    "inverse_error": _inverse_error,
    "toy_loss": _toy_loss,
}
# Which records each measure needs.
TUNED = ("final_train_loss", "test_error", "seconds_to_loss", "least_damping", "stable_share")
OF_FRESH_SEEDS = ("final_train_loss", "test_error", "seconds_to_loss")
FINISHED = (*OF_FRESH_SEEDS, "stable_share")
OF_SPECTRA = ("frobenius_error", "error_growth", "spectrum_distance", "fisher_cosine_distance")
DIRECTIONS = ("cosine_distance", "progress", *OF_SPECTRA)
