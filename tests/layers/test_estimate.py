"""Factors from less than all rows: expand and reduce where they are exact, SUA, groups of channels, some samples."""

import itertools

import pytest
import torch
from torch import nn

from kfbench.curvature.averages import FactorAverages
from kfbench.curvature.capture import capture
from kfbench.layers.estimate import EXACT, Estimate
from kfbench.layers.finding import find_layers
from kfbench.problems.likelihoods import Gaussian
from kfbench.updates.preconditioning import Preconditioning
from tests.properties import assert_close

REDUCE, SUA = Estimate(sharing="reduce"), Estimate(spatial="sua")


class _PerPosition(nn.Module):
    """A linear network with a target at every position: one output of d_out for each."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x).flatten(2).transpose(1, 2).flatten(1)


class _Averaged(nn.Module):
    """The same, averaged over positions before the loss."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x).flatten(2).mean(2)


def _statistics(model, x, fisher="none"):
    layers, _ = find_layers(model)
    likelihood = Gaussian()
    with capture(layers) as captured:
        output = model(x)
    losses = likelihood.loss(output, torch.zeros_like(output))
    captured.draw(fisher, output, lambda out, kind: likelihood.full_vectors(out), losses)
    captured.gradients(losses, keep_graph=True)
    return captured.statistics(fisher)


def _factor(statistics, name, estimate=EXACT, outputs=False):
    averages = FactorAverages(0.0, estimate)
    (averages.add_output_gradients if outputs else averages.add_inputs)({name: statistics[name]})
    return averages.means[name]


def _fisher(statistics):
    """Dense, of one layer's weights: the mean over samples of sum_k grad grad'."""
    G = torch.einsum("knpo,npi->knoi", statistics.output_gradients, statistics.inputs).flatten(2)
    return torch.einsum("kna,knb->ab", G, G) / statistics.samples


def _linear(*widths):
    return [nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(widths)]


@pytest.mark.parametrize(("make", "right"), [(_PerPosition, EXACT), (_Averaged, REDUCE)], ids=["expand", "reduce"])
def test_exact_where_the_network_is_linear(make, right):
    """Eschenhagen et al. 2023: expand for a loss at every position, reduce for positions averaged before it."""
    torch.manual_seed(0)
    model = make(*_linear(2, 3, 2)).double()
    statistics = _statistics(model, torch.randn(4, 2, 2, 3).double(), "full")
    wrong = REDUCE if right is EXACT else EXACT
    for name in statistics:
        F = _fisher(statistics[name])
        kron = torch.kron(_factor(statistics, name, right, outputs=True), _factor(statistics, name, right))
        assert_close(kron, F, 1e-12)
        other = torch.kron(_factor(statistics, name, wrong, outputs=True), _factor(statistics, name, wrong))
        assert (other - F).norm() > 0.2 * F.norm()


