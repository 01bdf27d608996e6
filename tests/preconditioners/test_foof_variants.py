"""FOOF's variants beyond their directions: norms, invariances, exact numbers, singular rows."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kfbench.curvature.counts import LayerShape
from kfbench.preconditioners.foof import FOOF
from kfbench.preconditioners.foof_centred import CentredFOOF
from kfbench.preconditioners.foof_kfac_damping import FOOFWithKFACDamping
from kfbench.preconditioners.foof_per_sample import PerSampleFOOF, damped_rows
from kfbench.preconditioners.kfac import KFAC
from kfbench.problems.likelihoods import Gaussian
from kfbench.updates.preconditioning import Preconditioning
from kfbench.wallclock.tasks import layer_shapes
from tests.cases import MODELS, Problem, problem
from tests.properties import LAMBDA, assert_close, backward, directions


def _directions(p, method, damping=LAMBDA):
    pre = Preconditioning(p.model, method, damping=damping, T=1, order="same", seed=3, likelihood=p.likelihood)
    backward(pre, p)
    return directions(p), pre


# D.9: lambda_A of K-FAC.


@pytest.mark.parametrize("model", MODELS)
def test_rescaled_direction_has_kfacs_norm_and_foofs_direction_in_every_layer(model):
    p = problem(model, 7)
    kfac, pre = _directions(p, KFAC())
    rescaled, _ = _directions(p, FOOFWithKFACDamping(rescale="kfac-norm"))
    lambda_A, _ = pre.method.heuristic_damping(LAMBDA)
    for name, got in rescaled.items():
        foof = _directions(p, FOOF(), float(lambda_A[name]))[0][name]
        assert_close(got.norm(), kfac[name].norm(), what=name)
        assert_close(got / got.norm(), foof / foof.norm(), what=name)


def test_dividing_by_lambda_B_is_multiplying_by_lambda_A_over_lambda():
    """As the paper prints it."""
    p = problem("mlp-bias", 7)
    got, pre = _directions(p, FOOFWithKFACDamping())
    lambda_A, _ = pre.method.kfac.heuristic_damping(LAMBDA)
    for name, direction in got.items():
        foof = _directions(p, FOOF(), float(lambda_A[name]))[0][name]
        assert_close(direction, foof * lambda_A[name] / LAMBDA, what=name)


@pytest.mark.parametrize("rescale", ["lambda_B", "kfac-norm"])
def test_gradient_of_zero_gives_a_direction_of_zero(rescale):
    p = problem("mlp-bias", 7)
    pre = Preconditioning(p.model, FOOFWithKFACDamping(rescale=rescale), damping=LAMBDA, T=1, order="same")
    with pre.capture():
        output = p.model(p.x)
    pre.backward(0 * cross_entropy(output, p.y, reduction="none"), output)
    assert all(not direction.any() for direction in directions(p).values())


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="rescale must be one of lambda_B, kfac-norm, got 'norm'"):
        FOOFWithKFACDamping(rescale="norm")
    with pytest.raises(ValueError, match="must be above 0, got 0"):
        _directions(problem("mlp", 7), FOOFWithKFACDamping(), damping=0.0)
    _directions(problem("mlp", 1), FOOFWithKFACDamping(rescale="kfac-norm"), damping=LAMBDA)


# H.2: centred inputs.


def test_centred_direction_is_a_gradient_step_of_a_natural_neural_network():
    """h = V U (a - c) + d with U'U = (Sigma + lambda I)^-1: steps in V and d, written back as W and b."""
    p = problem("mlp-bias", 7)
    layer = p.model[0]
    got = _directions(p, CentredFOOF())[0]["0"]

    c = p.x.mean(0)
    s, Q = torch.linalg.eigh((p.x - c).T @ (p.x - c) / len(p.x) + LAMBDA * torch.eye(5).double())
    U = (Q / s.sqrt()) @ Q.T
    V = (layer.weight.detach() @ torch.linalg.inv(U)).requires_grad_()
    d = (layer.bias + layer.weight @ c).detach().requires_grad_()
    loss = cross_entropy(p.model[1:]((p.x - c) @ U.T @ V.T + d), p.y)
    step_V, step_d = torch.autograd.grad(loss, [V, d])
    weight = (V - step_V) @ U
    bias = d - step_d - weight @ c
    wanted = torch.cat([layer.weight - weight, (layer.bias - bias)[:, None]], dim=1)
    assert_close(got, wanted.detach())


