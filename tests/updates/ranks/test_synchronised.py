"""BatchNorm over the rows of several processes: values, gradients and running averages of the whole batch."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from kfbench.updates.ranks.sharing import Several
from kfbench.updates.ranks.synchronised import normalising
from tests.updates.ranks.meeting import together

MODULES = {
    "rows": (nn.BatchNorm1d(3), (5, 3)),
    "sequences": (nn.BatchNorm1d(3, momentum=None), (5, 3, 4)),
    "images": (nn.BatchNorm2d(3, affine=False), (5, 3, 4, 2)),
    "volumes": (nn.BatchNorm3d(3, eps=0.1), (4, 3, 2, 2, 3)),
}


class Rectified(nn.BatchNorm1d):
    """A user's, with something of its own around it."""

    def forward(self, x):
        return super().forward(x).relu()


MODULES["rectified"] = (Rectified(3), (5, 3))
PASSES = 3  # from the third on a mean of all has a weight that is no power of two


def _trained(module, x, weights, rows=slice(None), ranks=None):
    """(output, gradient of the input, module) of some passes over some rows."""
    module = copy.deepcopy(module)
    for _ in range(PASSES):
        own = x[rows].clone().requires_grad_()
        with nullcontext() if ranks is None else ranks.training_forward():
            output = module(own)
        (gradient,) = torch.autograd.grad((output * weights[rows]).square().sum(), own)
    return output.detach(), gradient, module


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("size", [2, 3])
def test_each_gets_its_rows_of_the_whole(name, size, dtype):
    module, shape = MODULES[name]
    x, weights = (torch.randn(shape, generator=torch.Generator().manual_seed(i)).double() * 3 + 1 for i in (0, 1))
    if dtype == torch.float64:
        module = copy.deepcopy(module).double()
    x, weights = x.to(dtype), weights.to(dtype)
    output, gradient, whole = _trained(module, x, weights)

    def work(transport):
        ranks = Several(transport, 0)
        for _ in ranks.shares([(x, x)]):
            return _trained(module, x, weights, ranks.place()[1], ranks)

    found = together(size, work)
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(torch.cat([o for o, _, _ in found]), output, **close)
    torch.testing.assert_close(torch.cat([g for _, g, _ in found]), gradient, **close)
    for _, _, own in found:
        torch.testing.assert_close(own.running_mean, whole.running_mean, **close)
        torch.testing.assert_close(own.running_var, whole.running_var, **close)
        assert own.num_batches_tracked == whole.num_batches_tracked == PASSES


def test_in_evaluation_it_is_torchs_and_nothing_travels():
    model, x = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval()), torch.randn(4, 3)
    assert normalising(model) == [model[0]]
    wanted = model.eval()(x)

    def work(transport):
        with Several(transport, 0).training_forward():
            return torch.equal(model(x), wanted), transport.messages

    assert together(2, work) == [(True, [])] * 2


def test_one_value_per_channel_is_an_error_of_all():
    """As with one process; two rows of which each has one are a batch."""

    def work(samples, transport):
        ranks = Several(transport, 0)
        for x, _ in ranks.shares([(torch.ones(samples, 3), torch.ones(samples))]):
            with ranks.training_forward():
                return nn.BatchNorm1d(3)(x)

    assert [y.shape for y in together(2, partial(work, 2))] == [(1, 3), (1, 3)]
    with pytest.raises(ValueError, match="one value per channel"):
        together(2, partial(work, 1))