@pytest.mark.parametrize("estimate", [REDUCE, SUA, Estimate(groups=2)])
def test_one_position_is_no_different(estimate):
    """A linear layer over one position; a kernel of one tap under SUA; what has no groups to fall into."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    statistics = _statistics(model, torch.randn(5, 4).double(), "full")
    for outputs in (False, True):
        assert_close(_factor(statistics, "0", estimate, outputs), _factor(statistics, "0", outputs=outputs), 1e-14)


def test_reduce_lies_below_expand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(1)).double()
    statistics = _statistics(model, torch.randn(4, 2, 4, 5).double())
    reduced, expanded = _factor(statistics, "0", REDUCE), _factor(statistics, "0")
    assert reduced.trace() < expanded.trace()
    assert_close(reduced[-1, -1], expanded[-1, -1], 1e-14)  # both P
    rows = statistics["0"].inputs.sum(1)
    assert_close(reduced, rows.T @ rows / (4 * 20), 1e-14)
    constant = torch.ones(4, 2, 1, 1).double().expand(4, 2, 4, 5) * torch.randn(4, 2, 1, 1).double()
    statistics = _statistics(nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(1)).double(), constant)
    assert_close(_factor(statistics, "0", REDUCE), _factor(statistics, "0"), 1e-13)


_GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (2, 3), "padding": (0, 2), "stride": (2, 1)},
    {"kernel_size": 3, "dilation": 2, "padding": 3, "bias": False},
    {"kernel_size": 1},
]


def _convolution(geometry):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 3, **geometry), nn.Flatten(1)).double()
    return model, torch.randn(5, 4, 6, 5).double()


@pytest.mark.parametrize("geometry", _GEOMETRIES)
def test_sua_is_the_mean_over_taps(geometry):
    model, x = _convolution(geometry)
    statistics = _statistics(model, x)
    exact, sua = _factor(statistics, "0"), _factor(statistics, "0", SUA)
    taps = model[0].weight[0, 0].numel()
    blocks = exact[: 4 * taps, : 4 * taps].unflatten(0, (4, taps)).unflatten(2, (4, taps))
    C = blocks.diagonal(dim1=1, dim2=3).mean(2)
    wanted = torch.kron(C, torch.eye(taps).double())
    wanted = torch.block_diag(wanted, exact[-1:, -1:]) if model[0].bias is not None else wanted
    assert_close(sua, wanted, 1e-13)
    assert_close(sua.trace(), exact.trace(), 1e-13)


def test_sua_is_exact_for_one_pixel_away_from_the_border():
    model, x = _convolution({"kernel_size": 3, "padding": 1, "bias": False})
    x = torch.zeros_like(x)
    x[:, :, 2, 2] = torch.randn(5, 4).double()
    statistics = _statistics(model, x)
    expected = _factor(statistics, "0")
    # Only the mean is the same everywhere: taps that meet each other in one pixel never do in one position.
    assert_close(_factor(statistics, "0", SUA), expected, 1e-14)


@pytest.mark.parametrize("geometry", _GEOMETRIES)
@pytest.mark.parametrize("groups", [2, 4])
def test_groups_are_the_blocks_of_the_exact_factor(geometry, groups):
    model, x = _convolution(geometry)
    statistics = _statistics(model, x)
    exact, grouped = _factor(statistics, "0"), _factor(statistics, "0", Estimate(groups=groups))
    width = model[0].weight[0].numel() // groups
    blocks = [exact[i * width : (i + 1) * width, i * width : (i + 1) * width] for i in range(groups)]
    wanted = torch.block_diag(*blocks, *([exact[-1:, -1:]] if model[0].bias is not None else []))
    assert_close(grouped, wanted, 1e-13)
    assert_close(_factor(statistics, "0", Estimate(groups=1)), exact, 0)
    assert_close(_factor(statistics, "0", Estimate(groups=3)), exact, 0)  # 4 channels do not fall into 3


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{"spatial": "sua"}, {"input_groups": 2}])
@pytest.mark.parametrize("method", ["foof", "kfac"])
def test_direction_is_that_of_the_assembled_factor(method, options, bias):
    """And the state of its blocks is restored bit for bit."""
    model, x = _convolution({"kernel_size": 3, "padding": 1, "bias": bias})

    def gradient():
        parameters = list(model.parameters())
        return torch.cat([p.grad.flatten(1) if p.dim() > 1 else p.grad[:, None] for p in parameters], dim=1).clone()

    def step(pre):
        with pre.capture():
            output = model(x)
        pre.backward(Gaussian().loss(output, torch.ones_like(output)), output)
        return gradient()

    pre = Preconditioning(model, method, damping=0.3, T=1, S=1, order="same", likelihood="gaussian", **options)
    got = step(pre)
    A = pre.method.A.means["0"]
    model.zero_grad()
    Gaussian().loss(model(x), torch.ones(5, 90).double()).mean().backward()
    lambda_A, left = 0.3, torch.eye(3).double()
    if method == "kfac":
        lambdas_A, lambdas_B = pre.method.heuristic_damping(0.3)
        lambda_A = lambdas_A["0"]
        left = torch.linalg.inv(pre.method.B.means["0"] + lambdas_B["0"] * torch.eye(3).double())
    assert_close(got, left @ gradient() @ torch.linalg.inv(A + lambda_A * torch.eye(len(A)).double()), 1e-12)
    again = Preconditioning(model, method, damping=0.3, T=1, S=1, order="same", likelihood="gaussian", **options)
    again.load_state_dict(pre.state_dict())
    if method == "foof":  # whose next step draws no labels
        assert torch.equal(step(again), step(pre))


@pytest.mark.parametrize("samples", [1, 2, 9])
@pytest.mark.parametrize("small", [False, True])
def test_some_samples_are_the_first_ones(samples, small):
    """Also of each micro-batch, and of rows and of moments that were summed up at once."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 3)] if small else [nn.Conv2d(2, 3, 3, padding=1), nn.Flatten()]
    model = nn.Sequential(*layers).double()
    x = torch.randn(6, 4).double() if small else torch.randn(6, 2, 4, 4).double()
    n = min(samples, 6)
    whole, first = _statistics(model, x, "full"), _statistics(model, x[:n], "full")
    estimate = Estimate(samples=samples)
    for outputs in (False, True):
        assert_close(_factor(whole, "0", estimate, outputs), _factor(first, "0", outputs=outputs), 1e-13)


def test_average_over_all_beginnings_is_the_whole():
    """Unbiased: every sample is first equally often."""
    model, x = _convolution({"kernel_size": 3, "padding": 1})
    exact = _factor(_statistics(model, x), "0")
    parts = [_factor(_statistics(model, x.roll(i, 0)), "0", Estimate(samples=2)) for i in range(5)]
    assert_close(torch.stack(parts).mean(0), exact, 1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "stat_samples must be at least 1, got 0"),
        ({"sharing": "expend"}, "sharing must be one of expand, reduce, got 'expend'"),
        ({"spatial": "SUA"}, "spatial must be one of exact, sua, got 'SUA'"),
        ({"groups": 0}, "input_groups must be at least 1, got 0"),
        ({"spatial": "sua", "groups": 2}, "got spatial=sua and input_groups"),
        ({"spatial": "sua", "sharing": "reduce"}, "got spatial=sua and sharing=reduce"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Estimate(**options)
