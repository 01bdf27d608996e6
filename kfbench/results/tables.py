"""Tables from records: rich in a terminal, tabulate and JSON for pipes."""

import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kfbench.errors import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def number(value: float | None, digits: int, factor: float = 1.0) -> str:
    """With that many significant digits; empty where there is none."""
    return "" if value is None else f"{value * factor:.{digits}g}"


def bits(values: Mapping[str, float | None]) -> dict[str, str]:
    """The columns of a text, whose figures are there; none of images."""
    known = {f"{part} bits/char": f"{part}_bits_per_character" for part in ("train", "test")}
    return {title: number(values[key], 4) for title, key in known.items() if key in values}


def print_table(rows: Sequence[Mapping[str, Any]], format: str, record: Mapping[str, Any]) -> None:
    """To standard output: table, markdown or csv of the rows; json of the whole record."""
    rows = [{printable(str(key)): _shown(value) for key, value in row.items()} for row in rows]
    if format == "json":
        from kfbench.results.records import to_json

        print(to_json(record))
    elif format == "csv":
        if rows:
            writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    elif format == "markdown":
        from tabulate import tabulate

        # A "|" would end the cell; numbers have their digits already, which tabulate would read and write anew.
        cells = [{key: str(value).replace("|", "\\|") for key, value in row.items()} for row in rows]
        print(tabulate(cells, headers="keys", tablefmt="github", disable_numparse=True))
    else:
        _print_rows(rows)


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value


def _print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in rows[0] if rows else ():
        # Text, in the header as in the cells: "[x]" is no markup.
        numeric = all(_looks_numeric(row[column]) for row in rows)
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
    console().print(table)


def print_rich(parts: Iterable["RenderableType"]) -> None:
    """What rich can show, one after the other, to standard output."""
    screen = console()
    for part in parts:
        screen.print(part)


def console() -> "Console":
    """Standard output as rich writes to it; a pipe has no width, so nothing is cut there."""
    from rich.console import Console

    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=200)


def _looks_numeric(value: Any) -> bool:
    try:
        float(value or 0)
    except ValueError:
        return False
    return True
