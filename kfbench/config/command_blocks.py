"""The sections of the configuration that belong to one command each: how it measures, tunes, compares, looks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from kfbench.config.section import MOST_SECONDS, MOST_SEEDS, MOST_THREADS, MOST_TRIALS, Float, Int, Section, Text
from kfbench.errors import UsageError


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


class Placed(Section):
    """Where trials run, how many at a time: it decides no numbers, and is part of no hash."""

    executor: Literal["processes", "ray", "slurm"] | None = Field(
        None,
        description="where trials run: processes of this machine, a Ray cluster, or Slurm (default: processes; of "
        "compare this process, one after the other)",
    )
    jobs: Int = Field(1, ge=1, le=MOST_THREADS, description="trials at the same time, each in a process of its own")
    trial_timeout: Float | None = Field(
        None, gt=0, le=MOST_SECONDS, description="seconds after which a trial counts as hanging"
    )
    trial_cpus: Float | None = Field(
        None, gt=0, le=MOST_THREADS, description="CPUs that Ray or Slurm sets aside for a trial (default: --threads)"
    )
    trial_gpus: Float | None = Field(
        None,
        ge=0,
        le=MOST_THREADS,
        description="GPUs of a trial; on Ray 0.25 has four share one (default: 1 where --device is cuda, else 0)",
    )
    ray_address: Text | None = Field(
        None, description="HOST:PORT of a Ray cluster, or auto (default: a running one, else one on this machine)"
    )
    slurm: dict[str, Any] = Field(
        default_factory=dict, description="parameters of submitit for Slurm, such as partition or account"
    )
    ship: Literal["auto", "always"] | None = Field(
        None, description="send records home from all nodes of Ray, or only where they share no disk (default: auto)"
    )
    checkpoint_seconds: Float | None = Field(
        None, gt=0, le=MOST_SECONDS, description="time between checkpoints of a trial, each sent home (default: 30)"
    )


# What only some executors take, by key.
_TAKEN_BY = {
    "trial_cpus": ("ray", "slurm"),
    "trial_gpus": ("ray", "slurm"),
    "ray_address": ("ray",),
    "slurm": ("slurm",),
    "ship": ("ray",),
}


def check_placed(block: Placed) -> None:
    """UsageError where keys do not fit the executor, or each other."""
    executor = block.executor or "processes"
    for key, executors in _TAKEN_BY.items():
        if getattr(block, key) not in (None, {}) and executor not in executors:
            flag = f"{key} {getattr(block, key)}"
            raise UsageError(f"{flag} is of --executor {' or '.join(executors)}, got --executor {executor}")
    gpus, cpus = block.trial_gpus or 0.0, block.trial_cpus or 1.0
    if gpus > 1 and not gpus.is_integer():
        raise UsageError(f"trial_gpus is {gpus:g}; accepted: a part of one GPU, or whole ones")
    if executor == "slurm" and not (gpus.is_integer() and cpus.is_integer()):
        raise UsageError(f"Slurm gives whole CPUs and GPUs, got trial_cpus {cpus:g} and trial_gpus {gpus:g}")
    if block.ray_address is not None and block.ray_address.startswith("ray://"):
        raise UsageError(
            f"ray_address {block.ray_address} is of Ray Client, which hands on no records: run the command on a node "
            "of the cluster, with auto or HOST:PORT"
        )


class Sweep(Placed):
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


class Compare(Placed):
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
