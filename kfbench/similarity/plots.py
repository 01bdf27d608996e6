"""Plots of `similarity`, from its CSV files: cosines, a heat map of all pairs, progress, errors of the curvature."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kfbench.results.styles import styles
from kfbench.similarity.means import WHOLE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# More panels than these say no more; the others stand in the CSV.
_MAX_PANELS = 9


def plot_similarity(directory: Path, summary: Mapping[str, Any]) -> None:
    """Writes similarity.png and heatmap.png, and progress.png, spectrum.png where there is something to draw."""
    import matplotlib

    # Before pyplot is imported: no display is looked for.
    matplotlib.use("Agg")
    import pandas as pd

    looks = styles(summary["methods"])
    # Layers are called 1 or 3 where a model is nn.Sequential: these are names.
    cosines = pd.read_csv(directory / "similarity.csv", dtype={"layer": str})
    if len(cosines):
        _cosines(cosines, summary, looks, directory / "similarity.png")
        _heat_map(cosines, summary, directory / "heatmap.png")
    for name, draw in (("progress", _progress), ("spectrum", _spectrum)):
        file = directory / f"{name}.csv"
        if file.is_file() and len(table := pd.read_csv(file, dtype={"layer": str})):
            draw(table, summary, looks, directory / f"{name}.png")


def _cosines(table: "pd.DataFrame", summary: Mapping[str, Any], looks: Mapping[str, Any], path: Path) -> None:
    """Against update, one panel a layer, pairs of the followed method (or the one compared against)."""
    centre = summary["against"] or summary["follow"]
    layers = list(dict.fromkeys(table["layer"]))
    shown = [WHOLE, *[layer for layer in layers if layer != WHOLE]][:_MAX_PANELS]
    metrics = summary["metrics"]
    figure, panels = _grid(len(shown) * len(metrics), len(shown) if len(metrics) > 1 else 3)
    for panel, (metric, layer) in zip(panels, [(m, s) for m in metrics for s in shown], strict=True):
        own = table[(table["layer"] == layer) & (table["metric"] == metric)]
        for label, look in looks.items():
            pair = own[
                ((own["method_a"] == centre) & (own["method_b"] == label))
                | ((own["method_b"] == centre) & (own["method_a"] == label))
            ]
            _line(panel, pair, "cosine", label, look)
        where = "whole network" if layer == WHOLE else f"layer {layer}"
        panel.set_title(where if len(metrics) == 1 else f"{where}, {metric}", fontsize=9)
        panel.set_ylim(min(-0.05, float(table["cosine"].min())), 1.05)
        panel.set(xlabel="update")
    panels[0].set_ylabel(f"cosine with {centre}")
    _legend(figure, panels[0])
    _save(figure, panels, summary, path)


def _heat_map(table: "pd.DataFrame", summary: Mapping[str, Any], path: Path) -> None:
    """The mean cosine of every pair over the whole network, one panel a metric."""
    import numpy as np

    labels, metrics = summary["methods"], summary["metrics"]
    place = {label: i for i, label in enumerate(labels)}
    side = max(3.5, 0.6 * len(labels) + 2)
    figure, panels = _grid(len(metrics), len(metrics), (side + 0.8, side))
    whole = table[table["layer"] == WHOLE]
    image = None
    for panel, metric in zip(panels, metrics, strict=True):
        values = np.full((len(labels), len(labels)), np.nan)
        np.fill_diagonal(values, 1.0)
        means = whole[whole["metric"] == metric].groupby(["method_a", "method_b"])["cosine"].mean()
        for (a, b), mean in means.items():
            # Each pair is recorded once.
            values[place[a], place[b]] = values[place[b], place[a]] = mean
        image = panel.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r")
        for i, j in np.ndindex(values.shape):
            if np.isfinite(values[i, j]):
                # Legible on the dark ends of the colours.
                shade = "white" if abs(values[i, j]) > 0.6 else "black"
                panel.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=8, color=shade)
        panel.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontsize=8)
        panel.set_yticks(range(len(labels)), labels, fontsize=8)
        panel.set_title(f"mean cosine, {metric}", fontsize=9)
    figure.colorbar(image, ax=list(panels), shrink=0.8)
    _save(figure, [], summary, path)  # no panels: a grid would lie over the image


def _progress(table: "pd.DataFrame", summary: Mapping[str, Any], looks: Mapping[str, Any], path: Path) -> None:
    """Against update; one panel for each method's own steps, one for the followed method's norms."""
    own = "best lr of a line search" if summary["progress_lr"] == "search" else "own lr"
    titles = {"as-is": f"own directions, {own}", "rescaled": f"norms and lr of {summary['follow']}"}
    figure, panels = _grid(len(titles), len(titles))
    for panel, (kind, title) in zip(panels, titles.items(), strict=True):
        for label, look in looks.items():
            _line(panel, table[(table["kind"] == kind) & (table["method"] == label)], "progress", label, look)
        values = table[table["kind"] == kind]["progress"]
        # A step that makes the loss many times larger would leave no room for the others.
        panel.set_ylim(max(1.1 * float(values.min()), -1.0) if values.min() < 0 else 0, 1.1 * float(values.max()))
        panel.axhline(0, color="grey", linewidth=0.8, linestyle=":")
        panel.set_title(title, fontsize=9)
        panel.set(xlabel="update")
    panels[0].set_ylabel("decrease of the batch's loss")
    _legend(figure, panels[0])
    _save(figure, panels, summary, path)


def _spectrum(table: "pd.DataFrame", summary: Mapping[str, Any], looks: Mapping[str, Any], path: Path) -> None:
    """Errors above, distances of spectra below, one column a layer."""
    layers = list(dict.fromkeys(table["layer"]))[:_MAX_PANELS]
    kinds = {"frobenius_error": "|F - D| / |F|", "spectrum_distance": "|eig F - eig D| / |eig F|"}
    figure, panels = _grid(2 * len(layers), len(layers))
    for panel, (kind, layer) in zip(panels, [(k, name) for k in kinds for name in layers], strict=True):
        for label, look in looks.items():
            rows = table[(table["layer"] == layer) & (table["method"] == label)]
            _line(panel, rows, kind, label, look)
        panel.set_title(f"layer {layer}", fontsize=9)
        panel.set(xlabel="update", ylabel=kinds[kind])
        panel.set_ylim(bottom=0)
    _legend(figure, panels[0])
    _save(figure, panels, summary, path)


def _line(panel: "Axes", rows: "pd.DataFrame", column: str, label: str, look: Mapping[str, Any]) -> None:
    """Mean over seeds, and their range where there are several."""
    if not len(rows):
        return
    by_update = rows.groupby("update")[column]
    mean = by_update.mean()
    panel.plot(mean.index, mean, label=label, linewidth=1.2, **look)
    if rows["seed"].nunique() > 1:
        panel.fill_between(mean.index, by_update.min(), by_update.max(), color=look["color"], alpha=0.2, linewidth=0)


def _grid(count: int, columns: int, size: tuple[float, float] = (4.2, 3.2)) -> tuple[Any, list["Axes"]]:
    from matplotlib import pyplot

    columns = min(columns, count)
    rows = -(-count // columns)
    figure, panels = pyplot.subplots(
        rows, columns, figsize=(size[0] * columns, size[1] * rows), layout="constrained", squeeze=False
    )
    for unused in panels.flat[count:]:
        unused.set_visible(False)
    return figure, list(panels.flat[:count])


def _legend(figure: Any, panel: "Axes") -> None:
    """One for all panels, below them."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False, fontsize=8)


def _save(figure: Any, panels: Sequence["Axes"], summary: Mapping[str, Any], path: Path) -> None:
    from matplotlib import pyplot

    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
    problem, run = summary["problem"], summary["run"]
    quick = " (quick run, not for comparison)" if summary["quick"] else ""
    figure.suptitle(
        f"along {summary['follow']} on {problem['dataset']}, {problem['model']}, batch size {run['batch_size']}{quick}",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
