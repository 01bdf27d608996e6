"""Tables of `sweep`: a heat map of the loss for each method in the terminal, and one row a method."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kfbench.results.tables import number
from kfbench.sweep.losses import Losses, best_of

if TYPE_CHECKING:
    from rich.console import RenderableType

# Dark to light, the lower the loss the lighter: a few points of matplotlib's viridis.
_COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_DIVERGED, _MISSING, _BEST = "inf", "-", "*"
# Losses more than this factor above the best all look the same.
_DYNAMIC_RANGE = 1e3


def sweep_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a method: what was tried, what is best, and how it does with fresh seeds."""
    return [_row(label, method) for label, method in summary["methods"].items()]


def _row(label: str, method: Mapping[str, Any]) -> dict[str, Any]:
    final, robust, best = method["final"] or {}, method["robustness"], method["best"] or {}
    # alpha alone would not tell what to train with.
    swept = [*method["axes"], *(["lr"] if "alpha" in method["axes"] else [])]
    return {
        "method": label,
        "trials": method["trials"],
        "diverged": method["diverged"],
        "failed": method["failed"],
        "s tuning": number(method["seconds_tuning"], 4),
        "best": ", ".join(f"{name} {_short(best[name])}" for name in swept if name in best),
        "tuned loss": number(method["tuned_loss"], 4),
        "final loss": number(final.get("mean"), 4),
        "std": number(final.get("std"), 2),
        "seeds": len(final.get("losses", ())),
        "test accuracy": number(final.get("test_accuracy"), 4),
        "within 2x": f"{robust['within']} of {robust['of']}" if robust else "",
    }


def cell_rows(methods: Sequence[tuple[str, Sequence[Mapping[str, Any]], Callable[[Any], Mapping[str, Any]]]]) -> list:
    """One row a cell of the grids: label, cells, and what gives the options of a cell."""
    names = list(dict.fromkeys(name for _, cells, _ in methods for cell in cells for name in cell))
    if "alpha" in names and "lr" not in names:
        names.append("lr")
    rows = []
    for label, cells, options in methods:
        for cell in cells:
            values = {**options(cell), **cell}
            shown = {name: _short(values[name]) if name in values else "" for name in names}
            rows.append({"method": label, **shown})
    return rows


def notes(summary: Mapping[str, Any]) -> list[str]:
    """What the reader must know beside the table."""
    sentences = []
    for label, method in summary["methods"].items():
        if method["left_out"]:
            sentences.append(
                f"{label} has no {', '.join(method['left_out'])}; it was tuned over {', '.join(method['axes'])}"
            )
        if method["at_edges"]:
            edges = " and the ".join(f"{side_and_axis} edge" for side_and_axis in method["at_edges"])
            where = f"optimal or near optimal at the {edges} of its grid"
            sentences.append(f"Warning: {label} is {where}; raise --extend or widen --grid")
        if method["fragile"]:
            sound = "the next best one that did not is given" if method["final"] else "so did all that were tried"
            sentences.append(f"Warning: {method['fragile']} best points of {label} diverged with fresh seeds; {sound}")
        if method["best"] is None and method["trials"]:
            sentences.append(f"Warning: no cell of {label} came to a finite loss")
        if method["failed"]:
            sentences.append(
                f"Warning: {method['failed']} trials of {label} failed; see log.txt, summary.json in their folders"
            )
    counts = {label: method["trials"] for label, method in summary["methods"].items()}
    # Where it was interrupted they differ for no fault of the protocol.
    if len(set(counts.values())) > 1 and summary["status"] != "interrupted":
        listed = ", ".join(f"{label} {count}" for label, count in counts.items())
        sentences.append(f"Warning: the numbers of trials differ, so the comparison is not fair: {listed}")
    return sentences


def map_of(method: Mapping[str, Any]) -> tuple[str | None, str, list[Any], list[Any], Losses]:
    """(row axis, column axis, rows, columns, losses by (row, column)): the two longest axes, the best over others."""
    names = list(method["axes"])
    by_length = sorted(names, key=lambda name: -len(method["axes"][name]))[:2]
    column, row = (by_length[0], None) if len(by_length) == 1 else _placed(by_length)
    rows = list(method["axes"][row]) if row else [None]
    columns = list(method["axes"][column])
    lowest: Losses = {}
    for *cell, loss in method["losses"]:
        values = dict(zip(names, cell, strict=True))
        place = (values[row] if row else None, values[column])
        if place[0] in rows and place[1] in columns:  # refinements lie between the cells
            known = lowest.get(place)
            lowest[place] = loss if known is None or (loss is not None and loss < known) else known
    return row, column, rows, columns, lowest


def _placed(names: Sequence[str]) -> tuple[str, str]:
    """(column, row): the step across, the damping down, whichever is longer."""
    step = next((name for name in ("alpha", "lr") if name in names), names[0])
    return step, next(name for name in names if name != step)


def maps(summary: Mapping[str, Any]) -> Iterator["RenderableType"]:
    """A heat map for each method with two axes; a row of figures for one axis of at most a dozen values."""
    for label, method in summary["methods"].items():
        if method["axes"] and method["best"] is not None:
            yield from _map(label, method)
            yield ""


def _map(label: str, method: Mapping[str, Any]) -> Iterator["RenderableType"]:
    from rich.table import Table
    from rich.text import Text

    row, column, rows, columns, losses = map_of(method)
    if row is None and len(columns) > 12:  # a fine grid of one parameter: its best neighbourhood
        place = best_of(losses)
        middle = columns.index(place[1]) if place else 0
        columns = columns[max(middle - 5, 0) : middle + 6]
    best = best_of(losses)
    title = f"{label}: training loss, {column} across" + (f", {row} down" if row else "")
    table = Table(box=None, padding=(0, 0), pad_edge=False)
    table.add_column(Text(row or "", style="dim"), justify="right")
    for value in columns:
        table.add_column(Text(f"{_short(value):>9}"), justify="right", min_width=10, no_wrap=True)
    lowest = losses[best] if best else None
    for value in rows:
        cells = [_cell(losses.get((value, c)), lowest, (value, c) == best) for c in columns]
        table.add_row("" if value is None else f"{_short(value)} ", *(Text(text, style=style) for text, style in cells))
    yield Text(title, style="bold")
    yield table


def _cell(loss: float | None, lowest: float | None, best: bool) -> tuple[str, str]:
    """Text and rich style of one cell."""
    if loss is None or lowest is None:
        return f"{_MISSING:>9} ", ""
    if not math.isfinite(loss):
        return f"{_DIVERGED:>9} ", "white on grey30"
    r, g, b = colour(loss, lowest)
    # Black on what the eye sees as bright: green most, blue least.
    ink = "black" if 0.3 * r + 0.6 * g + 0.1 * b > 110 else "white"
    return f"{number(loss, 3) + (_BEST if best else ''):>9} ", f"{ink} on rgb({r},{g},{b})" + (" bold" if best else "")


def colour(loss: float, lowest: float) -> tuple[int, int, int]:
    """Lightest at the best loss, darkest a thousand times above it."""
    ratio = math.log(max(loss, 1e-300) / max(lowest, 1e-300)) / math.log(_DYNAMIC_RANGE)
    position = (1 - min(max(ratio, 0.0), 1.0)) * (len(_COLOURS) - 1)
    i = min(int(position), len(_COLOURS) - 2)
    return tuple(round(a + (b - a) * (position - i)) for a, b in zip(_COLOURS[i], _COLOURS[i + 1], strict=True))  # type: ignore[return-value]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
