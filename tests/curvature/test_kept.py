"""What is kept between updates: no graph, the structure of a factor, rows that are restored as they were."""

import gc

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kfbench.layers.moments import _without_tf32
from kfbench.updates.preconditioning import Preconditioning
from tests.properties import assert_close


def _net(**options):
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 3, 3, padding=1, **options), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).double()


def _batch(n=6, size=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, size, size, generator=generator).double(), torch.arange(n) % 3


def _update(pre, *batches):
    for x, y in batches:
        with pre.capture():
            output = pre.model(x)
        pre.accumulate(cross_entropy(output, y, reduction="none"), output)
    pre.finish()
    return torch.cat([p.grad.flatten() for p in pre.model.parameters()])


@pytest.mark.parametrize("method", ["natural", "ekfac", "kfac", "foof", "gn-cg"])
def test_no_graph_outlives_its_update(method):
    """What autograd saved of a forward is gone, though rows of it may be kept."""
    order = {} if method == "foof" else {"order": "same"}
    pre = Preconditioning(_net(), method, damping=0.1, T=4, **order)
    saved = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mine = saved.append(None) or _Alive(saved)
            return x * 1

        @staticmethod
        def backward(ctx, g):
            return g

    class _Alive:
        def __init__(self, listed):
            self.listed = listed

        def __del__(self):
            self.listed.pop()

    pre.model.insert(2, _Module(Watched.apply))
    _update(pre, _batch())
    gc.collect()
    assert not saved


class _Module(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("method", ["natural", "gn-cg"])
@pytest.mark.parametrize("parts", [1, 2])
def test_rows_of_convolutions_are_restored_as_they_were(method, parts, tmp_path):
    """By the same products, hence bit for bit, also in float32 and from a file."""
    batches = [tuple(t.float() if t.is_floating_point() else t for t in _batch(seed=i)) for i in range(parts)]
    one, other = (Preconditioning(_net().float(), method, damping=0.01, T=9, order="same") for _ in range(2))
    _update(one, *batches)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(_update(one, _batch32(7)), _update(other, _batch32(7)))


def _batch32(seed):
    x, y = _batch(seed=seed)
    return x.float(), y


@pytest.mark.parametrize("method", ["ekfac", "ekfac-ra"])
def test_eigenvectors_of_sua_are_those_of_its_channels(method):
    """Any basis of a repeated eigenvalue would do for the matrix, but not for the scales in it."""
    pre = Preconditioning(_net(), method, damping=0.1, T=1, order="same", spatial="sua")
    _update(pre, _batch())
    basis = pre.method.bases["2"]
    form, kept = pre.method.A.means.forms["2"], pre.method.A.means.kept["2"]
    U = torch.linalg.eigh(form.block(kept, 0))[1].contiguous()
    assert_close(
        basis.U_A.abs(), torch.block_diag(torch.kron(U, torch.eye(9).double()), torch.eye(1).double()).abs(), 1e-12
    )
    assert_close(basis.U_A @ torch.diag(basis.s_A) @ basis.U_A.T, pre.method.A.means["2"], 1e-12)


@pytest.mark.parametrize("options", [{}, {"sharing": "reduce"}])
@pytest.mark.parametrize("method", ["foof", "kfac"])
def test_micro_batches_of_images_of_two_sizes(method, options):
    """Each has its own number of positions: which comes first changes nothing."""
    found = []
    for order in ((5, 8), (8, 5)):
        extra = {"fisher": "empirical"} if method == "kfac" else {}
        pre = Preconditioning(_net(), method, damping=0.1, T=1, order="same", **extra, **options)
        found.append(_update(pre, *(_batch(size=size, seed=size) for size in order)))
    assert_close(found[0], found[1], 1e-11)


def test_a_small_batch_does_not_end_the_compact_form():
    pre = Preconditioning(_net(), "foof", damping=0.1, T=1)
    pre.model[2] = nn.Conv2d(3, 60, 3, padding=1).double()
    pre.model[5] = nn.Linear(240, 3).double()
    pre = Preconditioning(pre.model, "foof", damping=0.1, T=1)
    for n in (8, 1, 8):  # one image of 25 positions is fewer rows than 60 outputs
        _update(pre, _batch(n))
        assert set(pre.method.A.means.forms) == {"0", "2"}


@pytest.mark.parametrize("method", ["foof", "kfac", "ekfac", "natural"])
def test_a_bias_that_is_frozen_on_the_way(method):
    order = {} if method in ("foof", "kfac") else {"order": "same"}
    pre = Preconditioning(_net(), method, damping=0.1, T=1, **order)
    _update(pre, _batch())
    pre.model[0].bias.requires_grad_(False)
    pre.model.zero_grad()
    with pytest.warns(UserWarning, match="layers 0 changed, so their curvature starts anew"), pre.capture():
        output = pre.model(_batch()[0])
    pre.backward(cross_entropy(output, _batch()[1], reduction="none"), output)
    assert pre.model[0].bias.grad is None and pre.model[0].weight.grad is not None


def test_switches_of_tf32_are_put_back_and_nothing_else_is_touched():
    backends = torch.backends

    def switches():
        return backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision, backends.cudnn.enabled

    before = switches()
    with _without_tf32():
        assert switches() == ("ieee", "ieee", before[2])
    assert switches() == before
