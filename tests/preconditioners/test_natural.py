"""The natural gradient against dense algebra: solves, forms, posteriors, and where F must be fresh."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kfbench.curvature.statistics import LayerStatistics
from kfbench.preconditioners import natural
from kfbench.preconditioners.contract import FISHERS
from kfbench.preconditioners.natural import MAX_ROWS, NaturalGradient
from kfbench.problems.likelihoods import LIKELIHOODS
from kfbench.updates.preconditioning import Preconditioning
from tests import dense
from tests.mutants import StaleFisher
from tests.properties import assert_close, equal


def _classifier(bias=True):
    return nn.Sequential(nn.Linear(2, 3, bias), nn.ReLU(), nn.Linear(3, 2, bias)).double()


def _autoencoder():
    return nn.Sequential(
        nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2), nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4)
    ).double()


def _convolutional():
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)).double()


# name -> (model, input shape, likelihood)
NETWORKS = {
    "mlp": (_classifier, (2,), "categorical"),
    "mlp-without-bias": (lambda: _classifier(False), (2,), "categorical"),
    "autoencoder": (_autoencoder, (4,), "gaussian"),
    "convolution": (_convolutional, (1, 3, 3), "categorical"),
}


class Prepared:
    """One backward pass in order "same", with everything that a dense reference needs."""

    def __init__(self, network, n, fisher, block_diagonal=False, damping=0.3):
        make, shape, likelihood = NETWORKS[network]
        self.model, self.likelihood = make(), LIKELIHOODS[likelihood]()
        self.x = torch.randn(n, *shape, dtype=torch.float64)
        y = torch.randint(2, (n,)) if likelihood == "categorical" else self.x * 0.5 + 0.1
        self.layers = {name: m for name, m in self.model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        self.method = NaturalGradient(fisher=fisher, block_diagonal=block_diagonal)
        pre = Preconditioning(self.model, self.method, damping=damping, T=1, order="same", likelihood=likelihood)
        with pre.capture():
            output = self.model(self.x)
        losses = self.likelihood.loss(output, y)
        self.G = {name: dense.gradient(self.model, layer, losses) for name, layer in self.layers.items()}
        self.vectors = self._vectors(fisher, output.detach(), y)
        pre.backward(losses, output)
        self.directions = {name: self._direction(layer) for name, layer in self.layers.items()}

    def _vectors(self, fisher, output, y):
        if fisher == "full":
            return self.likelihood.full_vectors(output)
        if fisher == "sampled":
            return self.likelihood.sampled_vectors(output, torch.Generator().manual_seed(0))
        leaf = output.clone().requires_grad_()
        return torch.autograd.grad(self.likelihood.loss(leaf, y).sum(), leaf)[0][None]

    def _direction(self, layer):
        weight = layer.weight.grad.flatten(1)
        return weight if layer.bias is None else torch.cat([weight, layer.bias.grad[:, None]], dim=1)

    def fisher(self):
        return dense.fisher(self.model, list(self.layers.values()), self.x, self.vectors)

    def random_vector(self):
        return {name: torch.randn_like(G) for name, G in self.G.items()}


def _flat(v):
    return torch.cat([matrix.flatten() for matrix in v.values()])


@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize("n", [3, 70])
@pytest.mark.parametrize("network", NETWORKS)
def test_direction_equals_the_dense_solve(network, n, fisher):
    """For more and for fewer points than parameters (12 to 46), one vector or several a point."""
    p = Prepared(network, n, fisher)
    wanted = dense.damped_solve(p.fisher(), p.G, 0.3)
    for name, got in p.directions.items():
        assert_close(got, wanted[name], what=f"{network}, N = {n}, {fisher}, layer {name}")


@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize("n", [3, 70])
@pytest.mark.parametrize("network", NETWORKS)
def test_block_diagonal_direction_equals_every_layers_dense_solve(network, n, fisher):
    p = Prepared(network, n, fisher, block_diagonal=True)
    for name, layer in p.layers.items():
        F = dense.fisher_block(p.model, layer, p.x, p.vectors)
        wanted = dense.damped_solve(F, {name: p.G[name]}, 0.3)[name]
        assert_close(p.directions[name], wanted, what=f"{network}, N = {n}, {fisher}, layer {name}")


@pytest.mark.parametrize("damping", [1e3, 1e-3])
def test_any_damping_that_float64_bears(damping):
    """|F| / lambda is 1e3 or less here; ten more digits are left."""
    p = Prepared("mlp", 7, "full", damping=damping)
    wanted = dense.damped_solve(p.fisher(), p.G, damping)
    for name, got in p.directions.items():
        assert_close(got, wanted[name], what=f"lambda {damping}, layer {name}")


@pytest.mark.parametrize("block_diagonal", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_solve_and_quadratic_form_of_any_vector(network, block_diagonal):
    p = Prepared(network, 6, "full", block_diagonal)
    v = p.random_vector()
    F = _dense_fisher(p, block_diagonal)
    wanted = dense.damped_solve(F, v, 0.3)
    got = p.method.solve(v)
    for name in v:
        assert_close(got[name], wanted[name], what=name)
    assert_close(p.method.quadratic_form(v), _flat(v) @ F @ _flat(v))


def _dense_fisher(p, block_diagonal):
    if not block_diagonal:
        return p.fisher()
    return torch.block_diag(*[dense.fisher_block(p.model, m, p.x, p.vectors) for m in p.layers.values()])


@pytest.mark.parametrize("block_diagonal", [False, True])
@pytest.mark.parametrize(("n", "fisher"), [(3, "full"), (70, "sampled")])
def test_posterior_draw_has_exactly_the_covariance(n, fisher, block_diagonal, monkeypatch):
    """A draw is linear in the standard normals that it takes: fed with unit vectors it shows the linear map."""
    p, data_points = Prepared("mlp", n, fisher, block_diagonal), 500
    normals = []

    def unit_vectors(*shape, generator, dtype, device):
        size = torch.Size(shape).numel()
        start = sum(normals)
        normals.append(size)
        taken = torch.zeros(size, dtype=dtype)
        if start <= index < start + size:
            taken[index - start] = 1.0
        return taken.view(shape)

    monkeypatch.setattr(natural.torch, "randn", unit_vectors)
    columns, index = [], 0
    while not columns or index < sum(normals):
        normals.clear()
        columns.append(_flat(p.method.sample_posterior(data_points)))
        index += 1
    monkeypatch.undo()
    L = torch.stack(columns, dim=1)
    F = _dense_fisher(p, block_diagonal)
    precision = data_points * F + data_points * 0.3 * torch.eye(len(F), dtype=F.dtype)
    assert len(columns) > len(F), "parameters and rows of U both take normals"
    assert_close(L @ L.T, torch.linalg.inv(precision))


def test_posterior_draws_have_that_covariance_empirically():
    """m |W - I|^2 of whitened draws has mean d (d + 1) and variance 4 d (d + 1), up to O(d^3 / m): within 5 sigma.

    W is a Wishart matrix over m: its off-diagonal entries have variance 1/m, its diagonal ones 2/m.
    """
    p, data_points, m = Prepared("mlp-without-bias", 5, "sampled"), 40, 3000
    generator = torch.Generator().manual_seed(1)
    draws = torch.stack([_flat(p.method.sample_posterior(data_points, generator)) for _ in range(m)])
    F = p.fisher()
    d = len(F)
    precision = data_points * (F + 0.3 * torch.eye(d, dtype=F.dtype))
    whitened = draws @ torch.linalg.cholesky(precision)
    W = whitened.T @ whitened / m
    distance = m * float((W - torch.eye(d, dtype=W.dtype)).square().sum())
    assert abs(distance - d * (d + 1)) < 5 * (4 * d * (d + 1)) ** 0.5
    assert float(whitened.mean(0).abs().max()) < 5 / m**0.5


def _losses_of_full_batch_training(make, order="same", updates=30):
    """40 points, full batch, lr 0.3, lambda 0.01: a Fisher one iterate old diverges here."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 10, dtype=torch.float64), torch.randint(4, (40,))
    model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 4)).double()
    for module in model[::2]:
        nn.init.kaiming_normal_(module.weight)
    pre = Preconditioning(model, make, damping=0.01, T=1, order=order, fisher_batches=lambda refresh: [(x, y)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(updates):
        with pre.capture():
            output = model(x)
        pre.backward(cross_entropy(output, y, reduction="none"), output)
        optimizer.step()
    return float(cross_entropy(model(x), y).detach())


def test_fresh_fisher_converges_where_a_stale_one_diverges():
    """In full-batch training the Fisher must be that of the current weights, in both orders: start 1.45."""
    fresh = _losses_of_full_batch_training(NaturalGradient("full"))
    assert fresh < 0.01
    assert _losses_of_full_batch_training(StaleFisher("full")) > 1.45
    own = _losses_of_full_batch_training(NaturalGradient("full"), order="independent")
    assert abs(own / fresh - 1) < 1e-6, "points of its own that are the batch give the same directions"


def test_float32_is_accurate_beyond_its_own_condition_number():
    """|F| / lambda is 1e8, so in float32 ``lambda D I`` would vanish beside ``U U'``: the system is solved in float64.

    The gradient is of other points. Where it lies in the span of U (same batch, all or true labels) float32 keeps
    only what the subtraction leaves: 7 digits less those of |F| / lambda.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 5))
    x, y, own = torch.randn(20, 30), torch.randint(5, (20,)), (torch.randn(25, 30), torch.randint(5, (25,)))
    found = {}
    for dtype in (torch.float32, torch.float64):
        twin, method = copy.deepcopy(model).to(dtype), NaturalGradient("empirical")
        points = (own[0].to(dtype), own[1])
        pre = Preconditioning(twin, method, damping=1e-8, T=1, fisher_batches=lambda refresh, points=points: [points])
        with pre.capture():
            output = twin(x.to(dtype))
        pre.backward(cross_entropy(output, y, reduction="none"), output)
        found[dtype] = torch.cat([q.grad.flatten().double() for q in twin.parameters()])
        assert torch.linalg.eigvalsh(next(iter(method.newest.rows.grams().values())))[-1] / 25 > 1e8 * 1e-8
        assert method.damping_retries == 0
    assert_close(found[torch.float32], found[torch.float64], 1e-5)


def test_points_beyond_fisher_data_are_left_out():
    whole, first = NaturalGradient("empirical"), NaturalGradient("empirical", fisher_data=4)
    p = Prepared("mlp", 4, "empirical")
    statistics = p.method.newest._statistics
    whole.observe(statistics)
    more = {
        name: LayerStatistics(torch.cat([s.inputs, s.inputs * 2]), torch.cat([s.output_gradients] * 2, dim=1))
        for name, s in statistics.items()
    }
    first.observe(more)
    for method in (whole, first):
        method.refresh(0.3)
    assert equal(whole.solve(p.G), first.solve(p.G))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"fisher": "none"}, "sampled, full, empirical, got 'none'"), ({"fisher_data": 0}, "at least 1, got 0")],
)
def test_wrong_options_are_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        NaturalGradient(**options)


def test_what_it_cannot_work_with_is_one_sentence():
    method = NaturalGradient("full")
    method.check(1e-3, MAX_ROWS // 10, 10)
    with pytest.raises(ValueError, match=r"20000 rows.* take 6\.4 GB; at most 10000"):
        method.check(1e-3, 2000, 10)
    with pytest.raises(ValueError, match=r"6\.4 GB a layer"):
        NaturalGradient("full", block_diagonal=True).check(1e-3, 2000, 10)
    with pytest.raises(ValueError, match="above 0 for the natural gradient, got 0"):
        Prepared("mlp", 3, "full", damping=0.0)
    with pytest.raises(RuntimeError, match="no Fisher yet"):
        method.solve({})
