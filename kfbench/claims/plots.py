"""The picture of verdicts, from their records."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kfbench.claims.tables import SIDES, measure_of, pair_of
from kfbench.claims.verdicts import OPEN, REFUTED, REPRODUCED, WITHHELD, side_of

_COLOURS = {REPRODUCED: "#009E73", REFUTED: "#D55E00", OPEN: "#777777", WITHHELD: "#CC79A7"}


def plot_ratios(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Every part of the claims that was judged: its ratio with interval beside its threshold, on a log axis."""
    import matplotlib

    matplotlib.use("Agg")  # needs no screen
    from matplotlib import pyplot

    parts = [
        (record["id"], part, " / ".join(pair_of(part, record["parts"])))
        for record in records
        for part in record.get("parts", ())
        if part["decides"] and math.isfinite(part["ratio"]) and "toy" not in part["measure"]
    ]
    if not parts:
        return
    shown = [x for _, part, _ in parts for x in (part["ratio"], part[side_of(part)], 1.0)]
    left, right = min(x for x in shown if x > 0) / 3, max(shown) * 3
    compared = [(id, measure_of(part), pair) for id, part, pair in reversed(parts)]
    names = [f"{id}: {', '.join(filter(None, what))}" for id, *what in compared]
    # Beside the longest name there must be room for the axis, or the layout gives up.
    size = max(9.5, 4.5 + 0.08 * max(map(len, names))), 1.2 + 0.27 * len(parts)
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    for row, (_, part, _) in enumerate(reversed(parts)):  # upwards, so that the first one ends on top
        colour = next(c for outcome, c in _COLOURS.items() if part["outcome"].startswith(outcome))  # reasons follow
        if part["low"] is not None and part["high"] is not None:
            ends = [min(max(end, left), right) for end in (part["low"], part["high"])]  # they may be 0 or infinite
            axes.plot(ends, [row, row], color=colour, linewidth=3, alpha=0.5)
        if part["ratio"] > 0:
            axes.plot(part["ratio"], row, "o", color=colour)
        else:  # a negative progress has no place on this axis
            axes.annotate(f"\N{LEFTWARDS ARROW} {part['ratio']:.3g}", (left, row), color=colour, va="center")
        side = side_of(part)
        axes.plot(part[side], row, marker=SIDES[side], color="black", markersize=6, fillstyle="none")
    axes.set_yticks(range(len(parts)), names)
    axes.set_ylim(-0.7, len(parts) - 0.3)
    axes.set(xscale="log", xlabel="measured ratio, 95 % interval; hollow: the claimed side of its threshold")
    axes.set_xlim(left, right)
    axes.axvline(1, color="black", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    for outcome, colour in _COLOURS.items():  # for the legend alone
        axes.plot([], [], "o", color=colour, label=outcome)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=130, bbox_inches="tight")  # long names would push the axis label out
    pyplot.close(figure)
