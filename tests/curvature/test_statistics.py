"""Factors against loops and against curvlinops; averages; the symmetric product."""

import pytest
import torch
from curvlinops import KFACLinearOperator
from torch import nn

from kfbench.curvature.averages import FactorAverages
from kfbench.preconditioners.kfac import KFAC
from kfbench.problems.convolutional import convnet, resnet18
from kfbench.problems.likelihoods import Categorical
from kfbench.updates.preconditioning import Preconditioning
from tests import dense
from tests.cases import MODELS, problem
from tests.properties import assert_close, backward

_TYPES = {"full": "type-2", "empirical": "empirical"}


def _factors(p, fisher):
    method = KFAC(ema=0.0, fisher=fisher)
    pre = Preconditioning(p.model, method, damping=1.0, T=1, order="same", likelihood=p.likelihood)
    backward(pre, p)
    return pre.method.A.means, pre.method.B.means


def _factors_of_curvlinops(model, x, y, fisher_type, sharing="expand"):
    """What its K-FAC keeps of one batch, by kind of factor and layer; weight and bias as one matrix."""
    operator = KFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(x, y)],
        fisher_type=fisher_type,
        kfac_approx=sharing,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    operator.compute_kronecker_factors()
    return operator.state_dict()


@pytest.mark.parametrize("fisher", ["full", "empirical"])
@pytest.mark.parametrize("model", ["mlp", "mlp-bias", "conv"])
def test_factors_agree_with_curvlinops(model, fisher):
    """curvlinops divides A, not B, by the P positions: the product is the same."""
    p = problem(model, 5)
    A, B = _factors(p, fisher)
    theirs = _factors_of_curvlinops(p.model, p.x, p.y, _TYPES[fisher])
    for name, layer in p.layers.items():
        positions = len(dense.Rows(p.model, layer).one_sample(p.x[0], torch.ones(3, dtype=p.x.dtype))[0])
        assert_close(A[name], theirs["input_covariances"][name] * positions, what=f"A of {name}")
        assert_close(B[name], theirs["gradient_covariances"][name] / positions, what=f"B of {name}")


def _strided():
    """Stride, padding, dilation and a kernel that is no square, then positions averaged before the loss."""
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(5, 4, (3, 2), padding="same", dilation=(1, 2), bias=False),
        nn.Tanh(),
        nn.Conv2d(4, 3, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


_NETWORKS = {
    "strided": _strided,
    "convnet": lambda: convnet((2, 9, 8), 3, width=3, bias=True),
    "resnet18": lambda: resnet18((2, 9, 8), 3, width=2, norm="none"),
}


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("fisher", ["full", "empirical"])
@pytest.mark.parametrize("network", _NETWORKS)
def test_factors_of_convolutional_networks_agree_with_curvlinops(network, fisher, sharing):
    """KFAC-expand and KFAC-reduce, traces alike too; curvlinops divides A, not B, by the P positions in both."""
    torch.manual_seed(3)
    model = _NETWORKS[network]().double()
    x, y = torch.randn(5, 2, 9, 8, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 2])
    pre = Preconditioning(model, KFAC(ema=0.0, fisher=fisher, sharing=sharing), damping=1.0, T=1, order="same")
    positions = {}

    def count(name, output):
        positions[name] = output[0, 0].numel()

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda m, i, output, name=name: count(name, output))
    with pre.capture():
        output = model(x)
    pre.accumulate(nn.functional.cross_entropy(output, y, reduction="none"), output)
    pre.finish()
    theirs = _factors_of_curvlinops(model, x, y, _TYPES[fisher], sharing)
    assert len(positions) == len(theirs["input_covariances"]) and max(positions.values()) > 1
    for name, P in positions.items():
        assert_close(pre.method.A.means[name], theirs["input_covariances"][name] * P, what=f"A of {name}")
        assert_close(pre.method.B.means[name], theirs["gradient_covariances"][name] / P, what=f"B of {name}")


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("fisher", ["full", "empirical"])
def test_factors_of_sequences_agree_with_curvlinops(fisher, sharing):
    """On [N, T, d]: labels at every position under expand, positions averaged before the loss under reduce.

    A is ours over T in both. With a label at every position its loss is a mean over positions where ours is a sum, so
    its Fisher is ours over T and its B is ours; with one label a sample B is ours times T, as for convolutions.
    """
    torch.manual_seed(3)
    at_every_position, T = sharing == "expand", 6
    body = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)).double()
    model = nn.Sequential(body, _ClassesSecond() if at_every_position else _MeanOverPositions())
    x = torch.randn(4, T, 5, dtype=torch.float64)
    y = torch.randint(3, (4, T) if at_every_position else (4,))
    likelihood = Categorical(class_dim=1 if at_every_position else None)
    method = KFAC(ema=0.0, fisher=fisher, sharing=sharing)
    pre = Preconditioning(model, method, damping=1.0, T=1, order="same", likelihood=likelihood)
    with pre.capture():
        output = model(x)
    pre.backward(likelihood.loss(output, y), output)
    theirs = _factors_of_curvlinops(model, x, y, _TYPES[fisher], sharing)
    for name in ("0.0", "0.2", "0.4"):
        assert_close(method.A.means[name], theirs["input_covariances"][name] * T, what=f"A of {name}")
        got, wanted = method.B.means[name], theirs["gradient_covariances"][name] / T
        ratio = float(got.trace() / wanted.trace())
        assert_close(got, wanted * ratio, what=f"B of {name}")
        assert ratio == pytest.approx(T if at_every_position else 1.0), f"B of {name}: ratio {ratio}"


