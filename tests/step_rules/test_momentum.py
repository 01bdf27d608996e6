"""Momentum from a later epoch on: none before, and then as if the optimizer began there."""

import pytest
import torch

from kfbench.step_rules.momentum import LateMomentum
from tests.runs import updates

PER_EPOCH = 5  # 90 samples in batches of 20


@pytest.mark.parametrize("nesterov", [False, True])
def test_as_two_optimizers_one_after_the_other(nesterov):
    gradients = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, two = (torch.zeros(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov}
    optimizer = torch.optim.SGD([one], **options)
    late = LateMomentum(optimizer, 0.9, 3)
    before, after = torch.optim.SGD([two], lr=0.1), torch.optim.SGD([two], **options)
    for step, gradient in enumerate(gradients):
        one.grad, two.grad = gradient.clone(), gradient.clone()
        late.set(step)
        optimizer.step()
        (before if step < 3 else after).step()
        assert torch.equal(one, two), f"update {step}"


@pytest.mark.parametrize("name", ["sgd", "foof"])
def test_it_begins_when_that_many_epochs_are_completed(runs, name):
    """The buffer starts empty, so of momentum's first two updates only the second one's step is another."""
    losses = {}
    for late in ("momentum=0", "momentum=0.9", "momentum=0.9,momentum_after_epoch=2"):
        _, folder = runs.train(f"{name}:lr=0.01,{late}", updates=4 * PER_EPOCH)
        losses[late] = updates(folder)["loss"].tolist()
    without, throughout, later = losses.values()
    same = 2 * PER_EPOCH + 2
    assert later[:same] == without[:same] != throughout[:same]
    assert all(a != b for a, b in zip(later[same:], without[same:], strict=True))
