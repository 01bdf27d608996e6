"""What several processes cannot share exactly is one sentence before the first update."""

import pytest
import torch
from torch import nn

from kfbench.errors import UsageError
from kfbench.updates.build import build_data
from kfbench.updates.ranks.refused import check_shared
from kfbench.updates.trainee import Trainee
from tests.updates.ranks.meeting import CPU, config_of

HERE = "tests.updates.ranks.test_refused"


class Centred(nn.Module):
    """Subtracts the mean of the batch."""

    def forward(self, x):
        return x - x.mean(0)


def dropping(input_shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(784, outputs))


def centred(input_shape, outputs):
    return nn.Sequential(nn.Flatten(), Centred(), nn.Linear(784, outputs))


def mixing(input_shape, outputs):
    """Which normalises by the batch in evaluations too."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, outputs), nn.BatchNorm1d(outputs, track_running_stats=False))


def refusal(spec, size=2, **flags):
    config = config_of(spec, **flags)
    trainee = Trainee(config, build_data(config, CPU), 0, CPU)
    before = torch.get_rng_state()
    with pytest.raises(UsageError) as caught:
        check_shared(trainee, config.problem.model, size)
    assert torch.equal(before, torch.get_rng_state())
    return str(caught.value)


@pytest.mark.parametrize(
    ("spec", "flags", "sentence"),
    [
        ("natural:T=2", {}, "method 'natural' keeps the rows of a whole batch: one process only, got 2"),
        ("gn-cg:T=2", {}, "method 'gn-cg' keeps the rows of a whole batch: one process only, got 2"),
        ("kfra:T=2", {}, "method 'kfra' couples layers by rows that lie on other processes: one process only, got 2"),
        ("kfac-tridiagonal:T=2", {}, "method 'kfac-tridiagonal' couples layers by rows that lie on other processes"),
        ("foof-per-sample", {}, "looks at single rows, of which each process has but its own"),
        ("kfac:stat_samples=5", {}, "takes the first stat_samples=5 of each batch, which lie on the first process"),
        ("kfac:tau1=0.5", {}, "tau1=0.5 takes the first part of each batch, which lies on the first process"),
        ("kfac:step=rescale", {}, "step=rescale looks at the whole batch again: one process only, got 2"),
        ("torch.optim:LBFGS", {}, "evaluates the batch within its step: one process only, got 2"),
        ("sgd", {"model": f"{HERE}:mixing", "width": None}, "has no running averages to be evaluated by in 2, which"),
        ("sgd", {"model": f"{HERE}:dropping", "width": None}, "draws random numbers in its forward, as dropout does"),
        ("sgd", {"model": f"{HERE}:centred", "width": None}, "makes another output of a sample beside others"),
        (
            "sgd",
            {"micro_batch_size": 19},
            "micro_batch_size is 19, which leaves a part of 1 of a batch, fewer than the 2",
        ),
    ],
)
def test_what_cannot_be_shared(spec, flags, sentence):
    assert sentence in refusal(spec, **flags)
