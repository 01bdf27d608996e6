"""`kfbench report`: a site of all verdicts, and their quotes in documents."""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from kfbench.cli.command import Debug
from kfbench.errors import UsageError, printable

# Of a claim whose records are damaged, or whose trials failed.
_FAILED = 3


def report(
    results: Annotated[Path, typer.Argument(metavar="DIR", help="folder of verdicts, such as docs/results")],
    out: Annotated[Optional[Path], typer.Option("--out", metavar="DIR", help="write the site here")] = None,
    quote: Annotated[
        Optional[list[Path]],
        typer.Option("--quote", metavar="FILE", help="write verdicts between the markers of a document; repeatable"),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="write nothing; exit 1 where a quote is not current")] = False,
    debug: Debug = False,
) -> None:
    """Write a site of all verdicts on published claims, one page that needs no network, and quote them in documents.

    kfbench report docs/results --out site

    kfbench report docs/results --quote docs/results/README.md --check
    """
    from kfbench.report.judged import gather
    from kfbench.report.run import write_quotes, write_site

    if out is None and not quote:
        raise UsageError("report writes nothing: give --out DIR for a site, --quote FILE for a document, or both")
    if check and (out is not None or not quote):
        raise UsageError("--check looks at the quotes of documents: give it with --quote FILE, and without --out")
    found = gather(results)
    for sentence in found.damaged:
        print(f"Warning: {printable(sentence)}", file=sys.stderr)
    if out is not None:
        print(f"site: {write_site(found, out)}", file=sys.stderr)
    stale = write_quotes(found, quote or [], check) if quote else []
    names = ", ".join(printable(str(path)) for path in stale)
    if stale and check:
        again = " ".join(f"--quote {printable(str(path))}" for path in stale)
        print(f"not what the records say: {names}; run kfbench report {results} {again}", file=sys.stderr)
        raise typer.Exit(1)
    if stale:
        print(f"quoted anew: {names}", file=sys.stderr)
    failed = any(claim.record["status"] == "failed" for claim in found.claims)
    raise typer.Exit(_FAILED if found.damaged or failed else 0)
