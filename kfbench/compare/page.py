"""compare.html: tables, curves, configuration and environment in one page that needs no network."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kfbench.compare.comparison import Comparison, MethodRuns, mean_curve
from kfbench.compare.tables import comparison_rows, difference_rows, target_rows, target_sentence
from kfbench.results.records import write_atomically
from kfbench.results.styles import looks, title
from kfbench.results.web_page import brief, colours, facts, fill, finite, script_json, table

_TEMPLATE = Path(__file__).with_name("page.html")
_COMMIT_DIGITS = 10
# How many times the loss of an untrained network still has a place on the axis.
_HEADROOM = 10.0
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
    pairs = table(difference_rows(summary), "Differences paired by seed", _ROW_NAMES)
    notes = [*summary["notes"], *(f"left out: {sentence}" for sentence in summary["damaged"])]
    parts = {
        "title": html.escape(heading),
        "lead": html.escape(_lead(summary)),
        "table": table(comparison_rows(summary), "Methods by rank", _ROW_NAMES),
        "target": html.escape(target_sentence(summary).capitalize()),
        "to_target": table(target_rows(summary), "What each method needs to the target", _ROW_NAMES),
        "differences": pairs or "<p>There is one method only.</p>",
        "notes": "".join(f"<li>{html.escape(note)}</li>" for note in notes),
        "methods": table(_option_rows(ordered), "What differs between the methods", _ROW_NAMES),
        "common": facts({**_common(ordered), **comparison.problem, **comparison.run}),
        "environment": _environment(ordered),
        "data": script_json(
            {"methods": _series(ordered), "target": finite(summary["target"]["loss"]), "top": _top(ordered)}
        ),
    }
    return fill(_TEMPLATE, parts)


def _lead(summary: Mapping[str, Any]) -> str:
    seeds = sorted({len(method["seeds"]) for method in summary["methods"].values()})
    counts = f"{seeds[0]} seed{'s' * (seeds[0] > 1)}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    return f"{', '.join(summary['methods'])}; {counts} each"


def _option_rows(methods: Sequence[MethodRuns]) -> list[dict[str, Any]]:
    """One row an option in which methods differ, one column a method."""
    common = _common(methods)
    rows = [{"option": "optimizer", **{m.label: m.opt for m in methods}}]
    for key in dict.fromkeys(key for m in methods for key in m.options):
        if key not in common:
            rows.append({"option": key, **{m.label: brief(m.options.get(key)) for m in methods}})
    return rows


def _common(methods: Sequence[MethodRuns]) -> dict[str, Any]:
    """The options that every method has, with one value."""
    first = methods[0].options
    return {k: v for k, v in first.items() if all(k in m.options and m.options[k] == v for m in methods)}


def _environment(methods: Sequence[MethodRuns]) -> str:
    """Once for every different one, with the methods that ran there."""
    by_facts: dict[str, list[str]] = {}
    for method in methods:
        packages = method.environment.get("packages") or {}
        found = {key: method.environment.get(key) for key in _ENVIRONMENT}
        found["git_commit"] = found["git_commit"] and str(found["git_commit"])[:_COMMIT_DIGITS]
        known = {key: value for key, value in {**found, **packages}.items() if value is not None}
        by_facts.setdefault(facts(known), []).append(method.label)
    if len(by_facts) == 1:  # of all methods: none need be named
        return next(iter(by_facts))
    return "".join(f"<h3>{html.escape(', '.join(labels))}</h3>{listed}" for listed, labels in by_facts.items())


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
        look_of = {**colours(look.colour), "dashes": " ".join(map(str, look.dashes))}
        drawn.append({"label": label, **look_of, "mean": _positive(mean), "points": _positive(points)})
    return drawn


def _top(methods: Sequence[MethodRuns]) -> float | None:
    """Where the axis ends at the latest: a run that exploded would press all others flat."""
    first = [row["train_loss"] for m in methods for r in m.seeds for row in r.epochs[:1] if row["train_loss"]]
    return _HEADROOM * max(first) if first and finite(max(first)) else None


def _positive(rows: Iterable[list[Any]]) -> list[list[Any]]:
    """Rows that a logarithmic axis can show."""
    return [row for row in rows if all(finite(value) is not None for value in row) and min(row[2:]) >= 0 < row[-1]]
