"""A layer's gradient: every order of multiplication gives the same matrix."""

import pytest
import torch

from kfbench.curvature.gradient import LayerGradient
from tests.properties import assert_close

D_OUT, D_IN = 4, 6


def _gradient(rows, samples=None):
    g, a = torch.randn(rows, D_OUT, dtype=torch.float64), torch.randn(rows, D_IN, dtype=torch.float64)
    return LayerGradient(g, a, samples or rows), g.T @ a / (samples or rows)


@pytest.mark.parametrize("rows", [1, 4, 5, 6, 7])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("dense_first", [True, False])
def test_transform_equals_dense_products(rows, left, right, dense_first):
    gradient, G = _gradient(rows)
    L, R = torch.randn(D_OUT, D_OUT, dtype=torch.float64), torch.randn(D_IN, D_IN, dtype=torch.float64)
    if dense_first:
        gradient = LayerGradient.from_dense(gradient.dense(), rows)
    got = gradient.transform((lambda g: g @ L) if left else None, (lambda a: a @ R) if right else None)
    wanted = (L.T if left else torch.eye(D_OUT).double()) @ G @ (R if right else torch.eye(D_IN).double())
    assert_close(got, wanted, 1e-13)


@pytest.mark.parametrize(("rows", "on_rows"), [(3, {"left", "right"}), (5, {"left"}), (6, set()), (9, set())])
def test_sides_act_on_the_rows_only_where_that_is_cheaper(rows, on_rows):
    """The right factor on the rows iff R < d_out, the left one iff R < d_in."""
    gradient, _ = _gradient(rows)
    seen = set()

    def note(side):
        def act(x):
            if len(x) == rows and rows not in (D_OUT, D_IN):
                seen.add(side)
            return x * 1

        return act

    gradient.transform(note("left"), note("right"))
    assert seen == on_rows


@pytest.mark.parametrize("sizes", [(2, 1), (5, 2, 3), (7,)])
def test_join_is_the_sample_weighted_mean(sizes):
    parts, sums = [], torch.zeros(D_OUT, D_IN, dtype=torch.float64)
    for n in sizes:
        gradient, G = _gradient(n)
        parts.append(gradient)
        sums += G * n
    assert_close(LayerGradient.join(parts).dense(), sums / sum(sizes), 1e-13)


@pytest.mark.parametrize("dense_first", [True, False])
def test_inner_product_with_a_direction(dense_first):
    gradient, G = _gradient(5, samples=3)
    if dense_first:
        gradient.dense()
    direction = torch.randn(D_OUT, D_IN, dtype=torch.float64)
    wanted = sum(G[i, j] * direction[i, j] for i in range(D_OUT) for j in range(D_IN))
    assert_close(gradient.inner(direction), wanted, 1e-13)


def test_join_keeps_rows_on_request():
    """However many they are: what methods of single samples are given by micro-batches."""
    parts = [_gradient(n)[0] for n in (5, 2, 3)]
    joined = LayerGradient.join(parts, keep_rows=True)
    g, a = joined.per_sample()
    assert (g.shape, a.shape) == ((10, 1, D_OUT), (10, 1, D_IN))
    assert torch.equal(a[:, 0], torch.cat([part.inputs for part in parts]))
    assert_close(joined.dense(), LayerGradient.join(parts).dense(), 1e-13)
    with pytest.raises(AssertionError, match="needs_rows"):
        LayerGradient.join(parts).per_sample()


def test_rows_of_a_sample_are_its_positions():
    g, a = torch.randn(3, 4, D_OUT), torch.randn(3, 4, D_IN)
    rows = LayerGradient(g.flatten(0, 1), a.flatten(0, 1), 3).per_sample()
    assert torch.equal(rows[0], g)
    assert torch.equal(rows[1], a)
