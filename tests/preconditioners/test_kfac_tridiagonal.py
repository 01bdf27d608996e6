"""Block-tridiagonal K-FAC: the matrix that it inverts, as Martens & Grosse define it, and what keeps it sound."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import LayerStatistics
from kfbench.preconditioners import kfac_tridiagonal
from kfbench.preconditioners.kfac import KFAC
from kfbench.preconditioners.kfac_tridiagonal import TridiagonalKFAC
from kfbench.updates.preconditioning import Preconditioning
from tests import dense
from tests.cases import Problem
from tests.properties import LAMBDA, assert_close, backward, directions, gradient

F64 = torch.float64


def _problem(*widths: int, n: int = 9) -> Problem:
    """A network of these widths with biases, all of one seed."""
    torch.manual_seed(2)
    layers: list[nn.Module] = []
    for d_in, d_out in pairwise(widths):
        layers += [nn.Linear(d_in, d_out), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).double()
    return Problem(model, torch.randn(n, widths[0], dtype=F64), torch.randint(widths[-1], (n,)))


def _preconditioned(p: Problem, method: object, **options: object) -> Preconditioning:
    pre = Preconditioning(p.model, method, **({"damping": LAMBDA, "T": 1, "order": "same"} | options))
    backward(pre, p)
    return pre


def _pairs(p: Problem) -> list[list[tuple[Tensor, Tensor]]]:
    vectors = p.likelihood.full_vectors(p.model(p.x).detach())
    return dense.kronecker_network(p.model, list(p.layers.values()), [(1.0, p.x, vectors)], LAMBDA)


NETWORKS = [(5, 4, 6, 3), (4, 5, 3, 6, 2)]


@pytest.mark.parametrize("widths", NETWORKS, ids=str)
def test_direction_is_the_inverse_of_the_graphical_models_covariance(widths):
    p = _problem(*widths)
    _preconditioned(p, TridiagonalKFAC(fisher="full"))
    F, _ = dense.tridiagonal(_pairs(p))
    wanted = dense.damped_solve(F, {name: gradient(p, name) for name in p.layers}, 0.0)
    for name, got in directions(p).items():
        assert_close(got, wanted[name], what=f"layer {name}")


@pytest.mark.parametrize("widths", NETWORKS, ids=str)
def test_that_matrix_is_the_damped_kronecker_product_near_its_diagonal_and_its_inverse_is_tridiagonal(widths):
    """Martens & Grosse, appendix C: by construction, whatever the factors."""
    pairs = _pairs(_problem(*widths))
    F, sizes = dense.tridiagonal(pairs)
    full = dense.joined_blocks([[torch.kron(B.contiguous(), A.contiguous()) for B, A in row] for row in pairs])
    inverse = torch.linalg.inv(F)
    assert float(torch.linalg.eigvalsh(F).min()) > 0
    rows = list(zip(F.split(sizes), full.split(sizes), inverse.split(sizes), strict=True))
    for i, row in enumerate(rows):
        for j, (own, of_full, of_inverse) in enumerate(zip(*(part.split(sizes, 1) for part in row), strict=True)):
            if abs(i - j) <= 1:
                assert_close(own, of_full, 1e-12, f"block {i}, {j}")
                assert float(of_inverse.norm()) > 1e-6
            else:
                assert float(of_inverse.norm()) < 1e-12 * float(inverse.norm())
                assert float((own - of_full).norm()) > 1e-3 * float(of_full.norm()), "an approximation after all"


def test_formulas_of_the_paper_with_symmetric_roots_give_the_same():
    """Appendix I as printed, matrix after matrix."""
    p = _problem(5, 4, 6, 3)
    _preconditioned(p, TridiagonalKFAC(fisher="full"))
    pairs, V = _pairs(p), [gradient(p, name) for name in p.layers]
    L = len(V)

    def rooted(M: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
        """(K, s) of M^-1/2 D M^-1/2."""
        values, vectors = torch.linalg.eigh(M)
        root = vectors @ (values**-0.5).diag() @ vectors.T
        s, E = torch.linalg.eigh(root @ D @ root)
        return root @ E, s

    Psi, Z = [], []
    for i in range(L):
        B, A = pairs[i][i]
        if i + 1 == L:
            Z.append(torch.linalg.inv(B) @ V[i] @ torch.linalg.inv(A))
            break
        (next_B, next_A), (across_B, across_A) = pairs[i + 1][i + 1], pairs[i][i + 1]
        Psi_B, Psi_A = across_B @ torch.linalg.inv(next_B), across_A @ torch.linalg.inv(next_A)
        Psi.append((Psi_B, Psi_A))
        U = V[i] - Psi_B @ V[i + 1] @ Psi_A.T
        (K_B, s_B), (K_A, s_A) = rooted(B, Psi_B @ across_B.T), rooted(A, Psi_A @ across_A.T)
        Z.append(K_B @ ((K_B.T @ U @ K_A) / (1 - torch.outer(s_B, s_A))) @ K_A.T)
    out = [Z[0], *(Z[i] - Psi[i - 1][0].T @ Z[i - 1] @ Psi[i - 1][1] for i in range(1, L))]
    for got, wanted in zip(directions(p).values(), out, strict=True):
        assert_close(got, wanted)


@pytest.mark.parametrize("fisher", ["sampled", "full", "empirical"])
def test_a_single_layer_is_kfac_bit_for_bit(fisher):
    p = _problem(5, 3)
    _preconditioned(p, TridiagonalKFAC(fisher=fisher))
    tridiagonal = directions(p)
    _preconditioned(p, KFAC(fisher=fisher))
    assert torch.equal(tridiagonal["0"], directions(p)["0"])


def test_neighbours_matter():
    p = _problem(5, 4, 6, 3)
    _preconditioned(p, TridiagonalKFAC(fisher="full"))
    tridiagonal = directions(p)
    _preconditioned(p, KFAC(fisher="full"))
    for name, direction in directions(p).items():
        assert float((direction - tridiagonal[name]).norm()) > 0.01 * float(direction.norm()), name


@pytest.mark.parametrize("order", ["independent", "same"])
def test_averages_of_three_batches_of_different_sizes(order):
    """Every average has the same weights, so that the correlations stay below 1 with hardly any damping."""
    p, m, tiny = _problem(5, 4, 6, 3), 0.7, 1e-6
    pre = Preconditioning(p.model, TridiagonalKFAC(ema=m, fisher="full"), damping=tiny, T=1, order=order)
    seen = []
    for n in (4, 9, 2):
        part = Problem(p.model, p.x[:n] * (1 + n), p.y[:n])
        seen.append((part.x, p.likelihood.full_vectors(p.model(part.x).detach())))
        backward(pre, part)
    known = seen if order == "same" else seen[:2]
    weights = torch.tensor([m**k for k in reversed(range(len(known)))], dtype=F64)
    weights /= weights.sum()
    batches = [(float(w), *batch) for w, batch in zip(weights, known, strict=True)]
    F, _ = dense.tridiagonal(dense.kronecker_network(p.model, list(p.layers.values()), batches, tiny))
    wanted = dense.damped_solve(F, {name: gradient(part, name) for name in p.layers}, 0.0)
    for name, got in directions(p).items():
        assert_close(got, wanted[name], 1e-7, what=f"layer {name}")  # F is conditioned like 1 / tiny
    weights_of = [pre.method.kfac.A._weights, pre.method.kfac.B._weights]
    for across in (pre.method.across_A, pre.method.across_B):
        for name, weight in across._weights.items():
            assert all(own[name] == weight for own in weights_of)


class _Affine(nn.Module):
    """``Omega [tanh(Phi s); 1]``: an activation between two bases (Theorem 1 of Martens & Grosse)."""

    def __init__(self, Phi: Tensor, Omega: Tensor) -> None:
        super().__init__()
        self.Phi, self.Omega = Phi, Omega

    def forward(self, s: Tensor) -> Tensor:
        hidden = torch.tanh(s @ self.Phi.T)
        return torch.cat([hidden, hidden.new_ones(len(s), 1)], dim=1) @ self.Omega.T


class Anywhere(TridiagonalKFAC):
    """Not only on chains: what lies between layers is no elementwise function here."""

    chain = False


@pytest.mark.parametrize("damping", [0.0, LAMBDA])
def test_undamped_updates_do_not_depend_on_the_basis_of_activations(damping):
    """Theorem 1, proven in appendix K: the transformed network moves to the same function. Damping breaks that."""
    widths, n = (3, 4, 5, 3), 40
    p, generator = _problem(*widths, n=n), torch.Generator().manual_seed(1)

    def near_identity(d: int) -> Tensor:
        return torch.eye(d, dtype=F64) + 0.3 * torch.randn(d, d, dtype=F64, generator=generator)

    Omegas = [near_identity(d + 1) for d in widths[:-1]]
    Phis = [*(near_identity(d) for d in widths[1:-1]), torch.eye(widths[-1], dtype=F64)]
    modules: list[nn.Module] = []
    for i, layer in enumerate(p.layers.values()):
        linear = nn.Linear(widths[i] + 1, widths[i + 1], bias=False).double()
        whole = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
        linear.weight.data = torch.linalg.inv(Phis[i]) @ whole @ torch.linalg.inv(Omegas[i])
        modules += [linear] if i == len(Phis) - 1 else [linear, _Affine(Phis[i], Omegas[i + 1])]
    other = nn.Sequential(*modules)
    ones = torch.cat([p.x, torch.ones(n, 1, dtype=F64)], dim=1)
    transformed = Problem(other, ones @ Omegas[0].T, p.y)
    assert_close(other(transformed.x).detach(), p.model(p.x).detach(), 1e-12)
    y = torch.randn(n, widths[-1], dtype=F64)
    moved = []
    for each in (p, transformed):
        # Of a Gaussian output, whose Fisher is no singular one as softmax's is.
        pre = Preconditioning(each.model, Anywhere(fisher="full"), damping=damping, T=1, likelihood="gaussian")
        with pre.capture():
            output = each.model(each.x)
        pre.backward(pre.likelihood.loss(output, y), output)
        torch.optim.SGD(each.model.parameters(), lr=0.1).step()
        moved.append(each.model(each.x).detach())
    if damping == 0:
        assert_close(moved[1], moved[0], 1e-7)  # nothing is damped: factors are inverted as they are
    else:
        assert float((moved[1] - moved[0]).norm()) > 1e-4 * float(moved[0].norm())


def test_layers_follow_each_other_as_they_are_used_not_as_they_are_registered():
    p = _problem(5, 4, 6, 3)

    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.middle, self.first = (copy.deepcopy(p.model[i]) for i in (4, 2, 0))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))

    backwards = Problem(Backwards(), p.x, p.y)
    for each in (p, backwards):
        _preconditioned(each, TridiagonalKFAC(fisher="full"))
    got, wanted = directions(backwards), directions(p)
    for mine, name in (("first", "0"), ("middle", "2"), ("last", "4")):
        assert_close(got[mine], wanted[name], 1e-14)


def test_correlations_of_one_are_refused_and_named():
    """A linear network: the rows of one layer follow from the other's, so that only damping tells them apart."""
    a, h, W = torch.randn(30, 1, 4, dtype=F64), torch.randn(1, 30, 1, 4, dtype=F64), torch.randn(4, 4, dtype=F64)
    method = TridiagonalKFAC()
    method.observe({"one": LayerStatistics(a, h @ W), "other": LayerStatistics(a @ W.T, h)})
    with pytest.raises(
        FloatingPointError, match=r"^layer 'one' and the next are correlated to \S+, which damping 1e-30 "
    ):
        method.refresh(1e-30)
    method.refresh(1e-6)
    assert float(method.couplings["one"].denominator.min()) > 0


