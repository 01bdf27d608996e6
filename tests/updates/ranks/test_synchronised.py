"""BatchNorm over the rows of several processes: values, gradients and running averages of the whole batch."""

import copy

import pytest
import torch
from torch import nn

from kfbench.updates.ranks.sharing import Several
from kfbench.updates.ranks.synchronised import normalising, synchronise
from tests.updates.ranks.meeting import together

MODULES = {
    "rows": (nn.BatchNorm1d(3), (5, 3)),
    "sequences": (nn.BatchNorm1d(3, momentum=None), (5, 3, 4)),
    "images": (nn.BatchNorm2d(3, affine=False), (5, 3, 4, 2)),
    "volumes": (nn.BatchNorm3d(3, eps=0.1), (4, 3, 2, 2, 3)),
}


def _trained(module, x, weights, rows=slice(None), ranks=None):
    """(output, gradient of the input) of two passes over some rows."""
    module = nn.Sequential(copy.deepcopy(module))
    if ranks is not None:
        synchronise(module, ranks)
    for _ in range(2):
        own = x[rows].clone().requires_grad_()
        output = module(own)
        (gradient,) = torch.autograd.grad((output * weights[rows]).square().sum(), own)
    return output.detach(), gradient, module[0]


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
        assert own.num_batches_tracked == whole.num_batches_tracked == 2


def test_in_evaluation_and_where_there_are_no_averages_it_is_torchs():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3).eval())
    assert normalising(model) == [model[0]]
    x, before = torch.randn(4, 3), copy.deepcopy(model).eval()

    def work(transport):
        mine = copy.deepcopy(model)
        synchronise(mine, Several(transport, 0))
        return torch.equal(mine.eval()(x), before(x)) and not transport.messages

    assert together(2, work) == [True, True]
