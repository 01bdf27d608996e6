"""EKFAC beyond its direction: scales, Theorem 3, curvlinops, appendix C, what it says when it cannot be right."""

import warnings

import pytest
import torch
from curvlinops import EKFACLinearOperator, KFACInverseLinearOperator
from torch import nn

from kfbench.curvature import eigenbasis
from kfbench.curvature.eigenbasis import second_moments
from kfbench.preconditioners.ekfac import EKFAC
from kfbench.preconditioners.ekfac_ra import EKFACRA
from kfbench.preconditioners.kfac import FISHERS, KFAC
from kfbench.updates.preconditioning import Preconditioning
from tests import dense
from tests.cases import METHODS, MODELS, Problem, problem
from tests.properties import LAMBDA, assert_close, backward, directions, gradient, vectors_of

_CASES = {case.fisher: case for case in METHODS if case.name.startswith("ekfac-plain")}
_TYPES = {"full": "type-2", "empirical": "empirical"}


def _basis(method, name):
    basis = method.bases[name]
    return torch.kron(basis.U_B.contiguous(), basis.U_A.contiguous())


def _fisher(p, name, fisher, seed=0):
    return dense.fisher_block(p.model, p.layers[name], p.x, vectors_of(_CASES[fisher], p, seed))


def _assert_scales(pre, p, fisher, seed, what):
    for name in p.layers:
        U = _basis(pre.method, name)
        wanted = (U.T @ _fisher(p, name, fisher, seed) @ U).diag()
        assert_close(pre.method.scales[name].reshape(-1), wanted, what=f"{what}, layer {name}")


@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize("model", MODELS)
def test_scales_are_the_diagonal_of_the_rotated_fisher(model, fisher):
    """Right after a refresh, and in that basis on a later batch, other than the basis was made of."""
    first, second = problem(model, 4, seed=1), problem(model, 3, seed=1)
    later = Problem(first.model, second.x, second.y, first.likelihood)
    options = {"damping": LAMBDA, "T": 9, "order": "same", "likelihood": first.likelihood}
    pre = Preconditioning(first.model, EKFAC(fisher=fisher), **options)
    backward(pre, first)
    _assert_scales(pre, first, fisher, 0, "after the refresh")
    old = {name: S.clone() for name, S in pre.method.scales.items()}
    pre.label_generator.manual_seed(5)
    backward(pre, later)
    _assert_scales(pre, later, fisher, 5, "between refreshes")
    assert all(not torch.equal(pre.method.scales[name], S) for name, S in old.items())


def test_after_a_refresh_the_scales_are_those_of_the_batch_observed_last():
    """Averages over earlier batches stay in the factors."""
    old, new = problem("mlp-bias", 4, seed=1), problem("mlp-bias", 7, seed=1)
    new = Problem(old.model, new.x, new.y)
    pre = Preconditioning(old.model, EKFAC(ema=0.6), damping=LAMBDA, T=1, order="independent")
    backward(pre, old)
    backward(pre, new)  # applied in the old basis, then observed and refreshed
    _assert_scales(pre, new, "empirical", 0, "after the refresh")


def _distances(F, U, *diagonals):
    """Frobenius norms of ``F - U diag(d) U'``."""
    return [float((F - U @ d.reshape(-1).diag() @ U.T).norm()) for d in diagonals]


@pytest.mark.parametrize("fisher", FISHERS)
def test_error_never_exceeds_that_of_kfac(fisher):
    """Theorem 3, after a refresh and between refreshes; and scales of an older basis do exceed it."""
    stale_exceeds = layers = 0
    for seed in range(12):
        first, second = problem("mlp-bias", 7, seed), problem("mlp-bias", 7, seed + 100)
        later = Problem(first.model, second.x, second.y)
        pre = Preconditioning(first.model, EKFAC(ema=0.0, fisher=fisher), damping=LAMBDA, T=3, order="same")
        for p, labels in ((first, 0), (later, 5), (first, 6), (later, 7)):  # refreshed at the first and last but one
            pre.label_generator.manual_seed(labels)
            old = pre.method.scales
            backward(pre, p)
            for name in p.layers:
                F, U = _fisher(p, name, fisher, labels), _basis(pre.method, name)
                kfac = pre.method.bases[name].eigenvalues()
                ekfac, amortised, stale = _distances(F, U, pre.method.scales[name], kfac, old.get(name, kfac))
                assert ekfac <= amortised * (1 + 1e-12), f"{fisher}, seed {seed}, {name}: {ekfac} > {amortised}"
                stale_exceeds, layers = stale_exceeds + (stale > amortised), layers + 1
    assert stale_exceeds > layers / 20, "the inequality would hold for any scales"


