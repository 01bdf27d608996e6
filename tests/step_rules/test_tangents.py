"""u'F v from tangents of the output: equal to the dense Fisher, for every likelihood, ours and a user's."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_an_input_that_does_not_move_costs_no_third_product(kind, bias):
    """W x and W' x in the first layer, which is given data; W a, W' a and W a' in the second. Biases may stay."""
    layer = nn.Linear(6, 5, bias=bias) if kind == "linear" else nn.Conv1d(6, 5, 2, padding="same", bias=bias)
    other = nn.Linear(5, 3) if kind == "linear" else nn.Conv1d(5, 3, 1)
    model = nn.Sequential(layer, nn.Tanh(), other).double()
    x = torch.randn(*((4, 6) if kind == "linear" else (4, 6, 8)), dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        model[0](x)
    first = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        model(x)
    second = counter.get_total_flops() - first
    vector = {w: torch.randn_like(w) for w in model.parameters() if w is not layer.bias}
    with FlopCounterMode(display=False) as counter:
        output, moved = tangents(model, x, [vector])
    assert counter.get_total_flops() == 2 * first + 3 * second
    assert torch.equal(output, model(x))
    _, expected = torch.func.jvp(
        lambda *weights: torch.func.functional_call(
            model, dict(zip(_names(model, vector), weights, strict=True)), (x,)
        ),
        tuple(w.detach() for w in vector),
        tuple(vector.values()),
    )
    torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-12)


def _names(model, vector):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for parameter in vector]
