"""Plots of `sweep`, from its summary alone: heat maps, the loss with the step tuned for each damping, per epoch."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kfbench.config.labels import without_shared
from kfbench.results.styles import styles, title
from kfbench.sweep.losses import best_of, tuned_curve
from kfbench.sweep.tables import map_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_sweep(summary: Mapping[str, Any], directory: Path) -> None:
    """Writes heatmap.png, tuned.png and, where trials were evaluated after several epochs, per-epoch.png."""
    import matplotlib

    matplotlib.use("Agg")  # needs no screen
    shown = {label: method for label, method in summary["methods"].items() if method["best"] and method["axes"]}
    if not shown:
        return
    # What tells none of them apart would fill the pictures.
    shown = {without_shared(label, label, shown)[0]: method for label, method in shown.items()}
    _heat_maps(summary, shown, directory / "heatmap.png")
    _curves(summary, shown, directory / "tuned.png")
    if any(len(method["per_epoch"]) > 2 for method in shown.values()):
        _per_epoch(summary, shown, directory / "per-epoch.png")


def _heat_maps(summary: Mapping[str, Any], methods: Mapping[str, Any], path: Path) -> None:
    """One panel a method, all in the same colours; a method with one parameter is a line."""
    from matplotlib import pyplot
    from matplotlib.colors import LogNorm

    finite = [c for m in methods.values() for *_, c in m["losses"] if c is not None and math.isfinite(c)]
    # A logarithmic scale takes neither 0 nor ends that are equal.
    norm = LogNorm(max(min(finite), 1e-12), max(*finite, 1.001 * min(finite), 1e-11))
    columns = min(len(methods), 2 if len(methods) == 4 else 3)
    rows = -(-len(methods) // columns)  # rounded up
    size = (4.2 * columns, 3.6 * rows)
    figure, panels = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for unused in panels.flat[len(methods) :]:
        unused.set_visible(False)
    image = None
    for panel, (label, method) in zip(panels.flat, methods.items(), strict=False):
        row, *_ = map_of(method)
        if row is None:
            _line(panel, method, styles([label])[label])
        else:
            image = _heat_map(panel, method, norm)
        panel.set_title(label, fontsize=10)
    if image is not None:
        figure.colorbar(image, ax=panels, label="final training loss (grey: diverged)")
    figure.suptitle(title(summary["problem"], summary["run"]), fontsize=10)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _heat_map(panel: "Axes", method: Mapping[str, Any], norm: Any) -> Any:
    import numpy as np

    row, column, rows, columns, losses = map_of(method)
    values = np.array([[_or_nan(losses.get((r, c))) for c in columns] for r in rows])
    panel.set_facecolor("0.6")  # seen where there is no finite loss
    # Light where the loss is low, as in the terminal.
    image = panel.imshow(values, origin="lower", aspect="auto", norm=norm, cmap="viridis_r")
    best = best_of(losses)
    if best:
        place = (columns.index(best[1]), rows.index(best[0]))
        panel.plot(*place, marker="*", markersize=14, color="white", markeredgecolor="black")
    panel.set_xticks(range(len(columns)), [_tick(c) for c in columns], fontsize=7, rotation=45)
    panel.set_yticks(range(len(rows)), [_tick(r) for r in rows], fontsize=7)
    panel.set(xlabel="alpha = lr / damping" if column == "alpha" else column, ylabel=row)
    return image


def _line(panel: "Axes", method: Mapping[str, Any], look: Mapping[str, Any]) -> None:
    _, column, _, columns, losses = map_of(method)
    points = [(c, losses.get((None, c))) for c in columns]
    drawn = [(c, loss) for c, loss in points if loss is not None and math.isfinite(loss)]
    panel.plot(*zip(*drawn, strict=True), marker="o", markersize=3, **look)
    if all(isinstance(c, float) and c > 0 for c in columns):
        panel.set_xscale("log")
    panel.set(xlabel=column, ylabel="final training loss", yscale="log")


def _curves(summary: Mapping[str, Any], methods: Mapping[str, Any], path: Path) -> None:
    """Loss against damping with the step tuned for each (FOOF paper, Figure 3C, D); hollow: that step is at an edge."""
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7.5, 4), layout="constrained")
    across = "damping"
    for label, look in styles(list(methods)).items():
        method = methods[label]
        row, column, _, columns, losses = map_of(method)
        if row is None and column == "damping":  # its step is found by a rule
            _line(panel, method, {**look, "label": label})
            continue
        if row is None:
            panel.axhline(method["tuned_loss"], label=f"{label}, tuned", linewidth=1, **look)
            continue
        curve = tuned_curve(losses, 0)  # cells of ``map_of`` are (row, column)
        panel.plot([x for x, _, _ in curve], [loss for _, _, loss in curve], label=label, **look)
        for x, cell, loss in curve:
            edge = cell[1] in (columns[0], columns[-1])
            fill = "white" if edge else look["color"]
            panel.plot(x, loss, marker="o", markersize=5, color=look["color"], markerfacecolor=fill)
        across = f"{row} ({column} tuned for each; hollow: at an end of its grid)"
        if all(isinstance(x, float) and x > 0 for x, _, _ in curve):
            panel.set_xscale("log")
    panel.set(xlabel=across, ylabel="final training loss", yscale="log")
    _finish(figure, panel, summary, path)


def _per_epoch(summary: Mapping[str, Any], methods: Mapping[str, Any], path: Path) -> None:
    """For each epoch the lowest loss of any trial: which method is best for that budget (EKFAC paper, section 4)."""
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7.5, 4), layout="constrained")
    for label, look in styles(list(methods)).items():
        panel.plot(*zip(*methods[label]["per_epoch"], strict=True), label=label, **look)
    panel.set(xlabel="epoch", ylabel="lowest training loss of any trial", yscale="log")
    _finish(figure, panel, summary, path)


def _finish(figure: Any, panel: "Axes", summary: Mapping[str, Any], path: Path) -> None:
    from matplotlib import pyplot

    panel.figure.legend(loc="outside right center", frameon=False, fontsize=8)  # beside: methods may be many
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.3)
    figure.suptitle(title(summary["problem"], summary["run"]), fontsize=10)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _or_nan(loss: float | None) -> float:
    return loss if loss is not None and math.isfinite(loss) else math.nan


def _tick(value: Any) -> str:
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e") if isinstance(value, float) else str(value)
