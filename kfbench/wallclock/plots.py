"""Plots of `wallclock`, from its summaries alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kfbench.config.labels import without_T
from kfbench.results.styles import styles
from kfbench.wallclock.tables import varying_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_timings(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Bars of ratios with their intervals; where an axis varies, cost against it on logarithmic axes."""
    import matplotlib

    # Before pyplot is imported: no display is looked for.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = varying_axes(cells)
    by_T = _T_groups(cells[0]) if not axes else {}
    panels = len(axes) if axes else 1 + bool(by_T)
    figure, drawn = pyplot.subplots(1, panels, figsize=(5.5 * panels, 4), layout="constrained", squeeze=False)
    if axes:
        for panel, axis in zip(drawn[0], axes, strict=True):
            _curves(panel, cells, axis)
    else:
        _bars(drawn[0][0], cells[0])
        if by_T:
            _against_T(drawn[0][1], by_T)
    for panel in drawn[0]:
        panel.spines[["top", "right"]].set_visible(False)
    quick = " (quick run, not for comparison)" if cells[0]["quick"] else ""
    figure.suptitle(f"{cells[0]['label']}{quick}", fontsize=10)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _bars(panel: "Axes", cell: Mapping[str, Any]) -> None:
    methods = list(cell["methods"])
    looks = styles(methods)
    for position, method in enumerate(methods):
        entry = cell["methods"][method]
        ratio = float(entry["ratio"])
        # Of few rounds the interval is unbounded, which no bar can show.
        reach = [[ratio - max(float(entry["ratio_low"]), 0)], [min(float(entry["ratio_high"]), 10 * ratio) - ratio]]
        panel.barh(position, ratio, color=looks[method]["color"], alpha=0.75)
        panel.errorbar(ratio, position, xerr=reach, color="black", capsize=3, linewidth=1)
        if entry["predicted_ratio"] is not None:
            panel.plot(entry["predicted_ratio"], position, marker="d", color="white", markeredgecolor="black")
    names = [f"{m} (A/A)" if m == cell["reference"] else m for m in methods]
    panel.set_yticks(range(len(methods)), names)
    panel.invert_yaxis()  # the first method on top, as in the table
    panel.axvline(1, color="grey", linewidth=0.8, linestyle=":")
    panel.set_xlabel(f"time per update / {cell['reference']}   (bar: 95% interval, diamond: multiply-adds)")


def _T_groups(cell: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """name -> (T, ms), for methods that were timed at three or more T."""
    groups: dict[str, list[tuple[int, float]]] = {}
    for method, entry in cell["methods"].items():
        if entry.get("T"):
            groups.setdefault(without_T(method), []).append((entry["T"], 1e3 * entry["seconds_per_update"]))
    return {name: sorted(points) for name, points in groups.items() if len(points) > 2}


def _against_T(panel: "Axes", groups: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    looks = styles(list(groups))
    for name, points in groups.items():
        panel.loglog(*zip(*points, strict=True), marker="o", markersize=3, label=name, **looks[name])
    panel.set(xlabel="T", ylabel="ms per update")
    panel.legend(frameon=False)


def _curves(panel: "Axes", cells: Sequence[Mapping[str, Any]], axis: str) -> None:
    others = {"width": "batch_size", "batch_size": "width"}[axis]
    # One line a method: along the other axis it stays where the first cell is.
    fixed = cells[0][others]
    chosen = [cell for cell in cells if cell[others] == fixed]
    looks = styles(list(chosen[0]["methods"]))
    for method, look in looks.items():
        points = [(cell[axis], 1e3 * cell["methods"][method]["seconds_per_update"]) for cell in chosen]
        panel.loglog(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=method, **look)
    panel.set(xlabel=axis.replace("_", " "), ylabel="ms per update")
    panel.legend(frameon=False, fontsize=8)
