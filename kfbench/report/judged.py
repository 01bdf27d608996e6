"""Every verdict under a folder, with what lies beside it: trials, environment, pictures. What is damaged is named."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfbench.claims.file import RULES
from kfbench.claims.scales import SCALES
from kfbench.claims.shelf import read_verdict
from kfbench.claims.verdicts import OPEN, REFUTED, REPRODUCED, TREND, WITHHELD
from kfbench.errors import UsageError
from kfbench.results.reading import DamagedError, record_or_empty
from kfbench.results.schemas import Environment, Verdict
from kfbench.sweep.ledger import read_trials
from kfbench.sweep.losses import Row

# What may be copied of a claim's folder.
RAW = re.compile(r"[\w.-]+\.(json|yaml|csv|png)")
# Words with a badge of their own; by the first one, since reasons and directions follow.
_BADGES = {words.split()[0] for words in (REPRODUCED, REFUTED, OPEN, WITHHELD, TREND)}
_OTHER = "other"


@dataclass(frozen=True)
class Judged:
    """One claim at one scale: verdict.json with its defaults, environment.json, the rows of trials.csv, raw files."""

    record: Mapping[str, Any]
    environment: Mapping[str, Any]
    trials: list[Row]
    files: list[Path]
    damaged: list[str]

    @property
    def key(self) -> str:
        """Of the claim at its scale; its anchor on the page."""
        return f"{self.record['id']}-{self.record['scale']}"

    @property
    def place(self) -> str:
        """Its folder below the others."""
        return f"{self.record['scale']}/{self.record['id']}"

    @property
    def paper(self) -> str:
        """Of the source what stands before year and figure."""
        return re.split(r"[(,]", self.record["source"])[0].strip() or "no source"

    @property
    def verdict(self) -> str:
        """As one may quote it."""
        return self.quotable(self.record["verdict"] or "no verdict")

    def quotable(self, words: str) -> str:
        """A verdict or outcome, not as it stands where today's rules would judge anew."""
        return words if self.record["rules"] == RULES else f"stale ({words})"

    @property
    def kind(self) -> str:
        """The verdict without the reasons in brackets; of a trend they are its direction."""
        return self.verdict if self.verdict.startswith(TREND) else self.verdict.partition(" (")[0]


@dataclass(frozen=True)
class Results:
    """All verdicts below a folder, small scales first, and one sentence for each that cannot be read."""

    folder: Path
    claims: list[Judged]
    unread: list[str]

    @property
    def damaged(self) -> list[str]:
        """One sentence for every record that cannot be read or believed."""
        return [*self.unread, *(sentence for claim in self.claims for sentence in claim.damaged)]


def badge(words: str) -> str:
    """The classes of a verdict's or outcome's badge: by the first word, for a trend with its direction."""
    first = re.split(r"\W", words.strip(), maxsplit=1)[0]
    if first not in _BADGES:
        return _OTHER
    if first != TREND:
        return first
    against = re.search(r"\b(against|not)\b", words)
    return f"{TREND} against" if against else f"{TREND} for" if "as claimed" in words else TREND


def gather(folder: Path) -> Results:
    """Read SCALE/ID/verdict.json of a folder such as docs/results; UsageError where there are none."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; report takes one of verdicts, such as docs/results")
    paths = sorted(folder.glob("*/*/verdict.json"))
    if not paths:
        raise UsageError(f"{folder} holds no verdicts (SCALE/ID/verdict.json), as compare --keep leaves them")
    claims, unread = list[Judged](), list[str]()
    for path in paths:
        try:
            claims.append(_read(path.parent))
        except DamagedError as error:
            unread.append(_below(folder, error))
    return Results(folder, sorted(claims, key=_order), unread)


def _order(claim: Judged) -> tuple[int, str, str]:
    scale = claim.record["scale"]
    return SCALES.index(scale) if scale in SCALES else len(SCALES), scale, claim.record["id"]


def _read(folder: Path) -> Judged:
    record = _whole(read_verdict(folder))
    if (record["scale"], record["id"]) != (folder.parent.name, folder.name):
        raise DamagedError(f"{folder / 'verdict.json'} is of {record['id']} at scale {record['scale']}")
    damaged, environment, trials = list[str](), dict[str, Any](), list[Row]()
    try:
        environment = record_or_empty(folder / "environment.json", Environment)
    except DamagedError as error:
        damaged.append(_below(folder.parent.parent, error))
    try:
        trials = read_trials(folder / "trials.csv")
    except DamagedError as error:
        damaged.append(_below(folder.parent.parent, error))
    files = sorted(path for path in folder.iterdir() if path.is_file() and RAW.fullmatch(path.name))
    return Judged(record, environment, trials, files, damaged)


def _whole(record: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of keys that were not written yet; a key that may be missing is so, not null."""
    whole = Verdict.model_validate(record).model_dump()
    for part in whole["parts"]:
        for side in ("below", "above"):
            if part[side] is None:
                del part[side]
    return {key: value for key, value in whole.items() if value is not None or key == "verdict"}


def _below(folder: Path, error: DamagedError) -> str:
    """Without where the folder lies: what is published says nothing of this machine."""
    return str(error).replace(f"{folder}/", "")
