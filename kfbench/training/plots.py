"""Plots from records. One style for one method everywhere; colours a colour-blind reader can tell apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kfbench.results.records import Records
from kfbench.results.styles import styles, title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def plot_losses(records: Sequence[Records], path: Path) -> None:
    """Training loss against updates and against seconds, mean and range over seeds, log scale.

    Marked points are losses over the training set at epochs' ends; the faint line is the
    mini-batch loss, averaged over neighbouring updates.
    """
    import matplotlib

    matplotlib.use("Agg")  # before pyplot, which else may look for a display
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
    _plain_numbers(left)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.suptitle(title(records[0].config["problem"], records[0].config["run"]), fontsize=10)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _plain_numbers(axes: "Axes") -> None:
    """260 in place of 2.6 x 10^2, where losses of less than a decade leave no tick that is a power of ten."""
    from matplotlib.ticker import LogFormatter

    low, high = axes.get_ylim()
    if low >= 1 and high < 10 * low:
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter())


def _epoch_line(axes: "Axes", own: "pd.DataFrame", x: str, label: str, look: dict[str, str]) -> None:
    """Where some seed has diverged the line ends: a mean over the survivors would flatter."""
    own = own[own["train_loss"].abs() < float("inf")]
    counts = own.groupby("update")["seed"].transform("count")
    by_update = own[counts == counts.max()].groupby("update")
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
