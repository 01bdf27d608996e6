"""Quotes of verdicts in a document: between its markers stands what the records say, by one command."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from kfbench.claims.tables import part_rows, verdict_rows
from kfbench.errors import UsageError, shown, unknown
from kfbench.report.judged import Judged, Results

_BEGIN = re.compile(r"<!-- kfbench report: ([^\n]*?) -->")
_END = "<!-- end -->"
# What may be quoted, as the marker says it.
_FORMS = ("verdicts [SCALE]", "counts [SCALE]", "ratios ID SCALE")


def quoted(path: Path, results: Results) -> tuple[str, str]:
    """The text of a document as it is and as the records have it.

    UsageError where it cannot be read, has no marker, one without its end, or one that asks for what there is not.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise UsageError(f"--quote {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--quote {path} is no text: {error.reason}") from error
    head, *rest = _BEGIN.split(text)
    if not rest:
        raise UsageError(f"--quote {path} has no marker <!-- kfbench report: {_FORMS[0]} --> to quote behind")
    pieces = [head]
    for asked, behind in zip(rest[::2], rest[1::2], strict=True):
        _, end, tail = behind.partition(_END)
        if not end:
            raise UsageError(f"{path}: the marker {shown(asked)} has no {_END} behind it")
        pieces.append(f"<!-- kfbench report: {asked} -->\n{_quote(asked, path, results)}\n{_END}{tail}")
    return text, "".join(pieces)


def _quote(asked: str, path: Path, results: Results) -> str:
    what, *words = asked.split() or [""]
    if what not in ("verdicts", "counts", "ratios") or len(words) not in ((2,) if what == "ratios" else (0, 1)):
        raise unknown(f"quote in {path}", asked, _FORMS)
    scale = words[-1:]
    claims = [claim for claim in results.claims if not scale or claim.record["scale"] == scale[0]]
    if what == "ratios":
        claims = [claim for claim in claims if claim.record["id"] == words[0]]
    if not claims:
        raise UsageError(f"{path}: there is no verdict to quote for {shown(asked)} in {results.folder}")
    if what == "counts":
        return _counts(claims)
    return _ratios(claims[0]) if what == "ratios" else _verdicts(claims, path, results.folder)


def _verdicts(claims: Sequence[Judged], path: Path, folder: Path) -> str:
    """One row a claim, with a link to its folder from where the document lies."""
    above = Path(os.path.relpath(folder.resolve(), path.resolve().parent))
    rows = []
    for claim in claims:
        (row,) = verdict_rows([claim.record])
        link = f"[{_cell(row['claim'])}]({quote((above / claim.place).as_posix())})"
        rows.append((link, row["says"], claim.verdict, row["ratios"]))
    heads = ("claim", "says", "verdict", "ratios that decide: measured (95 % interval), claimed")
    return _table(heads, rows)


def _ratios(claim: Judged) -> str:
    rows = part_rows(claim.record["parts"])
    return _table(tuple(rows[0]), [tuple(row.values()) for row in rows]) if rows else "There are no ratios."


def _counts(claims: Sequence[Judged]) -> str:
    counts = Counter(claim.kind for claim in claims).most_common()
    scales = " or ".join(dict.fromkeys(claim.record["scale"] for claim in claims))
    return f"Of {len(claims)} claims at scale {scales}: {', '.join(f'{count} {kind}' for kind, count in counts)}."


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(map(_cell, line))} |" for line in (heads, *rows))
    return "\n".join((head, f"|{'---|' * len(heads)}", *body))


def _cell(value: object) -> str:
    """Of one line, without what would end the cell or be taken for a marker."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<!--", "&lt;!--")