@pytest.mark.parametrize("model", ["mlp", "mlp-bias", "conv"])
@pytest.mark.parametrize("fisher", _TYPES)
def test_scales_and_inverse_agree_with_curvlinops(model, fisher):
    """curvlinops divides A, not B, by the P positions: basis, scales and inverse are the same.

    It has neither running averages nor sampled labels from a generator of ours, nor layers used
    twice, nor sequences: there is nothing to compare there.
    """
    p = problem(model, 5)
    operator = EKFACLinearOperator(
        p.model,
        nn.CrossEntropyLoss(),
        list(p.model.parameters()),
        [(p.x, p.y)],
        fisher_type=_TYPES[fisher],
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    operator.compute_eigenvalue_correction()
    theirs = operator.state_dict()["corrected_eigenvalues"]
    pre = Preconditioning(p.model, EKFAC(fisher=fisher), damping=LAMBDA, T=1, order="same")
    backward(pre, p)
    for name in p.layers:
        wanted = theirs[name] if torch.is_tensor(theirs[name]) else next(iter(theirs[name].values()))
        assert_close(pre.method.scales[name], wanted, what=f"S of {name}")

    inverse = KFACInverseLinearOperator(operator, damping=LAMBDA, use_exact_damping=True)
    for name in p.layers:
        G = gradient(p, name)
        inputs = [torch.zeros_like(q) for q in p.model.parameters()]
        outputs = inverse @ _with(p, name, G, inputs)
        assert_close(directions(p)[name], _matrix(p, name, outputs), what=f"inverse product of {name}")


def _places(p, name):
    names = [n for n, _ in p.model.named_parameters()]
    return [names.index(f"{name}.{kind}") for kind in ("weight", "bias") if f"{name}.{kind}" in names]


def _with(p, name, matrix, tensors):
    weight, *bias = _places(p, name)
    columns = tensors[weight][0].numel()
    tensors[weight] = matrix[:, :columns].reshape(tensors[weight].shape)
    for place in bias:
        tensors[place] = matrix[:, columns]
    return tensors


def _matrix(p, name, tensors):
    parts = [tensors[place] for place in _places(p, name)]
    return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)


@pytest.mark.parametrize("model", ["mlp-bias", "conv"])
def test_damping_of_both_factors_is_kfac_where_the_scales_are_products(model):
    """Appendix C: with S = s_B s_A', EKFAC is K-FAC with heuristic damping exactly."""
    p = problem(model, 7)
    kfac = Preconditioning(p.model, KFAC(fisher="full"), damping=LAMBDA, T=9, order="same")
    backward(kfac, p)
    wanted = directions(p)
    pre = Preconditioning(
        p.model, EKFAC(fisher="full", damping_init="factors-pi"), damping=LAMBDA, T=9, S=1, order="same"
    )
    backward(pre, p)
    assert any(float((directions(p)[name] - wanted[name]).norm()) > 1e-3 for name in wanted)
    method = pre.method
    method.scales = {name: basis.eigenvalues() for name, basis in method.bases.items()}
    backward(pre, p)
    for name, got in directions(p).items():
        assert_close(got, wanted[name], what=name)


def test_samples_a_few_at_a_time_give_the_same_moments(monkeypatch):
    g, a = torch.randn(2, 5, 3, 4, dtype=torch.float64), torch.randn(5, 3, 6, dtype=torch.float64)
    whole = second_moments(g, a)
    for numbers in (1, 4 * 6 * 2):
        monkeypatch.setattr(eigenbasis, "_CHUNK", numbers)
        assert_close(second_moments(g, a), whole, 1e-14)


def test_running_average_forgets_at_a_refresh_and_only_there():
    """Between refreshes S <- d S + (1 - d) N (U' G U)^2, over any number of updates."""
    p, decay = problem("mlp-bias", 7), 0.75
    pre = Preconditioning(p.model, EKFACRA(), damping=LAMBDA, T=4, order="same")
    wanted = {}
    for step in range(9):
        backward(pre, p)
        for name, basis in pre.method.bases.items():
            begun = wanted[name] if step % 4 != 3 and step else basis.eigenvalues()
            squared = (basis.U_B.T @ gradient(p, name) @ basis.U_A) ** 2
            wanted[name] = decay * begun + (1 - decay) * 7 * squared
            assert_close(pre.method.scales[name], wanted[name], what=f"update {step}, {name}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EKFAC(fisher="none"), "fisher must be one of sampled, full, empirical, got 'none'"),
        (lambda: EKFAC(damping_init="pi"), "damping_init must be one of plain, factors, factors-pi, got 'pi'"),
        (lambda: EKFACRA(scale_decay=1.0), r"scale_decay must be in \[0, 1\), got 1.0"),
        (lambda: EKFACRA(fisher="true"), "fisher must be one of"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_refresh_without_an_observation_is_refused():
    p = problem("mlp", 4)
    pre = Preconditioning(p.model, EKFAC(), damping=LAMBDA, T=1, order="same")
    backward(pre, p)
    with pytest.raises(RuntimeError, match="observe a batch before each refresh"):
        pre.method.refresh(LAMBDA)


def _with_batch_norm():
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()


def _warnings(model, method):
    p = problem("mlp", 7)
    pre = Preconditioning(model, method, damping=LAMBDA, T=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            backward(pre, Problem(model, p.x, p.y))
    return [str(w.message) for w in caught if "normalise by the batch" in str(w.message)]


def test_batch_norm_is_named_to_methods_of_single_samples():
    [message] = _warnings(_with_batch_norm(), EKFAC())
    assert message.startswith("'1' normalise by the batch")
    model = _with_batch_norm()
    model[1].eval()
    assert not _warnings(model, EKFAC())
    assert not _warnings(_with_batch_norm(), EKFACRA())
    assert not _warnings(_with_batch_norm(), KFAC())
