"""The timing logic against a fake clock and fake optimizers whose true cost is known."""

import math
import random

import pytest

from kfbench.results.intervals import median
from kfbench.updates.schedule import PARTS
from kfbench.wallclock.ratios import CONTROL, compose, half_widths, per_update, ratios, summarise
from kfbench.wallclock.rounds import plan_updates, time_rounds, time_until


class Machine:
    """A clock whose speed drifts, with bursts of a busy neighbour and jitter, all seeded."""

    def __init__(self, seed, drift=0.0, bursts=0.0, jitter=0.0):
        self.rng = random.Random(seed)
        self.drift, self.bursts, self.jitter = drift, bursts, jitter
        self.now, self.burst_until, self.phase = 0.0, 0.0, self.rng.uniform(0, 6)

    def spend(self, seconds):
        """Seconds that work of this true cost takes now."""
        speed = 1 + self.drift * math.sin(self.now / 40 + self.phase)
        if self.bursts and self.now > self.burst_until and self.rng.random() < self.bursts:
            self.burst_until = self.now + self.rng.expovariate(1 / 3)
        if self.now < self.burst_until:
            speed *= 1.6
        taken = seconds * speed * math.exp(self.rng.gauss(0, self.jitter))
        self.now += taken
        return taken


class Fake:
    """Costs ``plain`` an update and ``spike`` more at the end of every period."""

    device_seconds = None

    def __init__(self, label, machine, plain, spike=0.0, period=1):
        self.label, self.machine, self.plain, self.spike, self.period = label, machine, plain, spike, period
        self.step, self.prepared = 0, 0

    def prepare(self):
        self.step, self.prepared = 0, self.prepared + 1

    def run(self, updates):
        spikes = (self.step + updates) // self.period - self.step // self.period
        self.step += updates
        return self.machine.spend(updates * self.plain + spikes * self.spike)

    @property
    def cost(self):
        return self.plain + self.spike / self.period


def _contestants(machine):
    return [
        Fake("sgd", machine, 0.010),
        Fake("same", machine, 0.010),
        Fake("spiky", machine, 0.012, spike=0.5, period=100),
        Fake("slow", machine, 0.035),
    ]


def _updates(contestants):
    return {c.label: plan_updates(c, 1.0)[0] for c in contestants}


def test_windows_are_whole_periods_and_long_enough():
    machine = Machine(0)
    found = _updates(_contestants(machine))
    assert found["spiky"] % 100 == 0
    assert all(found[c.label] * c.cost >= 1.0 for c in _contestants(machine))


def test_every_round_has_each_method_once_and_the_reference_twice():
    machine = Machine(0)
    contestants = _contestants(machine)
    rows = list(time_rounds(contestants, _updates(contestants), 4, seed=1))
    names = ["sgd", "same", "spiky", "slow", "sgd" + CONTROL]
    orders = []
    for r in range(4):
        own = [row for row in rows if row["round"] == r]
        assert sorted(row["method"] for row in own) == sorted(names)
        assert [row["order"] for row in own] == list(range(5))
        orders.append([row["method"] for row in own])
    assert len({tuple(order) for order in orders}) > 1, "the order changes between rounds"
    again = list(time_rounds(contestants, _updates(contestants), 4, seed=1))
    assert [row["method"] for row in again] == [row["method"] for row in rows], "and is seeded"


def test_every_window_starts_from_the_same_phase():
    machine = Machine(0)
    contestants = _contestants(machine)
    rows = list(time_rounds(contestants, {c.label: 100 for c in contestants}, 5, seed=1))
    spiky = [row["seconds"] for row in rows if row["method"] == "spiky"]
    assert spiky == pytest.approx([100 * 0.012 + 0.5] * 5)


