"""Products with the rows of U against U itself, formed by einsum; and the Fisher that they make."""

import pytest
import torch
from curvlinops import EFLinearOperator, GGNLinearOperator
from torch import nn

from kfbench.curvature import fisher_rows
from kfbench.curvature.fisher_rows import FisherRows, LayerRows, NewestRows, as_gradients
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import LayerStatistics
from kfbench.preconditioners.natural import NaturalGradient
from kfbench.problems.likelihoods import Categorical
from kfbench.updates.preconditioning import Preconditioning
from tests import dense
from tests.cases import MODELS, problem
from tests.properties import assert_close, backward, equal

# (K, N, P, d_out, d_in): Gram matrices by pairs, by gradients, and both with a chunk cut off.
SHAPES = [(1, 5, 1, 4, 3), (3, 4, 1, 2, 6), (2, 3, 2, 20, 15), (1, 4, 2, 20, 15), (2, 4, 5, 3, 4), (1, 6, 9, 2, 3)]
CHUNKS = [1, 50, 2**22]


def _rows(K, N, P, d_out, d_in):
    return LayerRows(torch.randn(N, P, d_in).double(), torch.randn(K, N, P, d_out).double())


def _formed(rows):
    """U [K N, d_out d_in]"""
    return torch.einsum("knpo,npi->knoi", rows.output_gradients, rows.inputs).flatten(2).flatten(0, 1)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gram_matrix_equals_that_of_the_formed_rows(shape, chunk, monkeypatch):
    monkeypatch.setattr(fisher_rows, "_CHUNK", chunk)
    rows = _rows(*shape)
    U = _formed(rows)
    for method in (rows.add_gram, rows._add_gram_by_pairs, rows._add_gram_by_gradients):
        total = torch.full((len(U), len(U)), 0.5, dtype=torch.float64)
        method(total)
        assert_close(total - 0.5, U @ U.T, 1e-13, what=method.__name__)


@pytest.mark.parametrize("rows_of_v", [0, 1, "as many", 40])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_equal_those_of_the_formed_rows(shape, rows_of_v):
    """The vector known as rows, fewer, as many or more than those of U, or as a matrix."""
    K, N, P, d_out, d_in = shape
    rows_of_v = N * P if rows_of_v == "as many" else rows_of_v
    rows = _rows(*shape)
    U, w = _formed(rows), torch.randn(K, N).double()
    if rows_of_v:
        v = LayerGradient(torch.randn(rows_of_v, d_out).double(), torch.randn(rows_of_v, d_in).double(), 7)
    else:
        v = LayerGradient.from_dense(torch.randn(d_out, d_in).double(), 7)
    fresh = LayerGradient(v.output_gradients, v.inputs, 7) if rows_of_v else v
    assert_close(rows.weighted_sum(w).flatten(), U.T @ w.flatten(), 1e-13)
    wanted = (v.dense().flatten() - U.T @ w.flatten()) * 0.3
    for known in (v, fresh):  # as a matrix by now; as rows
        assert_close(rows.dot(known).flatten(), U @ v.dense().flatten(), 1e-13)
        assert_close(rows.remainder(known, w, 0.3).flatten(), wanted, 1e-13)


@pytest.mark.parametrize("K", [1, 3])
def test_gradient_of_the_same_batch_shares_its_inputs(K):
    """One product instead of two; the same numbers as with a copy of the inputs."""
    a = torch.randn(5, 1, 8).double()
    rows, w = LayerRows(a, torch.randn(K, 5, 1, 6).double()), torch.randn(K, 5).double()
    g = torch.randn(5, 6).double()
    shared, apart = LayerGradient(g, a.flatten(0, 1), 5), LayerGradient(g, a.flatten(0, 1).clone(), 5)
    assert_close(rows.remainder(shared, w, 2.0), rows.remainder(apart, w, 2.0), 1e-14)
    U = _formed(rows)
    assert_close(rows.remainder(shared, w, 2.0).flatten(), 2 * (shared.dense().flatten() - U.T @ w.flatten()), 1e-13)


def test_inputs_changed_in_place_are_an_error():
    rows = _rows(1, 5, 1, 4, 3)
    rows.inputs.mul_(2)
    v = LayerGradient.from_dense(torch.randn(4, 3).double(), 1)
    for use in (lambda: rows.dot(v), lambda: rows.remainder(v, torch.ones(1, 5).double(), 1.0)):
        with pytest.raises(RuntimeError, match="changed in place"):
            use()


def test_newest_rows_are_in_force_from_the_refresh_on():
    newest = NewestRows(False)
    with pytest.raises(RuntimeError, match="no Fisher yet"):
        _ = newest.rows
    batches = [{"a": LayerStatistics(torch.randn(n, 1, 3), torch.randn(2, n, 1, 4))} for n in (5, 6)]
    newest.observe(batches[0])
    newest.refresh()
    newest.observe(batches[1], points=4)
    assert newest.rows.points == 5
    restored = NewestRows(False)
    restored.load_state_dict(newest.state_dict())
    assert equal(restored.state_dict(), newest.state_dict())
    assert restored.rows.points == 5
    assert restored.refresh().points == 4
    assert restored.rows.count == 8
    assert restored.refresh().points == 4, "without a new batch the rows stay"


