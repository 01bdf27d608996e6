"""Plots of `compare`: its runs as `train`'s plot takes them, and performance profiles."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfbench.compare.comparison import Comparison
from kfbench.compare.profile import MEASURES
from kfbench.results.records import EPOCH_COLUMNS, UPDATE_COLUMNS, Records
from kfbench.results.styles import styles


def records_of(comparison: Comparison) -> list[Records]:
    """The runs of a comparison, each method under its label, as ``plot_losses`` takes them."""
    import pandas as pd

    config = {"problem": comparison.problem, "run": comparison.run}
    records = []
    for method in comparison.methods:
        # Its label here, which need not be that under which it ran.
        epochs = [row | {"method": method.label} for record in method.seeds for row in record.epochs]
        losses = [
            {"method": method.label, "seed": record.seed, "update": update, "loss": loss}
            for record in method.seeds
            for update, loss in record.losses
        ]
        tables = (pd.DataFrame(losses, columns=list(UPDATE_COLUMNS)), pd.DataFrame(epochs, columns=list(EPOCH_COLUMNS)))
        # Without a summary, of which a plot needs nothing.
        records.append(Records(method.seeds[0].folder.parent, config, method.environment, {}, *tables))
    return records


def plot_profile(summary: Mapping[str, Any], path: Path) -> None:
    """Share of problems within a factor tau of the best, a step function for each method; tau on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")  # before pyplot, which else may look for a display
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.5, 4.2), layout="constrained")
    furthest = max(method["curve"][-1][0] for method in summary["methods"].values())
    end = max(furthest * 1.15, 2.0)
    for i, (label, look) in enumerate(styles(list(summary["methods"])).items()):
        tau, share = (list(values) for values in zip(*summary["methods"][label]["curve"], strict=True))
        # Up to the edge: what is not solved by then is solved at no factor.
        line = axes.step([*tau, end], [*share, share[-1]], where="post", label=label, linewidth=2, **look)[0]
        line.set_zorder(10 - i)  # where lines lie on each other, the first shows
        axes.plot(tau, share, "o", markersize=4, color=look["color"], zorder=10 - i)
    axes.set(xscale="log", xlim=(0.98, end), ylim=(-0.03, 1.05), ylabel="share of problems")
    powers = range(1 + math.ceil(math.log2(end)))
    # Powers of two, or of ten where these would stand too close.
    ticks = [2.0**k for k in powers] if len(powers) <= 8 else [10.0**k for k in range(1 + math.ceil(math.log10(end)))]
    axes.set_xticks([tick for tick in ticks if tick <= end], labels=[f"{t:g}" for t in ticks if t <= end])
    axes.minorticks_off()
    axes.set_xlabel(f"within this factor of the best, by {MEASURES[summary['measure']]}")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    quick = " (quick runs, not for comparison)" if summary["quick"] else ""
    figure.suptitle(f"performance profile over {len(summary['problems'])} problems{quick}", fontsize=10)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
