"""One claim on the page: verdict, ratios, what to know beside them, tuned points, where it ran, how to run it again."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from kfbench.claims.tables import caveats, figure_rows, part_rows
from kfbench.report.judged import Judged, badge
from kfbench.results.web_page import Markup, escaped, table

_COMMIT_DIGITS = 10
_NAMES = ("measure", "ratio of", "to", "method")
_WORDS = ("claimed", "outcome", "best", "edges")


def card(claim: Judged) -> str:
    """The whole of it; everything from records is escaped."""
    record, key = claim.record, escaped(claim.key)
    heading = f'<a href="#{key}">{escaped(record["id"])}</a> <span class="quiet">{escaped(record["scale"])}</span>'
    notes = "".join(f"<li>{escaped(note)}</li>" for note in (*caveats(record), *claim.damaged))
    return (
        f'<article class="card" id="{key}" {filtered(claim)}>'
        f"<h3>{heading} {marked(claim.verdict)}</h3>"
        f'<p>{escaped(record["says"])}</p><p class="quiet">{escaped(record["source"])}</p>'
        f'<div class="chart"><svg class="ratios" role="img" data-key="{key}"></svg></div>'
        f"{table(_parts(claim), f'Ratios of {claim.key}', _NAMES, _WORDS)}"
        f'<ul class="quiet">{notes}</ul>'
        f"{_tuned(claim)}{_pictures(claim)}"
        f'<p class="quiet">{escaped(_where(claim.environment))}</p>'
        f"<pre><code>{escaped(command(record))}</code></pre>"
        f'<p class="quiet">Raw: {_links(claim)}</p></article>'
    )


def marked(words: str) -> Markup:
    """A verdict or outcome with its badge."""
    return Markup(f'<span class="badge {badge(words)}">{escaped(words)}</span>')


def filtered(claim: Judged) -> str:
    """The attributes that filters look at."""
    values = {"key": claim.key, "paper": claim.paper, "verdict": claim.kind, "scale": claim.record["scale"]}
    return " ".join(f'data-{name}="{escaped(value)}"' for name, value in values.items())


def command(record: Mapping[str, Any]) -> str:
    """What runs the claim again."""
    return f"kfbench compare configs/{record['id']}.yaml --scale {record['scale']}"


def _parts(claim: Judged) -> list[dict[str, Any]]:
    """What decides has a badge, what stands beside the claim has none."""
    rows, parts = part_rows(claim.record["parts"]), claim.record["parts"]
    outcomes = [claim.quotable(row["outcome"]) for row in rows]
    return [
        {**row, "outcome": marked(outcome) if part["decides"] else outcome}
        for row, part, outcome in zip(rows, parts, outcomes, strict=True)
    ]


def _tuned(claim: Judged) -> str:
    rows = figure_rows(claim.record)
    methods = [*claim.record["methods"].values(), *claim.record["published"].values()]
    for row, method in zip(rows, methods, strict=True):
        row["edges"] = ", ".join(method["best_edges"])
    content = table(rows, f"Tuned points of {claim.key}", _NAMES, _WORDS)
    return f"<details><summary>Tuned points</summary>{content}</details>" if rows else ""


def _pictures(claim: Judged) -> str:
    pictures = [path.name for path in claim.files if path.suffix == ".png"]
    shown = "".join(
        f'<a href="{_address(claim, name)}"><img loading="lazy" src="{_address(claim, name)}" '
        f'alt="{escaped(f"{name} of {claim.key}, the figures of the tables above")}"></a>'
        for name in pictures
    )
    return f"<details><summary>{escaped(', '.join(pictures))}</summary>{shown}</details>" if pictures else ""


def _where(environment: Mapping[str, Any]) -> str:
    """Commit and machine, as far as they are known."""
    commit, dirty = environment.get("git_commit"), environment.get("git_dirty")
    state = {True: " with changes that are not committed", False: "", None: ""}[dirty]
    machine = environment.get("gpu") or environment.get("cpu")
    threads = environment.get("threads")
    on = ", ".join(filter(None, (machine, f"{threads} thread{'s' * (threads != 1)}" if threads else "")))
    where = f"on {on}" if on else "on a machine that is not noted"
    return f"Judged at commit {commit[:_COMMIT_DIGITS]}{state} {where}" if commit else f"Commit not noted; {where}"


def _links(claim: Judged) -> str:
    return ", ".join(f'<a href="{_address(claim, path.name)}">{escaped(path.name)}</a>' for path in claim.files)


def _address(claim: Judged, name: str) -> str:
    return f"data/{quote(claim.place)}/{quote(name)}"
