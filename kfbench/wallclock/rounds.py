"""Timing by interleaved windows: which window comes when, and how many. Knows neither torch nor methods.

Speeds drift by tens of per cent on shared machines, so contestants are never timed in sequence:
every round times one window of each, in a seeded random order, and the reference twice, so that
its two windows show what difference arises between equals.
"""

import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from kfbench.wallclock.ratios import CONTROL


class Contestant(Protocol):
    """Something that can run a number of updates and say how long they took."""

    label: str
    period: int
    """Updates after which its costs repeat; windows are whole periods, at the same phase."""

    device_seconds: float | None
    """Of the last window, between two events on an accelerator; None on a CPU."""

    def prepare(self) -> None:
        """Put parameters, state and phase back to where every window starts; not timed."""

    def run(self, updates: int) -> float:
        """Run that many updates; returns seconds, synchronised with the device at the edges only."""


def plan_updates(contestant: Contestant, window_seconds: float) -> tuple[int, float]:
    """How many updates make a window, whole periods that fill ``window_seconds``, and how long it takes.

    Doubles until half of the window is filled, so that one cold update decides nothing.
    """
    periods = 1
    while True:
        contestant.prepare()
        seconds = contestant.run(contestant.period * periods)
        if seconds >= window_seconds / 2:
            break
        periods *= 2
    wanted = max(1, math.ceil(periods * window_seconds / seconds))
    return contestant.period * wanted, seconds / periods * wanted


def time_rounds(
    contestants: Sequence[Contestant],
    updates: Mapping[str, int],
    rounds: int,
    seed: int,
    first_round: int = 0,
) -> Iterator[dict[str, Any]]:
    """One row a window. The first contestant is the reference; its second window is the control."""
    entries = [(contestant.label, contestant) for contestant in contestants]
    entries.append((contestants[0].label + CONTROL, contestants[0]))
    for number in range(first_round, first_round + rounds):
        # By its own number, so that a round has the same order in whichever process it runs.
        order = random.Random(f"{seed}/{number}").sample(entries, len(entries))
        for position, (label, contestant) in enumerate(order):
            # The control is the reference again: its windows are those of the reference.
            count = updates[contestant.label]
            contestant.prepare()
            seconds = contestant.run(count)
            yield {
                "round": number,
                "order": position,
                "method": label,
                "updates": count,
                "seconds": seconds,
                "load_average": _load_average(),
                "device_seconds": contestant.device_seconds,
            }


def time_until(
    contestants: Sequence[Contestant],
    updates: Mapping[str, int],
    rounds: int,
    seed: int,
    enough: Callable[[list[dict[str, Any]]], bool],
    time_left: Callable[[], float],
    record: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """``rounds`` rounds, and more until what was measured is ``enough``.

    Stops early, after whole rounds, when ``time_left`` is negative. ``record`` gets each round's rows.
    """
    rows: list[dict[str, Any]] = []
    number = 0
    while True:
        round_rows = list(time_rounds(contestants, updates, 1, seed, number))
        rows += round_rows
        record(round_rows)
        number += 1
        if (number >= rounds and enough(rows)) or time_left() < 0:
            return rows


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:  # a system without one
        return None
