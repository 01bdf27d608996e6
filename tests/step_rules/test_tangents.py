"""u'F v from tangents of the output: equal to the dense Fisher, for every likelihood, ours and a user's."""

import pytest
import torch

from kfbench.step_rules.tangents import fisher_products, tangents
from tests import dense
from tests.cases import MODELS, problem
from tests.properties import assert_close


def _vectors(p, count):
    return [{w: torch.randn_like(w) for w in p.model.parameters()} for _ in range(count)]


def _flat(p, vector):
    """In the order of the dense Fisher: layer by layer, the bias as the last column."""
    parts = []
    for layer in p.layers.values():
        W = vector[layer.weight].flatten(1)
        parts.append(torch.cat([W, vector[layer.bias][:, None]], 1) if layer.bias is not None else W)
    return torch.cat([part.flatten() for part in parts])


class OnlyColumns:
    """A user's likelihood: it has the columns of a root, no product."""

    def __init__(self, likelihood):
        self.full_vectors = likelihood.full_vectors


@pytest.mark.parametrize("name", ["mlp", "mlp-bias", "conv", "autoencoder", "autoencoder-sigmoid"])
@pytest.mark.parametrize("own", [False, True])
def test_products_are_those_of_the_dense_fisher(name, own):
    p = problem(name, 4)
    F = dense.fisher(p.model, list(p.layers.values()), p.x, p.likelihood.full_vectors(p.model(p.x).detach()))
    vectors = _vectors(p, 2)
    output, *moved = tangents(p.model, p.x, vectors)
    got = fisher_products(OnlyColumns(p.likelihood) if own else p.likelihood, output, moved) / len(p.x)
    flat = torch.stack([_flat(p, v) for v in vectors])
    assert_close(got, flat @ F @ flat.T, 1e-10, what=name)


@pytest.mark.parametrize("name", ["shared", "sequence"])
def test_tangents_are_finite_differences(name):
    """Also where a layer is used several times, of which the dense Fisher knows nothing."""
    assert name in MODELS
    p = problem(name, 3)
    (vector,) = _vectors(p, 1)
    output, moved = tangents(p.model, p.x, [vector])
    step = 1e-6
    with torch.no_grad():
        for w, v in vector.items():
            w += step * v
        ahead = p.model(p.x)
    assert_close(moved.detach(), ((ahead - output) / step).detach(), 1e-4, what=name)