def test_factors_across_of_other_weights_break_what_keeps_correlations_below_one():
    torch.manual_seed(0)
    method = TridiagonalKFAC(ema=0.5)
    method.across_A, method.across_B = (kfac_tridiagonal.FactorAverages(0.05) for _ in range(2))
    for scale in (1.0, 3.0):
        a, g = torch.randn(1, 1, 4, dtype=F64), torch.randn(1, 1, 1, 3, dtype=F64)
        layer = LayerStatistics(a * scale, g * scale)
        method.observe({"one": layer, "other": layer})
    with pytest.raises(FloatingPointError, match="correlated"):
        method.refresh(1e-6)


def test_factors_across_of_the_other_shape_would_be_noticed_where_all_widths_are_equal():
    """As every other mistake is in ``tests/mutants.py``, on widths that differ; a transposed factor fits only here."""

    class Transposed(TridiagonalKFAC):
        def observe(self, statistics):
            super().observe(statistics)
            self.across_B.means[next(iter(statistics))].t_()

    p = _problem(4, 4, 4, 4)
    F, _ = dense.tridiagonal(_pairs(p))
    wanted = dense.damped_solve(F, {name: gradient(p, name) for name in p.layers}, 0.0)
    for method, is_right in ((TridiagonalKFAC, True), (Transposed, False)):
        _preconditioned(p, method(fisher="full"))
        errors = [float((got - wanted[name]).norm() / got.norm()) for name, got in directions(p).items()]
        assert (max(errors) < 1e-10) == is_right, errors


def test_what_is_restored_gives_the_same_bits():
    p = _problem(5, 4, 6, 3)
    pre = _preconditioned(p, TridiagonalKFAC())
    restored = TridiagonalKFAC()
    restored.load_state_dict(copy.deepcopy(pre.method.state_dict()))
    V = {name: LayerGradient.from_dense(gradient(p, name), 1) for name in p.layers}
    for got, wanted in zip(restored.apply(V).values(), pre.method.apply(V).values(), strict=True):
        assert torch.equal(got, wanted)


def test_fisher_must_be_one_of_those_there_are():
    with pytest.raises(ValueError, match="fisher must be one of sampled, full, empirical, got 'none'"):
        TridiagonalKFAC(fisher="none")


def test_training_on_no_chain_is_refused_before_anything_is_written(kfbench, tmp_path):
    code, _, err = kfbench("train", "--opt", "kfac-tridiagonal", "--model", "convnet", "--out", "here")
    assert code == 2
    assert "method 'kfac-tridiagonal': '0' is a Conv2d, but accepted is a chain alone" in err
    assert err.count("\n") == 1
