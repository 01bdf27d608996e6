"""KFLR beyond its direction: B from Jacobians and the output Hessian, from random columns, and others' codes."""

import pytest
import torch
from curvlinops import KFACLinearOperator
from torch import nn

from kfbench.config.methods import resolve_methods
from kfbench.preconditioners.kfac import KFAC
from kfbench.preconditioners.kflr import KFLR
from kfbench.updates.preconditioning import Preconditioning
from tests.cases import Problem, problem
from tests.preconditioners.botev import exact_B
from tests.properties import LAMBDA, assert_close, backward, directions

CHAINS = ("mlp", "mlp-bias", "autoencoder", "autoencoder-sigmoid")  # of all three likelihoods


def _observed(p, method, micro=None, **options):
    pre = Preconditioning(p.model, method, damping=LAMBDA, T=1, order="same", likelihood=p.likelihood, **options)
    backward(pre, p, micro)
    return pre


@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize("model", CHAINS)
def test_B_is_of_the_exact_output_hessian(model, micro):
    p = problem(model, 7)
    pre = _observed(p, KFLR(), micro)
    for name, layer in p.layers.items():
        assert_close(pre.method.B.means[name], exact_B(p, layer), what=f"B of {name}")


@pytest.mark.parametrize("model", [*CHAINS, "shared", "conv"])
def test_it_is_kfac_with_all_labels(model):
    p = problem(model, 5)
    _observed(p, KFAC(fisher="full"))
    wanted = directions(p)
    _observed(p, KFLR())
    for name, got in directions(p).items():
        assert torch.equal(got, wanted[name]), name


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("model", CHAINS)
def test_random_columns_converge_to_the_exact_B(model, columns):
    """They are unbiased: the error of the mean falls as 1/sqrt(draws)."""
    p, draws = problem(model, 3), 4000
    x, y = (torch.cat([rows] * draws) for rows in (p.x, p.y))  # each copy of a sample has signs of its own
    pre = _observed(Problem(p.model, x, y, p.likelihood), KFLR(fisher_columns=columns))
    for name, layer in p.layers.items():
        assert_close(pre.method.B.means[name], exact_B(p, layer), tolerance=0.06, what=f"B of {name}")


def test_columns_are_drawn_anew_from_the_generator_of_the_labels():
    p = problem("mlp", 5)
    pre = Preconditioning(p.model, KFLR(fisher_columns=2), damping=LAMBDA, seed=4)
    output = p.model(p.x).detach()
    before = torch.get_rng_state()
    first, second = (pre.output_fisher.vectors(output, "2 columns") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before), "the dropout of training goes on as it was"
    assert first.shape == (2, 5, 3) and not torch.equal(first, second)
    pre.label_generator.manual_seed(4)
    assert torch.equal(pre.output_fisher.vectors(output, "2 columns"), first)


def test_methods_of_other_columns_share_nothing_those_of_the_same_do():
    p = problem("mlp", 5)
    leader = Preconditioning(p.model, KFLR(fisher_columns=2), damping=LAMBDA, T=1, order="same")
    same, other, every = (
        Preconditioning(p.model, KFLR(fisher_columns=k), damping=LAMBDA, T=1, order="same") for k in (2, 1, None)
    )
    for pre in (same, other, every):
        leader.forward.join(pre.turn)
    backward(leader, p)
    B = {name: [pre.method.B.means[name] for pre in (leader, same, other, every)] for name in p.layers}
    for name, (mine, alike, one, exact) in B.items():
        assert torch.equal(mine, alike)
        assert not torch.equal(mine, one) and not torch.equal(mine, exact)
        assert_close(exact, exact_B(p, p.layers[name]))


@pytest.mark.parametrize("model", ["mlp", "mlp-bias"])
def test_factors_agree_with_curvlinops(model):
    p = problem(model, 5)
    operator = KFACLinearOperator(
        p.model,
        nn.CrossEntropyLoss(),
        list(p.model.parameters()),
        [(p.x, p.y)],
        fisher_type="type-2",
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    operator.compute_kronecker_factors()
    theirs, method = operator.state_dict(), _observed(p, KFLR()).method
    for name in p.layers:
        assert_close(method.A.means[name], theirs["input_covariances"][name], what=f"A of {name}")
        assert_close(method.B.means[name], theirs["gradient_covariances"][name], what=f"B of {name}")


def backpack_factors(p, extension):
    """name -> [B, A] of BackPACK for the mean loss of a categorical problem; B alone where there is a bias."""
    backpack = pytest.importorskip("backpack")
    extend, extension = backpack.extend, getattr(backpack.extensions, extension)
    model, loss = extend(p.model, use_converter=False), extend(nn.CrossEntropyLoss())
    with backpack.backpack(extension()):
        loss(model(p.x), p.y).backward()
    found = {name: getattr(layer.weight, extension().savefield) for name, layer in p.layers.items()}
    return {name: [factor.detach() for factor in factors] for name, factors in found.items()}


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("model", ["mlp", "mlp-bias"])
def test_factors_agree_with_backpack(model, n):
    """BackPACK treats the bias apart, so its A has no column of ones."""
    p = problem(model, n)
    theirs, method = backpack_factors(problem(model, n), "KFLR"), _observed(p, KFLR()).method
    for name, (B, A) in theirs.items():
        d = len(A)
        assert_close(method.A.means[name][:d, :d], A, what=f"A of {name}")
        assert_close(method.B.means[name], B, what=f"B of {name}")


@pytest.mark.parametrize("columns", [None, 2])
def test_behind_batch_norm_it_says_that_B_is_right_in_the_mean_alone(columns):
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    p = Problem(model, torch.randn(6, 5).double(), torch.randint(3, (6,)))
    with pytest.warns(UserWarning, match="'1' normalise by the batch"):
        _observed(p, KFLR(fisher_columns=columns))


def test_columns_are_named_by_the_label():
    specs = ["kflr", "kflr:fisher_columns=3", "kflr:fisher_columns=1"]
    labels = [method.label for method in resolve_methods(specs, {})]
    assert labels == ["kflr", "kflr-fisher_columns=3", "kflr-fisher_columns=1"]


def test_no_columns_are_one_sentence(kfbench):
    with pytest.raises(ValueError, match="fisher_columns must be at least 1, got 0"):
        KFLR(fisher_columns=0)
    for arguments in (("--opt", "kflr:fisher_columns=0"), ("--opt", "kflr", "--fisher-columns", "0")):
        code, _, err = kfbench("train", *arguments, "--quick")
        assert code == 2 and "fisher_columns" in err and "0" in err and "Traceback" not in err