class _ClassesSecond(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class _MeanOverPositions(nn.Module):
    def forward(self, x):
        return x.mean(1)


def test_foof_is_the_forward_only_type_of_curvlinops():
    p = problem("mlp-bias", 5)
    theirs = _factors_of_curvlinops(p.model, p.x, p.y, "forward-only")
    pre = Preconditioning(p.model, "foof", damping=1.0, T=1, order="same")
    backward(pre, p)
    for name, A in theirs["input_covariances"].items():
        assert_close(pre.method.A.means[name], A)


@pytest.mark.parametrize("model", MODELS)
def test_sampled_output_factor_converges_to_the_full_one(model):
    """The Monte-Carlo mean is unbiased: its error falls as 1/sqrt(draws)."""
    p = problem(model, 3)
    _, exact = _factors(p, "full")
    pre = Preconditioning(p.model, KFAC(fisher="sampled"), damping=1.0, T=1, order="same", likelihood=p.likelihood)
    output, draws = p.model(p.x).detach(), 3000
    generator = torch.Generator().manual_seed(0)
    sums = {name: torch.zeros_like(B) for name, B in exact.items()}
    for _ in range(draws // 100):  # 100 draws as 100 vectors of one call, each of weight 1/100
        vectors = torch.cat([p.likelihood.sampled_vectors(output, generator) for _ in range(100)]) / 10
        with pre.capture() as captured:
            again = p.model(p.x)
        losses = p.likelihood.loss(again, p.y)
        captured.draw("sampled", again, lambda o, f, v=vectors: v, losses)
        statistics = captured.statistics("sampled")
        for name, layer in statistics.items():
            g = layer.output_gradients.flatten(0, 2)
            sums[name] += g.T @ g / len(p.x) / layer.output_gradients.shape[2]
    for name, B in exact.items():
        assert_close(sums[name] / (draws // 100), B, tolerance=0.06, what=f"B of {name} in {model}")


@pytest.mark.parametrize("ema", [0.0, 0.6, 0.95])
def test_average_of_one_observation_is_that_observation(ema):
    rows = torch.randn(6, 1, 5, dtype=torch.float64)
    averages = FactorAverages(ema)
    averages.add("a", rows, divisor=6)
    assert_close(averages.means["a"], rows[:, 0].T @ rows[:, 0] / 6, 1e-14)


def test_average_weights_are_normalised():
    m, observed = 0.7, [torch.randn(4, 3, dtype=torch.float64) for _ in range(5)]
    averages = FactorAverages(m)
    for rows in observed:
        averages.add("a", rows, divisor=4)
    weights = torch.tensor([(1 - m) * m ** (4 - i) for i in range(5)], dtype=torch.float64)
    wanted = sum(w * rows.T @ rows / 4 for w, rows in zip(weights / weights.sum(), observed, strict=True))
    assert_close(averages.means["a"], wanted, 1e-14)


@pytest.mark.parametrize("ema", [-0.1, 1.0, 2.0])
def test_ema_out_of_range_is_refused(ema):
    with pytest.raises(ValueError, match="ema must be in"):
        FactorAverages(ema)
