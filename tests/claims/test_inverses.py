"""The inverse of the whole Kronecker-factored Fisher, where one of the approximate inverses is exact."""

from itertools import pairwise

import pytest
from torch import nn

from kfbench.claims.inverses import LABELS, inverse_errors
from kfbench.config.load import load_config

FLAGS = {"dataset": "fashion-mnist-1k", "train_samples": 60, "batch_size": 20, "updates": 2, "seeds": 2}


def _network(*hidden):
    def build(input_shape, outputs):
        sizes = (4, *hidden, outputs)
        layers = [part for d, e in pairwise(sizes) for part in (nn.Linear(d, e, bias=False), nn.Tanh())]
        return nn.Sequential(nn.AvgPool2d(14), nn.Flatten(), *layers[:-1])

    return build


one, two, three = _network(), _network(3), _network(3, 2)


def _errors(name):
    config = load_config(
        specs=["kfac-tridiagonal:T=1,order=same,damping=0.3,lr=0.01,warmup_batches=0"],
        flags=FLAGS | {"model": f"tests.claims.test_inverses:{name}"},
        command="train",
    )
    errors = inverse_errors(config)
    assert list(errors) == list(LABELS) and all(sorted(by_seed) == [0, 1] for by_seed in errors.values())
    return {label: max(by_seed.values()) for label, by_seed in errors.items()}


def test_one_layer_has_a_kronecker_product_alone():
    assert _errors("one") == pytest.approx(dict.fromkeys(LABELS, 0.0), abs=1e-10)


def test_two_layers_are_tridiagonal_and_coupled():
    errors = _errors("two")
    assert errors["kfac-tridiagonal"] < 1e-10 and errors["kfac-tridiagonal, diagonal blocks"] < 1e-10
    assert errors["kfac"] > 0.01 and errors["kfac, diagonal blocks"] > 0.001


def test_with_three_layers_both_are_approximate():
    errors = _errors("three")
    assert 1e-6 < errors["kfac-tridiagonal"] < errors["kfac"]
