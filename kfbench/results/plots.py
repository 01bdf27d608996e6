"""Plots from records. One style for one method everywhere; colours a colour-blind reader can tell apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kfbench.results.records import Records

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Okabe & Ito 2008, Color Universal Design; a method keeps its colour in every plot.
_COLOURS = {
    "sgd": "#000000",
    "adam": "#E69F00",
    "adamw": "#CC79A7",
    "foof": "#0072B2",
    "kfac": "#D55E00",
    "ekfac": "#009E73",
}
_OTHERS = ("#56B4E9", "#F0E442")
_DASHES = ("-", "--", "-.", ":")


def styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour by method, dashes for the variants of one method."""
    found: dict[str, dict[str, Any]] = {}
    seen: dict[str, int] = {}
    unnamed = 0
    for label in labels:
        name = label.split("-", 1)[0]
        if name in _COLOURS:
            colour = _COLOURS[name]
        else:
            colour, unnamed = _OTHERS[unnamed % len(_OTHERS)], unnamed + 1
        found[label] = {"color": colour, "linestyle": _DASHES[seen.get(name, 0) % len(_DASHES)]}
        seen[name] = seen.get(name, 0) + 1
    return found


def plot_losses(records: Sequence[Records], path: Path) -> None:
    """Training loss against updates and against seconds, mean and range over seeds, log scale.

    Marked points are losses over the training set at epochs' ends; the faint line is the
    mini-batch loss, averaged over neighbouring updates.
    """
    import matplotlib

    matplotlib.use("Agg")
    import pandas as pd
    from matplotlib import pyplot

    epochs = pd.concat([r.epochs for r in records], ignore_index=True)
    updates = pd.concat([r.updates for r in records], ignore_index=True)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    looks = styles(list(dict.fromkeys(epochs["method"])))
    for label, look in looks.items():
        own = epochs[epochs["method"] == label]
        _minibatch_line(left, updates[updates["method"] == label], look)
        _epoch_line(left, own, "update", label, look)
        _epoch_line(right, own, "seconds_updates", label, look)
    left.set(xlabel="update", ylabel="training loss", yscale="log")
    right.set(xlabel="seconds in updates", yscale="log")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.suptitle(_title(records[0]), fontsize=10)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _title(record: Records) -> str:
    problem, run = record.config["problem"], record.config["run"]
    quick = " (quick run, not for comparison)" if run.get("quick") else ""
    return f"{problem['dataset']}, {problem['model']}, batch size {run['batch_size']}{quick}"


def _epoch_line(axes: "Axes", own: "pd.DataFrame", x: str, label: str, look: dict[str, str]) -> None:
    by_update = own.groupby("update")
    positions = by_update[x].mean()
    mean, low, high = (by_update["train_loss"].agg(name) for name in ("mean", "min", "max"))
    axes.plot(positions, mean, marker="o", markersize=3, label=label, **look)  # type: ignore[arg-type]
    if own["seed"].nunique() > 1:
        axes.fill_between(positions, low, high, color=look["color"], alpha=0.2, linewidth=0)


def _minibatch_line(axes: "Axes", own: "pd.DataFrame", look: dict[str, str]) -> None:
    if len(own):
        mean = own.groupby("update")["loss"].mean()
        window = max(len(mean) // 100, 1)
        smooth = mean.rolling(window, center=True, min_periods=1).mean()
        axes.plot(smooth.index, smooth, color=look["color"], alpha=0.3, linewidth=1)