def test_centred_direction_does_not_see_a_shift_of_the_inputs():
    """The same function of shifted inputs, its bias making up for it, moves to the same function."""
    p, shift = problem("mlp-bias", 7), torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0]).double()
    before = _directions(p, CentredFOOF())[0]["0"]
    plain = _directions(p, FOOF())[0]["0"]
    with torch.no_grad():
        p.model[0].bias -= p.model[0].weight @ shift
    shifted = Problem(p.model, p.x + shift, p.y)
    after = _directions(shifted, CentredFOOF())[0]["0"]
    assert_close(after[:, :-1], before[:, :-1])
    assert_close(after[:, -1] + after[:, :-1] @ shift, before[:, -1])
    seen = _directions(shifted, FOOF())[0]["0"]
    assert float((seen[:, :-1] - plain[:, :-1]).norm()) > 0.01 * float(plain.norm())


@pytest.mark.parametrize("model", ["mlp-bias", "conv"])
def test_without_damping_a_bias_makes_centring_no_difference(model):
    """The column of ones already takes up the mean; lambda is where the two methods differ."""
    p = problem(model, 60)
    centred, foof = (_directions(p, method, damping=0.0)[0] for method in (CentredFOOF(), FOOF()))
    for name, layer in p.layers.items():
        difference = float((centred[name] - foof[name]).norm() / foof[name].norm())
        assert (difference < 1e-8) == (layer.bias is not None), f"{name}: {difference}"


# Appendix F: each sample alone.


def test_toy_of_the_foof_paper_is_not_solved_sample_by_sample():
    """Undamped: (-(3,1)/10 + (1,0)) / 2, which still raises the first loss; FOOF's (1, -4) lowers both."""
    x = torch.tensor([[3.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    pre = Preconditioning(model, PerSampleFOOF(), damping=0.0, T=1, likelihood="gaussian")
    with pre.capture():
        output = model(x)
    losses = Gaussian().loss(output, y)
    pre.backward(losses, output)
    assert_close(model.weight.grad, torch.tensor([[0.35, -0.05]], dtype=torch.float64), 1e-14)
    moved = Gaussian().loss((x @ -model.weight.grad.T), y)
    assert moved[0] > losses[0]


@pytest.mark.parametrize(("positions", "d"), [(1, 5), (3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("damping", [0.3, 1e-3])
def test_rows_are_damped_alike_on_either_side(positions, d, damping):
    a = torch.randn(6, positions, d, dtype=torch.float64)
    wanted = torch.stack([rows @ torch.linalg.inv(rows.T @ rows + damping * torch.eye(d).double()) for rows in a])
    assert_close(damped_rows(a, damping), wanted, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("positions", "d"), [(1, 70), (60, 70), (70, 60), (300, 400)])
@pytest.mark.parametrize("damping", [0.0, 1e-12])
def test_singular_rows_do_not_break_the_solve(positions, d, damping, dtype):
    """Repeated positions, and a sample whose inputs are all zero, as a dead layer gives."""
    a = torch.randn(3, 1, d, dtype=dtype).expand(3, positions, d).clone()
    a[1] = 0
    found = damped_rows(a, damping)
    assert found.isfinite().all()
    assert not found[1].any()
    if positions <= d:  # else the inverse has no limit in finite precision, in any of the other directions
        direction = a[0, 0] / a[0, 0].norm()
        reproduced = found[0].T @ a[0] @ direction  # the projection onto the one direction there is
        assert_close(reproduced, direction, 1e-2 if dtype == torch.float32 else 1e-8)


def test_counts_know_the_positions_of_a_sample():
    """3 samples of 4 positions in 6 dimensions: Gram matrices, LU factors and solves of side 4."""
    model = nn.Sequential(nn.Conv2d(6, 5, 1, bias=False), nn.Flatten(), nn.Linear(20, 3))
    trainee = SimpleNamespace(model=model)
    shapes = layer_shapes(trainee, (torch.randn(3, 6, 2, 2), torch.zeros(3)))
    assert shapes == [LayerShape(12, 5, 6, True, 4), LayerShape(3, 3, 21, False, 1)]
    assert PerSampleFOOF().multiply_adds(shapes[0], 0)["apply"] == 3 * (4 * 4 * 6 + 4**3 / 3 + 4 * 4 * 6)
