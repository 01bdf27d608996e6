"""Web pages that need no network: a template filled, tables, facts, JSON in a script; one style for all of them."""

import html
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

_STYLE, _HELPERS = Path(__file__).with_name("page.css"), Path(__file__).with_name("page.js")
# How far colours go towards white on a dark page, and the black of SGD.
_LIGHTER = 0.35
_BLACK, _WHITE = "#000000", "#f0f0f0"


class Markup(str):
    """Text that is HTML already: whatever came from records is escaped in it."""


def fill(template: Path, parts: Mapping[str, str]) -> str:
    """The page: each ``{{name}}`` of the template replaced by its part; all pages share ``style`` and ``helpers``."""
    shared = {"style": _STYLE.read_text(encoding="utf-8"), "helpers": _HELPERS.read_text(encoding="utf-8")}
    filled = {**shared, **parts}
    # By a function, since the backslashes of a replacement that is text would be read.
    return re.sub(r"\{\{(\w+)\}\}", lambda hole: filled[hole[1]], template.read_text(encoding="utf-8"))


def escaped(value: Any) -> str:
    """Any value as it may stand in a page."""
    return value if isinstance(value, Markup) else html.escape(str(value))


def table(
    rows: Sequence[Mapping[str, Any]], caption: str, names: Collection[str] = (), words: Collection[str] = ()
) -> str:
    """Scrolls sideways by itself where the page is narrow; nothing where there are no rows.

    Cells of the columns ``names`` are headers of their row; they, and those of ``words``, stand on the left.
    """
    if not rows:
        return ""
    left = {*names, *words}
    head = "".join(
        f'<th scope="col"{" class=name" if column in left else ""}>{html.escape(column)}</th>' for column in rows[0]
    )
    body = "".join(f"<tr>{''.join(_cell(k, v, names, words) for k, v in row.items())}</tr>" for row in rows)
    label = html.escape(caption)
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0"><table><caption>{label}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(column: str, value: Any, names: Collection[str], words: Collection[str]) -> str:
    if column in names:
        return f'<th scope="row">{escaped(value)}</th>'
    return f"<td{' class=name' if column in words else ''}>{escaped(value)}</td>"


def facts(values: Mapping[str, Any]) -> str:
    """A list of what is so: name and value."""
    cells = (f"<div><dt>{html.escape(k)}</dt><dd>{escaped(brief(v))}</dd></div>" for k, v in values.items())
    return f"<dl>{''.join(cells)}</dl>"


def brief(value: Any) -> Any:
    """A value of a configuration; nothing where there is none."""
    return "" if value is None else f"{value:g}" if isinstance(value, float) else value


def finite(value: float | None) -> float | None:
    """A number that JSON knows, else nothing."""
    return value if value is not None and math.isfinite(value) else None


def colours(colour: str) -> dict[str, str]:
    """Of one colour that on a light page and that on a dark one, as the page follows the reader's choice."""
    if colour == _BLACK:
        return {"light": colour, "dark": _WHITE}
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return {"light": colour, "dark": "#" + "".join(f"{round(c + (255 - c) * _LIGHTER):02x}" for c in channels)}


def script_json(content: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
