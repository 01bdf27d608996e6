"""Which updates observe and refresh, and what the learning rate is."""

import pytest

from kfbench.step_rules.learning_rate import learning_rate_factor
from kfbench.updates.schedule import Amortisation


@pytest.mark.parametrize(
    ("T", "S", "observed", "refreshed"),
    [
        (1, 1, [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]),
        (4, 4, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7]),
        (4, 1, [3, 7], [3, 7]),
        (4, 2, [2, 3, 6, 7], [3, 7]),
        (5, 3, [2, 3, 4, 7], [4]),
    ],
)
def test_observed_and_refreshed_updates(T, S, observed, refreshed):
    schedule = Amortisation.of(T, S)
    assert [t for t in range(8) if schedule.observes(t)] == observed
    assert [t for t in range(8) if schedule.refreshes(t)] == refreshed


def test_the_first_updates_observe_and_refresh_too():
    schedule = Amortisation(T=4, S=1, early=2)
    assert [t for t in range(9) if schedule.observes(t)] == [0, 1, 3, 7]
    assert [t for t in range(9) if schedule.refreshes(t)] == [0, 1, 3, 7]
    assert [t for t in range(9) if schedule.begins(t)] == [0, 4, 8], "of points of a method's own"


@pytest.mark.parametrize(("T", "S"), [(1, 1), (10, 10), (50, 50), (51, 50), (500, 50)])
def test_default_s(T, S):
    assert Amortisation.of(T, None).S == S


@pytest.mark.parametrize(("T", "S"), [(0, None), (-1, None), (3, 4), (3, 0)])
def test_what_does_not_fit_is_refused(T, S):
    with pytest.raises(ValueError, match="must be"):
        Amortisation.of(T, S)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("step", [1, 1, 0.1, 0.01, 0.01]),
        ("exp", [1, 0.1**0.25, 0.1**0.5, 0.1**0.75, 0.1]),
        ("cosine", [1, 0.8535533905932737, 0.5, 0.14644660940672624, 0]),
    ],
)
def test_learning_rate_at_each_quarter(schedule, factors):
    got = [learning_rate_factor(schedule, 0.1, step, 400) for step in (0, 100, 200, 300, 400)]
    assert got == pytest.approx(factors, abs=1e-12)


def test_step_schedule_with_a_period():
    """George et al. 2018, D.2: half the learning rate every 20 epochs, here of 3 updates."""
    got = [learning_rate_factor("step", 0.5, step, 1000, period=60) for step in (0, 59, 60, 119, 120, 300)]
    assert got == [1, 1, 0.5, 0.5, 0.25, 1 / 32]
