"""The text of the site: all claims on one page that needs no network, with filters, ratios and trials."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kfbench.report.cards import card, filtered, marked
from kfbench.report.drawn import ratios, trials
from kfbench.report.judged import Judged, Results
from kfbench.results.web_page import escaped, fill, script_json

_TEMPLATE = Path(__file__).with_name("site.html")
# By which the page is known again: whatever is not ours is not replaced.
GENERATOR = '<meta name="generator" content="kfbench report">'


def page(results: Results) -> str:
    """One self-contained HTML page. Everything that comes from records is escaped."""
    claims = results.claims
    parts = {
        "generator": GENERATOR,
        "lead": escaped(_lead(claims)),
        "counts": _counts(claims),
        "unread": "".join(f"<li>{escaped(sentence)}</li>" for sentence in results.damaged),
        "filters": _filters(claims),
        "index": "".join(map(_row, claims)),
        "tuned": "".join(f"<option>{escaped(claim.key)}</option>" for claim in claims if claim.trials),
        "cards": "".join(map(card, claims)),
        "data": script_json({"claims": [_drawn(claim) for claim in claims]}),
    }
    return fill(_TEMPLATE, parts)


def _lead(claims: Sequence[Judged]) -> str:
    ids, papers = {claim.record["id"] for claim in claims}, {claim.paper for claim in claims}
    return f"{_many(len(claims), 'verdict')} on {_many(len(ids), 'claim')} of {_many(len(papers), 'source')}."


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _counts(claims: Sequence[Judged]) -> str:
    counts = Counter(claim.kind for claim in claims)
    return "".join(f"<li>{marked(kind)} {count}</li>" for kind, count in counts.most_common())


def _filters(claims: Sequence[Judged]) -> str:
    """One choice each, over what there is."""
    values = {
        "paper": [claim.paper for claim in claims],
        "verdict": [claim.kind for claim in claims],
        "scale": [claim.record["scale"] for claim in claims],
    }
    return "".join(_select(name, list(dict.fromkeys(found))) for name, found in values.items())


def _select(name: str, values: Sequence[str]) -> str:
    options = "".join(f"<option>{escaped(value)}</option>" for value in values)
    return f'<label>{name} <select data-filter="{name}"><option value="">all</option>{options}</select></label>'


def _row(claim: Judged) -> str:
    record = claim.record
    return (
        f'<tr {filtered(claim)}><th scope="row"><a href="#{escaped(claim.key)}">{escaped(record["id"])}</a></th>'
        f'<td class="name">{escaped(record["scale"])}</td><td class="name verdict">{marked(claim.verdict)}</td>'
        f'<td class="name says">{escaped(record["says"])}</td></tr>'
    )


def _drawn(claim: Judged) -> dict[str, Any]:
    tuned = {"trials": trials(claim)} if claim.trials else {}
    return {"key": claim.key, "id": claim.record["id"], "ratios": ratios(claim), **tuned}
