"""The sections of the configuration that belong to one command each: how it measures, tunes, compares, looks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from kfbench.config.section import MOST_SECONDS, MOST_SEEDS, MOST_THREADS, MOST_TRIALS, Float, Int, Section, Text


def _as_list(value: Any) -> Any:
    """One name is a list of one."""
    return (value,) if isinstance(value, str) else value


def _metrics(value: Any) -> Any:
    # A flag that can be repeated gives a list, a file the word alone.
    return ("euclidean", "foof") if value in ("both", ["both"], ("both",)) else _as_list(value)


class Wallclock(Section):
    """How `kfbench wallclock` measures."""

    reference: Text = Field("sgd", description="SPEC that all ratios refer to; it runs twice a round")
    rounds: Int = Field(15, ge=3, description="interleaved rounds, one window of each method")
    window_seconds: Float = Field(
        0.9, gt=0, le=MOST_SECONDS, description="shortest window; it is filled with whole periods"
    )
    precision: Float | None = Field(
        None, gt=0, lt=1, description="go on until every ratio's 95% interval is within +- this, up to --max-time"
    )
    max_time: Float = Field(
        600.0,
        gt=0,
        le=MOST_SECONDS,
        description="seconds for timing; periods too long for it are composed of their parts",
    )
    warmup_periods: Int = Field(1, ge=1, description="whole periods run before anything is timed")
    compose: Literal["auto", "never", "always"] = Field(
        "auto", description="time plain, observing and refreshing updates apart and compose a period of them"
    )
    processes: Int = Field(1, ge=1, le=MOST_THREADS, description="spread the rounds over this many fresh processes")
    with_data: bool = Field(False, description="count fetching each batch from the data set")
    optimizer_only: bool = Field(False, description="time the step alone, without forward and backward")


class Sweep(Section):
    """What `kfbench sweep` tries."""

    parameters: tuple[Text, ...] = Field(("lr", "damping"), description="options of methods to tune")
    grids: dict[str, Any] = Field(
        default_factory=dict, description="parameter, or METHOD.parameter -> START:STOP:STEP, or its values"
    )
    absolute_lr: bool = Field(
        False, description="lr itself is on the grid, not alpha = lr / damping, also for methods with damping"
    )
    extend: Int = Field(
        2, ge=0, description="rounds of extension where the best lies at, or near-optimal along, an edge"
    )
    near: Float = Field(1.1, ge=1, description="near optimal: a loss within this factor of the method's best")
    refine: Int = Field(0, ge=0, le=MOST_TRIALS, description="further trials around the best of each method")
    sampler: Literal["random", "qmc", "tpe"] = Field(
        "random", description="how these are drawn: one grid step around the best; or in the whole grid, by Optuna"
    )
    top: Int = Field(1, ge=0, description="this many best points of each method are run again with fresh seeds")
    final_seeds: Int = Field(3, ge=1, le=MOST_SEEDS, description="fresh seeds for each of them")
    final_epochs: Int | None = Field(None, ge=1, description="their epochs (default: those of the trials)")
    final_updates: Int | None = Field(None, ge=1, description="their updates, instead of --final-epochs")
    jobs: Int = Field(1, ge=1, le=MOST_THREADS, description="trials at the same time, each in a process of its own")
    trial_timeout: Float | None = Field(
        None, gt=0, le=MOST_SECONDS, description="seconds after which a trial counts as hanging"
    )


class Compare(Section):
    """What `kfbench compare` shows."""

    reference: Text | None = Field(
        None, description="method that the others are paired with, seed by seed (default: the best)"
    )
    profile_by: Literal["updates", "seconds", "loss"] | None = Field(
        None, description="cost of a --profile: updates or seconds to target, or final loss (default: updates)"
    )
    claim: dict[str, Any] = Field(default_factory=dict, description="a published claim, see docs/claims.md")


class Similarity(Section):
    """What `kfbench similarity` asks along whose trajectory."""

    follow: Text = Field("kfac", description="SPEC, or label in the file, of the method that trains")
    against: Text | None = Field(
        None, description="only pairs with this one, a SPEC or a label in the file (default: all pairs)"
    )
    metric: Annotated[tuple[Literal["euclidean", "foof"], ...], BeforeValidator(_metrics)] = Field(
        ("euclidean",), min_length=1, description="inner products, euclidean or foof, or both"
    )
    every: Int | None = Field(
        None, ge=1, description="updates between looks (default: about 50 looks, so that all phases of every T are met)"
    )
    first: Int | None = Field(None, ge=0, description="no look before this update (default: 0)")
    progress: bool = Field(False, description="how much each direction would lower the same mini-batch's loss")
    progress_lr: Literal["given", "search"] = Field(
        "given", description="steps of --progress: each method's lr, or the best of a line search"
    )
    spectrum: Annotated[tuple[Text, ...], BeforeValidator(_as_list)] = Field(
        (), description="layers whose curvature is compared with the exact Fisher"
    )
    spectrum_points: Literal["batch", "held-out"] = Field(
        "batch", description="of which points that Fisher is: the current batch, or as many others"
    )
