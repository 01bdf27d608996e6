"""What measures are taken from, and what they give: records of one claim; figures of both sides, paired."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Evidence:
    """Records of one claim, as far as its measures need them."""

    tuning: Mapping[str, Any] = field(default_factory=dict)  # "methods" of the sweep's summary.json
    published: Mapping[str, Any] = field(default_factory=dict)  # the same of the published options, by label
    epochs: Mapping[str, Mapping[int, Sequence[Mapping[str, float]]]] = field(default_factory=dict)  # label, seed
    trials: Sequence[Mapping[str, Any]] = ()  # rows of trials.csv, its figures as numbers
    similarity: Mapping[str, Any] = field(default_factory=dict)  # its summary.json
    spectrum: Sequence[Mapping[str, Any]] = ()  # rows of spectrum.csv
    cost_ratios: Mapping[str, Sequence[float]] = field(default_factory=dict)  # label -> ratio to the reference by round
    inverses: Mapping[str, Mapping[int, float]] = field(default_factory=dict)  # label -> seed -> error
    toy: Mapping[str, Sequence[float]] = field(default_factory=dict)  # label -> losses of both points


@dataclass(frozen=True)
class Figures:
    """Both sides of one part of a claim, paired.

    ``slack`` are factors by which the interval of their ratio is wider on each side, for what tuning leaves open;
    ``edges`` the sides of the grids of both at which their best points lie.
    """

    of: list[float]
    to: list[float]
    slack: tuple[float, float] = (1.0, 1.0)
    edges: tuple[Sequence[str], Sequence[str]] = ((), ())


def paired(of: Mapping[Any, float], to: Mapping[Any, float], slack: tuple[float, float] = (1.0, 1.0)) -> Figures:
    """What both sides have, in the order of its keys."""
    # A seed that one side lacks, because it failed there, has no ratio.
    common = sorted(of.keys() & to.keys())
    return Figures([of[key] for key in common], [to[key] for key in common], slack)


def looked_up(records: Mapping[str, Any], label: str) -> Any:
    """The record of that label; ValueError, one sentence, where there is none."""
    if label not in records:
        raise missing(label, records)
    return records[label]


def missing(label: str, known: Iterable[str]) -> ValueError:
    """For a label that the records do not have."""
    return ValueError(f"the claim names {label!r}, which the records do not have; they have {', '.join(sorted(known))}")
