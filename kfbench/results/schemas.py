"""What every kind of JSON record must hold to be believed: the keys that are read back, strictly typed."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# Never below 0, and finite unless said otherwise: a figure that is missing is none.
_Amount = Field(None, ge=0)
_ANY = Field(allow_inf_nan=True)
_MAYBE = Field(None, allow_inf_nan=True)


class Record(BaseModel):
    """Of a JSON file: the keys that somebody uses, strictly typed; others may stand beside them."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, defer_build=True)


class Versioned(Record):
    """What says by which rules it was written."""

    schema_version: Literal[1] = 1


class SeedSummary(Versioned):
    """summary.json of one seed: what is averaged, and what tells whose it is."""

    method: str | None = None
    seed: int = Field(ge=0)
    status: Literal["done", "diverged", "failed", "interrupted"]
    reason: str | None = None
    final_train_loss: float | None = _MAYBE
    best_train_loss: float | None = None
    test_accuracy: float | None = Field(None, ge=0, le=1)
    updates: int | None = _Amount
    seconds_updates: float | None = _Amount
    seconds_warmup: float | None = _Amount
    seconds_elsewhere: float | None = _Amount
    seconds_per_update: float | None = _Amount
    peak_memory_bytes: float | None = _Amount
    state_memory_bytes: float | None = _Amount
    target_loss: float | None = None
    train_bits_per_character: float | None = _MAYBE
    test_bits_per_character: float | None = _MAYBE


class TrialNote(Record):
    """trial.json: what a trial of a sweep is, said before it runs."""

    round: str
    sampler: str
    point: dict[str, Any]
    seed: int


class Environment(Record):
    """environment.json: where it ran."""

    cpu: str | None = None
    cpu_instructions: str | None = None
    cpu_count: int | None = None
    gpu: str | None = None
    device: str | None = None
    threads: int | None = None
    python: str | None = None
    platform: str | None = None
    packages: dict[str, str | None] | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None


class FinalRound(Record):
    """The fresh seeds of a method's best point."""

    mean: float = _ANY
    std: float | None = None
    seeds: list[int]
    losses: list[Annotated[float, _ANY]] = Field(default_factory=list)
    run_dirs: list[str]
    test_accuracy: float | None = None


class Robustness(Record):
    """How many cells of how many are nearly as good as the best."""

    within: int
    of: int


class Tuned(Record):
    """One method of a sweep, as its summary and verdicts tell of it."""

    opt: str
    axes: dict[str, list[float | int | str | bool | None]]
    trials: int = Field(ge=0)
    diverged: int = Field(ge=0)
    failed: int = Field(ge=0)
    seconds_tuning: float = Field(ge=0)
    best: dict[str, Any] | None
    tuned_loss: float | None = _MAYBE
    final: FinalRound | None
    fragile: int
    at_edges: list[str]
    best_edges: list[str] = Field(default_factory=list)
    robustness: Robustness | None


class SweepSummary(Versioned):
    """summary.json of `sweep`."""

    status: str
    methods: dict[str, Tuned]


class Timed(Record):
    """One method of one `wallclock` table."""

    seconds_per_update: float = Field(gt=0)
    seconds_per_update_low: float = _ANY
    seconds_per_update_high: float = _ANY
    ratio: float = Field(gt=0)
    ratio_low: float = _ANY
    ratio_high: float = _ANY
    rounds: int = Field(ge=1)
    composed: bool = False
    T: int | None = Field(None, ge=1)
    S: int | None = Field(None, ge=1)


class Cell(Record):
    """One `wallclock` table: all methods at one width and batch size."""

    reference: str
    width: int | None
    batch_size: int
    quick: bool = False
    methods: dict[str, Timed]


class WallclockSummary(Versioned):
    """summary.json of `wallclock`."""

    status: str
    cells: list[Cell]


class Part(Record):
    """One part of a claim, judged."""

    measure: str
    of: str
    to: str
    below: float | None = None
    above: float | None = None
    decides: bool
    ratio: float = _ANY
    low: float | None = _ANY
    high: float | None = _ANY
    n: int = Field(ge=0)
    edges_of: list[str] = Field(default_factory=list)
    edges_to: list[str] = Field(default_factory=list)
    outcome: str


class CosineMean(Record):
    """Of one pair, layer and seed, over looks."""

    seed: int
    layer: str
    metric: str
    method_a: str
    method_b: str
    mean: float | None


class ProgressMean(Record):
    """Of one method and seed, over looks."""

    seed: int
    method: str
    kind: str
    mean: float | None
    not_finite: int | bool


class SimilarityRecord(Versioned):
    """summary.json of `similarity`."""

    status: str
    follow: str
    cosines: list[CosineMean]
    progress: list[ProgressMean]
    spectrum: list[dict[str, Any]]


class Followed(Record):
    """Of the run of `similarity` behind a verdict, what is told beside it."""

    status: str = "done"
    follow: str


class Costs(Record):
    """Of the run of `wallclock` behind a verdict, what is told beside it."""

    warnings: list[str] = Field(default_factory=list)


class Verdict(Versioned):
    """verdict.json: what was measured of a claim, and whether it holds."""

    id: str
    source: str
    says: str
    scale: str
    hash: str
    notes: str = ""
    status: str = "done"
    rules: int = 2
    trend: bool = False
    verdict: str | None
    parts: list[Part]
    methods: dict[str, Tuned] = Field(default_factory=dict)
    published: dict[str, Tuned] = Field(default_factory=dict)
    adopted_trials: int = 0
    similarity: Followed | None = None
    wallclock: Costs | None = None
