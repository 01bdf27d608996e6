"""Tables of `similarity`, from its summary alone: means over looks, then over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

from kfbench.results.seeds import mean_and_deviation
from kfbench.results.tables import number
from kfbench.similarity.means import WHOLE

# More layers than a terminal is wide for stand in similarity.csv alone.
_MAX_LAYERS = 8


def cosine_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a pair and metric: the whole network, then its layers."""
    cosines = _over_seeds(summary["cosines"], ("method_a", "method_b", "metric", "layer"), "mean")
    layers = list(dict.fromkeys(key[3] for key in cosines if key[3] != WHOLE))
    shown = layers if len(layers) <= _MAX_LAYERS else []
    rows = []
    for a, b, metric in dict.fromkeys(key[:3] for key in cosines):
        row = {"cosine of": a, "with": b, "metric": metric, "network": _cell(cosines[a, b, metric, WHOLE])}
        rows.append(row | {f"layer {name}": _cell(cosines.get((a, b, metric, name))) for name in shown})
    return rows


def progress_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a method: mean progress of its own steps, and of its direction with the followed one's norms."""
    progress = _over_seeds(summary["progress"], ("method", "kind"), "mean")
    lrs = _over_seeds(summary["progress"], ("method", "kind"), "mean_lr")
    step = {"search": "best lr", "given": "own lr"}.get(summary["progress_lr"] or "", "")
    return [
        {
            "progress of": method,
            step: _cell(progress.get((method, "as-is"))),
            f"norms of {summary['follow']}": _cell(progress.get((method, "rescaled"))),
            "mean lr": number(mean_and_deviation(lrs.get((method, "as-is"), []))[0], 3),
        }
        for method in dict.fromkeys(method for method, _ in progress)
    ]


def spectrum_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a layer and method: relative errors of its curvature, and distances of spectra."""
    names = {
        "error": "mean_error",
        "at refresh": "mean_error_at_refresh",
        "before refresh": "mean_error_before_refresh",
        "distance of spectra": "mean_distance",
    }
    columns = {shown: _over_seeds(summary["spectrum"], ("layer", "method"), key) for shown, key in names.items()}
    keys = dict.fromkeys((entry["layer"], entry["method"]) for entry in summary["spectrum"])
    return [
        {"curvature in": f"layer {layer}", "method": method}
        | {shown: _cell(values.get((layer, method))) for shown, values in columns.items()}
        for layer, method in keys
    ]


def notes(summary: Mapping[str, Any]) -> list[str]:
    """What the numbers rest on, and what went wrong."""
    layers = {entry["layer"] for entry in summary["cosines"]} - {WHOLE}
    looks = max((entry["looks"] for entry in summary["cosines"]), default=0)
    lines = [f"{looks} looks a seed, one every {summary['every']} updates, along {summary['follow']}"]
    if summary["metric_foof"]:
        lines.append(f"metric foof: A and lambda of {summary['metric_foof']}")
    if len(layers) > _MAX_LAYERS:
        lines.append(f"cosines of the {len(layers)} layers are in similarity.csv")
    bad = sum(entry["not_finite"] for entry in summary["cosines"])
    if bad:
        lines.append(f"{bad} cosines are not numbers (a direction was zero) and are left out of the means")
    bad = sum(entry["not_finite"] for entry in summary["progress"])
    if bad:
        lines.append(f"{bad} steps lead to a loss that is no number and are left out of the mean progress")
    for run in summary["runs"]:
        if run["reason"]:
            lines.append(f"seed {run['seed']} {run['status']}: {run['reason']}")
    return lines


def _over_seeds(
    entries: Sequence[Mapping[str, Any]], keys: Sequence[str], name: str
) -> dict[tuple[Any, ...], list[float]]:
    """key -> the values of all seeds that have one."""
    by_key: dict[tuple[Any, ...], list[float]] = {}
    for entry in entries:
        values = by_key.setdefault(tuple(entry[key] for key in keys), [])
        if entry.get(name) is not None:
            values.append(float(entry[name]))
    return by_key


def _cell(values: Sequence[float] | None) -> str:
    mean, deviation = mean_and_deviation(values or [])
    if mean is None:
        return ""
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} +- {deviation:.3f}"
