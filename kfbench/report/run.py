"""`report`: writes the site of all verdicts, and their quotes into documents."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from kfbench.errors import UsageError
from kfbench.report.drawn import RATIO_COLUMNS, ratio_table
from kfbench.report.judged import RAW, Results
from kfbench.report.quoting import quoted
from kfbench.report.site import GENERATOR, page
from kfbench.results.folders import refuse_file
from kfbench.results.locking import lock
from kfbench.results.records import write_atomically, write_csv

_INDEX, _DATA, _RATIOS = "index.html", "data", "ratios.csv"
# All that a site holds, whole or written when it was killed.
_OURS = re.compile(rf"({_INDEX}|{_DATA}/({_RATIOS}|[^/]+/[^/]+/{RAW.pattern}))(\.tmp)?")


def write_site(results: Results, out: Path) -> Path:
    """Write ``out``/index.html and, beside it, copies of the raw files; returns the page.

    What an earlier site there holds and this one does not is removed. UsageError for a folder of anything else.
    """
    check_out(out, results.folder)
    text = page(results)
    out.mkdir(parents=True, exist_ok=True)
    held = lock(out)
    try:
        written = _copy(results, out / _DATA)
        # Last: what it links to is there.
        write_atomically(out / _INDEX, text.encode("utf-8", "backslashreplace"))
        _sweep(out / _DATA, written)
    finally:
        os.close(held)
    return out / _INDEX


def check_out(out: Path, folder: Path) -> None:
    """UsageError where the site would lie among the verdicts, or replace what is no site of ours."""
    refuse_file(out, "--out")
    inner, outer = out.resolve(), folder.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise UsageError(f"--out {out} and {folder} lie in each other; give another --out")
    names = sorted(out.rglob("*")) if out.is_dir() else []
    foreign = next((p for p in names if p.is_symlink() or (p.is_file() and not _is_ours(p, out))), None)
    if foreign is not None:
        raise UsageError(f"--out {out} holds something else than a site of report, {foreign.name}; give another --out")


def _is_ours(path: Path, out: Path) -> bool:
    if not _OURS.fullmatch(path.relative_to(out).as_posix()):
        return False
    return path != out / _INDEX or GENERATOR.encode() in path.read_bytes()


def _copy(results: Results, data: Path) -> set[Path]:
    data.mkdir(exist_ok=True)
    write_csv(data / _RATIOS, RATIO_COLUMNS, ratio_table(results.claims))
    written = {data / _RATIOS}
    for claim in results.claims:
        target = data / claim.place
        target.mkdir(parents=True, exist_ok=True)
        for path in claim.files:
            write_atomically(target / path.name, path.read_bytes())
            written.add(target / path.name)
    return written


def _sweep(data: Path, written: set[Path]) -> None:
    """Remove what is left of an earlier site; ``check_out`` has seen that there is nothing else."""
    for path in sorted(data.rglob("*"), reverse=True):  # what a folder holds, before the folder
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in written:
            path.unlink()


def write_quotes(results: Results, paths: Sequence[Path], check: bool) -> list[Path]:
    """Bring the quotes of these documents up to date; returns those that were not. ``check`` only looks.

    UsageError before anything is written: also where some verdict cannot be read, which would drop out of tables.
    """
    if results.unread:
        raise UsageError(f"nothing is quoted while a verdict cannot be read: {results.unread[0]}")
    texts = {path: quoted(path, results) for path in dict.fromkeys(paths)}
    stale = [path for path, (old, new) in texts.items() if old != new]
    for path in () if check else stale:
        # Behind a link the document is replaced, not the link.
        write_atomically(path.resolve(), texts[path][1].encode())
    return stale