def test_true_costs_are_found_without_noise():
    machine = Machine(0)
    contestants = _contestants(machine)
    rows = list(time_rounds(contestants, _updates(contestants), 15, seed=1))
    summary = summarise(per_update(rows), "sgd")
    for contestant in contestants:
        assert summary[contestant.label]["seconds_per_update"] == pytest.approx(contestant.cost)
        assert summary[contestant.label]["ratio"] == pytest.approx(contestant.cost / 0.010)


def test_intervals_cover_the_truth_in_simulations():
    """1,000 simulated runs at the default 15 rounds: at least 93 % of the intervals contain the true ratio.

    Spikes every T, drift of +-20 %, bursts of a neighbour, 3 % jitter; identical optimizers contain 1.
    """
    runs, covered, identical, noise_floor = 1000, 0, 0, 0
    truth = {"same": 1.0, "spiky": 1.7, "slow": 3.5}
    for seed in range(runs):
        machine = Machine(seed, drift=0.2, bursts=0.03, jitter=0.03)
        contestants = _contestants(machine)
        updates = {"sgd": 100, "same": 100, "spiky": 100, "slow": 30}
        summary = summarise(per_update(list(time_rounds(contestants, updates, 15, seed))), "sgd")
        inside = {m: e["ratio_low"] <= truth.get(m, 1.0) <= e["ratio_high"] for m, e in summary.items()}
        covered += sum(inside[m] for m in truth)
        identical += inside["same"]
        noise_floor += inside["sgd"]
    assert covered / (3 * runs) >= 0.93
    assert identical / runs >= 0.93
    assert noise_floor / runs >= 0.93


def test_sequential_timing_would_be_fooled_by_drift():
    """Why windows are interleaved: on a slowing machine, equal optimizers timed one after the other differ."""
    machine = Machine(3, drift=0.3)
    a, b = Fake("a", machine, 0.01), Fake("b", machine, 0.01)
    sequential = [median([f.run(1000) for _ in range(8)]) for f in (a, b)]
    assert abs(sequential[1] / sequential[0] - 1) > 0.05
    rows = list(time_rounds([a, b], {"a": 1000, "b": 1000}, 15, seed=0))
    assert summarise(per_update(rows), "a")["b"]["ratio"] == pytest.approx(1, abs=0.03)


def test_per_update_median_would_hide_the_spike():
    """Why windows are whole periods: the median over single updates never sees the refresh."""
    machine = Machine(0)
    spiky = Fake("spiky", machine, 0.012, spike=0.5, period=100)
    assert median([spiky.run(1) for _ in range(1000)]) == pytest.approx(0.012)
    assert spiky.cost == pytest.approx(0.017)


def test_composed_cost_is_that_of_whole_periods():
    machine = Machine(0)
    parts = [Fake("m" + part, machine, cost) for part, cost in zip(PARTS, (0.010, 0.013, 0.113), strict=True)]
    contestants = [Fake("sgd", machine, 0.01), *parts]
    rows = list(time_rounds(contestants, {c.label: 10 for c in contestants}, 9, seed=0))
    costs = compose(per_update(rows), {"m": (50, 20)})
    assert summarise(costs, "sgd")["m"]["seconds_per_update"] == pytest.approx((30 * 0.010 + 19 * 0.013 + 0.113) / 50)
    assert len(ratios(costs, "m", "sgd")) == 9


def test_precision_goes_on_until_it_is_reached():
    machine = Machine(1, jitter=0.05)
    contestants = _contestants(machine)
    updates, rounds = _updates(contestants), []

    def precise(rows):
        return max(half_widths(per_update(rows), "sgd")) <= 0.02

    rows = time_until(contestants, updates, 6, 0, precise, lambda: 1.0, rounds.append)
    assert len(rounds) > 6
    assert precise(rows)


def test_time_ends_the_rounds_after_a_whole_one():
    machine = Machine(1, jitter=0.05)
    contestants, rounds = _contestants(machine), []
    rows = time_until(
        contestants, _updates(contestants), 50, 0, lambda rows: True, lambda: 3 - len(rounds), rounds.append
    )
    assert len(rounds) == 4
    assert len(rows) == 4 * 5
