"""Gauss-Newton by conjugate gradient: towards the natural gradient of all labels, and no further than asked."""

import pytest
import torch

from kfbench.curvature.fisher_rows import as_gradients
from kfbench.preconditioners.gn_cg import GaussNewtonCG
from kfbench.problems.likelihoods import Categorical
from kfbench.updates.preconditioning import Preconditioning
from tests import dense
from tests.cases import problem
from tests.preconditioners.test_natural import NETWORKS, Prepared
from tests.properties import assert_close, backward, directions, equal, gradient


def _after_observing(p, **options):
    """gn-cg with the rows that a natural gradient of all labels has taken in."""
    method = GaussNewtonCG(**options)
    method.observe(p.method.newest._statistics)
    method.refresh(0.3)
    return method


def _solve(method, p):
    return method.apply(as_gradients(p.G))


def _error(got, wanted):
    return float(sum((got[n] - wanted[n]).square().sum() for n in wanted) ** 0.5) / float(
        sum(w.square().sum() for w in wanted.values()) ** 0.5
    )


@pytest.mark.parametrize("block_diagonal", [False, True])
@pytest.mark.parametrize("n", [3, 70])
@pytest.mark.parametrize("network", NETWORKS)
def test_converges_to_the_natural_gradient_of_all_labels(network, n, block_diagonal):
    p = Prepared(network, n, "full", block_diagonal)
    errors = [
        _error(_solve(_after_observing(p, block_diagonal=block_diagonal, tolerance=t), p), p.directions)
        for t in (1e-1, 1e-4, 1e-12)
    ]
    assert errors[0] >= errors[1] >= errors[2]
    assert errors[2] < 1e-10
    assert errors[0] > 1e-6, "a loose tolerance stops early"


def test_residual_is_what_the_tolerance_says():
    p = Prepared("mlp", 20, "full")
    F = p.fisher()
    for tolerance in (0.3, 1e-2, 1e-5):
        x = torch.cat([d.flatten() for d in _solve(_after_observing(p, tolerance=tolerance), p).values()])
        b = torch.cat([g.flatten() for g in p.G.values()])
        residual = b - F @ x - 0.3 * x
        assert float(residual.norm() / b.norm()) <= tolerance * (1 + 1e-9)


def test_ends_within_one_iteration_more_than_the_rank():
    """F has rank K N at most, so F + lambda I has K N + 1 distinct eigenvalues at most."""
    p = Prepared("autoencoder", 1, "full")
    method = _after_observing(p, tolerance=1e-9)
    _solve(method, p)
    assert max(method.iterations.values()) <= 4 + 1


def test_iterations_are_bounded():
    p = Prepared("mlp", 20, "full")
    method = _after_observing(p, tolerance=1e-12, max_iterations=2)
    _solve(method, p)
    assert list(method.iterations.values()) == [2]


def test_warm_start_begins_at_the_last_direction():
    p = Prepared("mlp", 20, "full")
    warm, cold = _after_observing(p), _after_observing(p, warm_start=False)
    for method in (warm, cold):
        _solve(method, p)
        first = dict(method.iterations)
        _solve(method, p)
        assert list(method.iterations.values()) == ([0] if method is warm else list(first.values()))
    assert not cold.solutions


def test_optimizers_that_change_gradients_in_place_do_not_reach_the_next_start():
    p = Prepared("mlp", 20, "full")
    method = _after_observing(p)
    before = {name: d.clone() for name, d in _solve(method, p).items()}
    for direction in _solve(method, p).values():
        direction.mul_(7)
    assert equal(before, _solve(method, p))


def test_gaussian_outputs_of_one_dimension_give_least_squares():
    """Linear model, squared loss: F + lambda I is the ridge matrix, known in closed form."""
    model = torch.nn.Linear(3, 1, bias=False).double()
    x, y = torch.randn(9, 3).double(), torch.randn(9, 1).double()
    method = GaussNewtonCG(tolerance=1e-13)
    pre = Preconditioning(model, method, damping=0.5, T=1, likelihood="gaussian")
    with pre.capture():
        output = model(x)
    pre.backward(pre.likelihood.loss(output, y), output)
    ridge = x.T @ x / 9 + 0.5 * torch.eye(3).double()
    gradient = x.T @ (x @ model.weight.T - y) / 9
    assert_close(model.weight.grad.T, torch.linalg.solve(ridge, gradient.detach()))


def test_independent_order_is_not_offered():
    with pytest.raises(ValueError, match="order must be one of same, got 'independent'"):
        Preconditioning(problem("mlp", 3).model, "gn-cg", damping=1.0, order="independent")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tolerance": 0.0}, "between 0 and 1, got 0.0"),
        ({"tolerance": 1.0}, "between 0 and 1, got 1.0"),
        ({"max_iterations": 0}, "at least 1, got 0"),
    ],
)
def test_wrong_options_are_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        GaussNewtonCG(**options)


def test_no_damping_is_one_sentence():
    p = problem("mlp", 3)
    pre = Preconditioning(p.model, "gn-cg", damping=0.0)
    with pytest.raises(ValueError, match="above 0 for Gauss-Newton, got 0"):
        backward(pre, p)


def test_layers_together_and_apart_differ():
    p = problem("mlp-bias", 7)
    found = []
    for block_diagonal in (False, True):
        backward(Preconditioning(p.model, "gn-cg", damping=0.3, block_diagonal=block_diagonal, tolerance=1e-12), p)
        found.append(directions(p))
    vectors = Categorical().full_vectors(p.model(p.x).detach())
    wanted = [
        dense.damped_solve(dense.fisher(p.model, list(p.layers.values()), p.x, vectors), _gradients(p), 0.3),
        {n: dense.damped_solve(dense.fisher_block(p.model, m, p.x, vectors), {n: G}, 0.3)[n] for (n, m), G in _each(p)},
    ]
    assert max(_error(got, w) for got, w in zip(found, wanted, strict=True)) < 1e-10
    assert _error(*found) > 0.01


def _gradients(p):
    return {name: gradient(p, name) for name in p.layers}


def _each(p):
    return zip(p.layers.items(), _gradients(p).values(), strict=True)
