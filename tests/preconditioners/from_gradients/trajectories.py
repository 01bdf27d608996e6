"""One trajectory of our methods beside that of a torch optimizer by others, in float64."""

import copy
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

from kfbench.problems.likelihoods import Gaussian
from kfbench.updates.preconditioning import Preconditioning
from tests.properties import assert_close

LR, BATCHES, SAMPLES = 0.01, 12, 9


def network(*widths: int) -> nn.Module:
    """Fully connected, tanh, no biases: every parameter is a layer's matrix."""
    torch.manual_seed(0)
    with torch.random.fork_rng():
        pairs = [(nn.Linear(d, e, bias=False), nn.Tanh()) for d, e in pairwise(widths)]
        return nn.Sequential(*[module for pair in pairs for module in pair][:-1]).double()


def batches(d_in: int, d_out: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        tuple(torch.randn(SAMPLES, d, generator=generator, dtype=torch.float64) for d in (d_in, d_out))
        for _ in range(BATCHES)
    ]


def check_trajectory(
    ours: object,
    theirs: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    widths: tuple[int, ...] = (5, 5, 5, 5),
    *,
    tolerance: float = 1e-10,
    warm_up: bool = False,
    **settings: object,
) -> None:
    """After every batch the weights are theirs; ``warm_up``: of the first one they make a basis, and take no step."""
    model = network(*widths)
    copied = copy.deepcopy(model)
    pre = Preconditioning(model, ours, likelihood="gaussian", **settings)
    mine = torch.optim.SGD(model.parameters(), lr=LR)
    other = theirs(list(copied.parameters()))
    for i, (x, y) in enumerate(batches(widths[0], widths[-1])):
        if warm_up and i == 0:
            pre.warm_up([(x, y)])
        else:
            with pre.capture():
                output = model(x)
            pre.backward(Gaussian().loss(output, y), output)
            mine.step()
        other.zero_grad()
        Gaussian().loss(copied(x), y).mean().backward()
        other.step()
        for p, q in zip(model.parameters(), copied.parameters(), strict=True):
            assert_close(p.detach(), q.detach(), tolerance, f"weights after batch {i}")
    moved = [
        float((p - q).detach().norm()) for p, q in zip(model.parameters(), network(*widths).parameters(), strict=True)
    ]
    assert min(moved) > 1e-3, "nothing has moved"
