"""Which of several processes of one run this is, as `torchrun` says it in the environment. No torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from kfbench.errors import UsageError, shown

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Launched:
    """Process ``rank`` of ``size``, the ``local_rank``-th on its machine."""

    rank: int
    size: int
    local_rank: int


def launched(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """None where this process is the only one; UsageError for what is no rank."""
    # Other launchers set one or the other of these for purposes of their own.
    if not all(name in environment for name in (*_VARIABLES, "MASTER_ADDR", "MASTER_PORT")):
        return None
    try:
        rank, size, local = (int(environment[name]) for name in _VARIABLES)
    except ValueError as error:
        given = ", ".join(f"{name}={shown(environment[name])}" for name in _VARIABLES)
        raise UsageError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers, got {given}") from error
    if not 0 <= rank < size or local < 0:
        raise UsageError(f"RANK must be from 0 to WORLD_SIZE - 1, got RANK={rank}, WORLD_SIZE={size}")
    return Launched(rank, size, local) if size > 1 else None