def _observed(p, fisher, block_diagonal=False, likelihood="categorical"):
    method = NaturalGradient(fisher=fisher, block_diagonal=block_diagonal)
    pre = Preconditioning(p.model, method, damping=1.0, T=1, order="same", likelihood=likelihood)
    backward(pre, p)
    return method.newest.rows


def _random_vector(p):
    """(one matrix a layer, the same as one tensor a parameter)"""
    matrices, tensors = {}, []
    for name, layer in p.layers.items():
        tensors.append(torch.randn_like(layer.weight))
        matrices[name] = tensors[-1].flatten(1)
        if layer.bias is not None:
            tensors.append(torch.randn_like(layer.bias))
            matrices[name] = torch.cat([matrices[name], tensors[-1][:, None]], dim=1)
    return matrices, tensors


@pytest.mark.parametrize("fisher", ["full", "empirical"])
@pytest.mark.parametrize("model", [name for name in MODELS if not name.startswith(("autoencoder", "tokens"))])
def test_fisher_products_agree_with_curvlinops(model, fisher):
    """The Gauss-Newton matrix of the cross-entropy is the Fisher of all labels; theirs are means over samples too."""
    p = problem(model, 5)
    kind = GGNLinearOperator if fisher == "full" else EFLinearOperator
    theirs = kind(p.model, nn.CrossEntropyLoss(), list(p.model.parameters()), [(p.x, p.y)], check_deterministic=False)
    rows = _observed(p, fisher)
    v, tensors = _random_vector(p)
    wanted = theirs @ tensors
    form = sum((a * b).sum() for a, b in zip(wanted, tensors, strict=True))
    assert_close(rows.quadratic_form(v), form.detach())
    got = rows.fisher_product(v)
    for name, layer in p.layers.items():
        parts = [wanted.pop(0).detach().flatten(1)]
        if layer.bias is not None:
            parts.append(wanted.pop(0).detach()[:, None])
        assert_close(got[name], torch.cat(parts, dim=1), what=f"layer {name}")


def test_block_diagonal_products_are_those_of_each_layer_alone():
    p = problem("conv", 4)
    whole, blocks = _observed(p, "empirical"), _observed(p, "empirical", block_diagonal=True)
    v, _ = _random_vector(p)
    for name in p.layers:
        alone = blocks.part(name)
        assert_close(blocks.fisher_product(v)[name], alone.fisher_product({name: v[name]})[name], 1e-14)
        wanted = dense.fisher_block(p.model, p.layers[name], p.x, _empirical_vectors(p)) @ v[name].flatten()
        assert_close(alone.fisher_product({name: v[name]})[name].flatten(), wanted)
    assert_close(sum(blocks.grams().values()), next(iter(whole.grams().values())), 1e-13)


def _empirical_vectors(p):
    leaf = p.model(p.x).detach().requires_grad_()
    return torch.autograd.grad(Categorical().loss(leaf, p.y).sum(), leaf)[0][None]


@pytest.mark.parametrize("model", ["mlp-bias", "conv"])
def test_sampled_fisher_converges_to_the_full_one(model):
    """The mean of F v over independent draws of labels lies within 5 standard errors of the exact F v everywhere."""
    p, draws = problem(model, 4), 2000
    exact = _observed(p, "full")
    v, _ = _random_vector(p)
    output, generator = p.model(p.x).detach(), torch.Generator().manual_seed(0)
    vectors = torch.cat([Categorical().sampled_vectors(output, generator) for _ in range(draws)])
    # Backpropagation is linear: the rows of any vector follow from those of the K columns of the identity.
    basis = dense.point_gradients(p.model, list(p.layers.values()), p.x, _identity(output))
    U = torch.einsum("dnc,cnt->dnt", vectors, basis.view(output.shape[1], len(p.x), -1))
    flat = torch.cat([matrix.flatten() for matrix in v.values()])
    drawn = torch.einsum("dnt,dn->dt", U, U @ flat) / len(p.x)
    error = drawn.mean(0) - torch.cat([m.flatten() for m in exact.fisher_product(v).values()])
    standard_error = drawn.std(0) / draws**0.5
    assert float((error.abs() / (standard_error + 1e-12)).max()) < 5


def _identity(output):
    return torch.eye(output.shape[1], dtype=output.dtype)[:, None, :].expand(-1, len(output), -1)


def test_vectors_of_a_mapping_have_no_rows():
    v = {"a": torch.randn(3, 4)}
    assert len(as_gradients(v)["a"].inputs) == 0
    assert torch.equal(as_gradients(v)["a"].dense(), v["a"])


def test_whole_network_is_one_block():
    rows = {name: _rows(2, 5, 1, 4, 3) for name in "ab"}
    assert list(FisherRows(rows).blocks.values()) == [["a", "b"]]
    assert list(FisherRows(rows, block_diagonal=True).blocks.values()) == [["a"], ["b"]]
    assert FisherRows(rows).count == 10
