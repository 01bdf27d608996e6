"""The records of `similarity`, and their means. Imports nothing of ours."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# The name of the whole network in the column of layers: all captured layers together.
WHOLE = "*"

SIMILARITY_COLUMNS = ("seed", "update", "layer", "method_a", "method_b", "metric", "cosine")
PROGRESS_COLUMNS = ("seed", "update", "method", "kind", "lr", "progress")
SPECTRUM_COLUMNS = (
    "seed",
    "update",
    "layer",
    "method",
    "updates_since_refresh",
    "frobenius_error",
    "spectrum_distance",
    "fisher_cosine_distance",
)
_PAIR = ("seed", "layer", "method_a", "method_b", "metric")
_PROGRESS = ("seed", "method", "kind")
_SPECTRUM = ("seed", "layer", "method")


class Means:
    """Running means by key; values that are not finite are left out, and counted."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys
        self._entries: dict[tuple[Any, ...], dict[str, Any]] = {}

    def add(self, row: Mapping[str, Any], name: str, value: float) -> None:
        """One more value of ``name`` for the keys of ``row``."""
        entry = self._entries.setdefault(tuple(row[key] for key in self._keys), {})
        total, count, not_finite, _ = entry.get(name, (0.0, 0, 0, None))
        if math.isfinite(value):
            total, count = total + value, count + 1
        else:
            not_finite += 1
        entry[name] = (total, count, not_finite, value)

    def __iter__(self) -> Any:
        """(keys, name -> (mean or None, number of values, how many were not finite, last))."""
        for key, entry in self._entries.items():
            named = {n: (total / k if k else None, k, bad, last) for n, (total, k, bad, last) in entry.items()}
            yield dict(zip(self._keys, key, strict=True)), named


class SimilaritySummary:
    """What summary.json holds of looks, gathered while they are recorded."""

    def __init__(self) -> None:
        self._cosines, self._progress, self._spectrum = Means(_PAIR), Means(_PROGRESS), Means(_SPECTRUM)

    def add_cosines(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of similarity.csv."""
        for row in rows:
            self._cosines.add(row, "cosine", row["cosine"])

    def add_progress(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of progress.csv."""
        for row in rows:
            self._progress.add(row, "progress", row["progress"])
            if row["lr"] is not None:
                self._progress.add(row, "lr", row["lr"])

    def add_spectrum(self, rows: Iterable[Mapping[str, Any]], periods: Mapping[str, int]) -> None:
        """Rows of spectrum.csv; ``periods``: T of every method."""
        for row in rows:
            age = row["updates_since_refresh"]
            # With T = 1 a look is both right after a refresh and right before the next.
            places = ["", *["_at_refresh"] * (age == 0), *["_before_refresh"] * (age == periods[row["method"]] - 1)]
            for place in places:
                self._spectrum.add(row, f"mean_error{place}", row["frobenius_error"])
                self._spectrum.add(row, f"mean_distance{place}", row["spectrum_distance"])

    def as_dict(self) -> dict[str, Any]:
        """Means over all looks of a seed: "cosines", "progress", "spectrum"."""
        cosines = [
            {**key, "mean": mean, "last": last, "looks": count, "not_finite": bad}
            for key, named in self._cosines
            for mean, count, bad, last in [named["cosine"]]
        ]
        progress = [
            {**key, "mean": mean, "mean_lr": named.get("lr", (None,))[0], "looks": count, "not_finite": bad}
            for key, named in self._progress
            for mean, count, bad, _ in [named["progress"]]
        ]
        names = [f"mean_{what}{place}" for what in ("error", "distance") for place in _PLACES]
        spectrum = [
            {**key, **{name: named.get(name, (None,))[0] for name in names}, "looks": named["mean_error"][1]}
            for key, named in self._spectrum
        ]
        return {"cosines": cosines, "progress": progress, "spectrum": spectrum}


_PLACES = ("", "_at_refresh", "_before_refresh")
