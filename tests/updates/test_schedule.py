"""Which updates observe and refresh, and what the learning rate is."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from kfbench.errors import UsageError
from kfbench.step_rules.learning_rate import learning_rate_factor, learning_rate_schedule
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


@pytest.mark.parametrize(("warmup", "total"), [(1, 10), (4, 20), (9, 10)])
def test_linear_warmup_and_cosine_are_those_of_torch(warmup, total):
    """Its LinearLR from 1/warmup, which reaches 1 with the last update of the warm-up, then its CosineAnnealingLR."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    rise = LinearLR(optimizer, start_factor=1 / warmup, total_iters=max(warmup - 1, 1))
    theirs = SequentialLR(optimizer, [rise, CosineAnnealingLR(optimizer, T_max=total - warmup)], [warmup])
    options = {"lr_schedule": "linear-warmup-cosine", "warmup_updates": warmup, "lr_decay": 0.1}
    factor = learning_rate_schedule("sgd", options, total, per_epoch=5)
    for step in range(total):
        assert 0.3 * factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), step
        optimizer.step()
        theirs.step()
    assert factor(warmup - 1) == factor(warmup) == 1.0
    assert factor(0) == 1 / warmup > 0


def test_a_warmup_that_leaves_nothing_to_fall_over_is_refused_but_in_a_smoke_run():
    options = {"lr_schedule": "linear-warmup-cosine", "warmup_updates": 20}
    with pytest.raises(UsageError, match="'sgd': warmup_updates is 20, not below the 20 updates of the run"):
        learning_rate_schedule("sgd", options, 20, 5)
    assert learning_rate_schedule("sgd", options, 20, 5, quick=True)(9) == 0.5


def test_without_options_lr_stays():
    assert [learning_rate_schedule("x:Y", {}, 7, 5)(step) for step in (0, 6)] == [1.0, 1.0]
