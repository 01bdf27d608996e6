"""compare.html: tables, curves, configuration and environment in one page that needs no network."""

import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kfbench.compare.comparison import Comparison, MethodRuns, mean_curve
from kfbench.compare.tables import comparison_rows, difference_rows, target_sentence
from kfbench.results.records import write_atomically
from kfbench.results.styles import looks, title

_TEMPLATE = Path(__file__).with_name("page.html")
# How far colours go towards white on a dark page, and the black of SGD.
_LIGHTER = 0.35
_COMMIT_DIGITS = 10
# How many times the loss of an untrained network still has a place on the axis.
_HEADROOM = 10.0
_BLACK, _WHITE = "#000000", "#f0f0f0"
# Columns whose cells name their row.
_ROW_NAMES = ("method", "option")
_ENVIRONMENT = ("cpu", "gpu", "device", "threads", "python", "platform", "git_commit", "git_dirty")


def write_page(comparison: Comparison, summary: Mapping[str, Any], path: Path) -> None:
    """One self-contained HTML file."""
    # The name of a folder may be no text.
    write_atomically(path, page(comparison, summary).encode("utf-8", "backslashreplace"))


def page(comparison: Comparison, summary: Mapping[str, Any]) -> str:
    """Its text. Everything that comes from records is escaped."""
    ordered = [next(m for m in comparison.methods if m.label == label) for label in summary["methods"]]
    heading = title(comparison.problem, comparison.run)
    pairs = difference_rows(summary)
    notes = [*summary["notes"], *(f"left out: {sentence}" for sentence in summary["damaged"])]
    parts = {
        "title": html.escape(heading),
        "lead": html.escape(_lead(summary)),
        "table": _table(comparison_rows(summary), "Methods by rank"),
        "target": html.escape(target_sentence(summary).capitalize()),
        "differences": _table(pairs, "Differences paired by seed") if pairs else "<p>There is one method only.</p>",
        "notes": "".join(f"<li>{html.escape(note)}</li>" for note in notes),
        "methods": _table(_option_rows(ordered), "What differs between the methods"),
        "common": _facts({**_common(ordered), **comparison.problem, **comparison.run}),
        "environment": _environment(ordered),
        "data": _script_json(
            {"methods": _series(ordered), "target": _finite(summary["target"]["loss"]), "top": _top(ordered)}
        ),
    }
    # By a function, since the backslashes of a replacement that is text would be read.
    return re.sub(r"\{\{(\w+)\}\}", lambda hole: parts[hole[1]], _TEMPLATE.read_text(encoding="utf-8"))


def _lead(summary: Mapping[str, Any]) -> str:
    seeds = sorted({len(method["seeds"]) for method in summary["methods"].values()})
    counts = f"{seeds[0]} seed{'s' * (seeds[0] > 1)}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    return f"{', '.join(summary['methods'])}; {counts} each"


def _table(rows: Sequence[Mapping[str, Any]], caption: str) -> str:
    """Scrolls sideways by itself where the page is narrow."""
    head = "".join(_head(column) for column in rows[0])
    body = "".join(f"<tr>{''.join(_cell(column, value) for column, value in row.items())}</tr>" for row in rows)
    label = html.escape(caption)
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0"><table><caption>{label}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _head(column: str) -> str:
    return f'<th scope="col"{" class=name" if column in _ROW_NAMES else ""}>{html.escape(column)}</th>'


def _cell(column: str, value: Any) -> str:
    text = html.escape(str(value))
    return f'<th scope="row">{text}</th>' if column in _ROW_NAMES else f"<td>{text}</td>"


def _option_rows(methods: Sequence[MethodRuns]) -> list[dict[str, Any]]:
    """One row an option in which methods differ, one column a method."""
    common = _common(methods)
    rows = [{"option": "optimizer", **{m.label: m.opt for m in methods}}]
    for key in dict.fromkeys(key for m in methods for key in m.options):
        if key not in common:
            rows.append({"option": key, **{m.label: _shown(m.options.get(key)) for m in methods}})
    return rows


def _common(methods: Sequence[MethodRuns]) -> dict[str, Any]:
    """The options that every method has, with one value."""
    first = methods[0].options
    return {k: v for k, v in first.items() if all(k in m.options and m.options[k] == v for m in methods)}


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _facts(values: Mapping[str, Any]) -> str:
    cells = (f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(_shown(v))}</dd></div>" for k, v in values.items())
    return f"<dl>{''.join(cells)}</dl>"


def _environment(methods: Sequence[MethodRuns]) -> str:
    """Once for every different one, with the methods that ran there."""
    by_facts: dict[str, list[str]] = {}
    for method in methods:
        packages = method.environment.get("packages") or {}
        facts = {key: method.environment.get(key) for key in _ENVIRONMENT}
        facts["git_commit"] = facts["git_commit"] and str(facts["git_commit"])[:_COMMIT_DIGITS]
        known = {key: value for key, value in {**facts, **packages}.items() if value is not None}
        by_facts.setdefault(_facts(known), []).append(method.label)
    if len(by_facts) == 1:  # of all methods: none need be named
        return next(iter(by_facts))
    return "".join(f"<h3>{html.escape(', '.join(labels))}</h3>{facts}" for facts, labels in by_facts.items())


def _series(methods: Sequence[MethodRuns]) -> list[dict[str, Any]]:
    """What is drawn: a line through means, a band, and a point for each seed and epoch with a loss above 0."""
    drawn = []
    for (label, look), method in zip(looks([m.label for m in methods]).items(), methods, strict=True):
        mean = [[row[key] for key in ("update", "seconds", "mean", "low", "high")] for row in mean_curve(method)]
        points = [
            [record.seed, row["update"], row["seconds_updates"] or 0.0, row["train_loss"]]
            for record in method.seeds
            for row in record.epochs
        ]
        # Both, as the page follows the reader's choice of a light or a dark screen.
        colours = {"light": look.colour, "dark": _on_dark(look.colour), "dashes": " ".join(map(str, look.dashes))}
        drawn.append({"label": label, **colours, "mean": _positive(mean), "points": _positive(points)})
    return drawn


def _top(methods: Sequence[MethodRuns]) -> float | None:
    """Where the axis ends at the latest: a run that exploded would press all others flat."""
    first = [row["train_loss"] for m in methods for r in m.seeds for row in r.epochs[:1] if row["train_loss"]]
    return _HEADROOM * max(first) if first and _finite(max(first)) else None


def _positive(rows: Iterable[list[Any]]) -> list[list[Any]]:
    """Rows that a logarithmic axis can show."""
    return [row for row in rows if all(_finite(value) is not None for value in row) and min(row[2:]) >= 0 < row[-1]]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _on_dark(colour: str) -> str:
    if colour == _BLACK:
        return _WHITE
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(c + (255 - c) * _LIGHTER):02x}" for c in channels)


def _script_json(content: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
