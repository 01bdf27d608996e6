"""What a step rule may do: leave everything as it is, or change the damping of the updates that follow."""

import torch

from kfbench.step_rules.contract import NoRule
from kfbench.updates import trainee as module
from kfbench.updates.build import build_data
from kfbench.updates.trainee import Trainee

CPU = torch.device("cpu")


class Halving(NoRule):
    """Halves the damping after every step, and notes what it was told."""

    def __init__(self):
        self.proposed, self.taken = [], []

    def redirect(self, proposed):
        self.proposed.append((proposed.lr, proposed.step, float(proposed.inner(None))))

    def damping(self, taken):
        self.taken.append((taken.damping, taken.step))
        return taken.damping / 2


def _trainee(runs, spec):
    config = runs.config(spec)
    return Trainee(config, build_data(config, CPU), 0, CPU)


def test_no_rule_changes_nothing(runs):
    trainee = _trainee(runs, "foof:T=1")
    assert trainee.rule.acted is None and trainee.rule.state_dict() == {}
    trainee.update(*next(trainee.batches()))
    assert trainee.damping == 1.0


def test_damping_that_a_rule_returns_is_that_of_the_next_refresh(runs, monkeypatch):
    rule = Halving()
    monkeypatch.setattr(module, "build_rule", lambda *given: rule)
    trainee = _trainee(runs, "foof:T=1,lr=0.1")
    refreshed, own = [], trainee.preconditioning.method.refresh
    trainee.preconditioning.method.refresh = lambda damping: refreshed.append(damping) or own(damping)
    for _, batch in zip(range(3), trainee.batches(), strict=False):
        trainee.update(*batch)
    assert rule.taken == [(1.0, 0), (0.5, 1), (0.25, 2)]
    assert refreshed == [1.0, 0.5, 0.25] and trainee.damping == 0.125
    assert [(lr, step) for lr, step, _ in rule.proposed] == [(0.1, 0), (0.1, 1), (0.1, 2)]
    assert all(product > 0 for *_, product in rule.proposed), "FOOF descends"
