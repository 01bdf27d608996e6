"""Models: the published widths, what is linear, how weights start, and what a user's own may return."""

import math

import pytest
import torch
from torch import nn

from kfbench.config.problem_table import MODELS
from kfbench.problems.models import build_model

AUTOENCODERS = ("autoencoder", "autoencoder-sigmoid")
IMAGE = (1, 28, 28)


def _linear(model):
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def _widths(model):
    layers = _linear(model)
    return [layers[0].in_features, *(layer.out_features for layer in layers)]


def test_every_registered_model_is_built():
    for name, entry in MODELS.items():
        if entry.sequential:
            tokens = torch.zeros(3, 7, dtype=torch.long)
            assert build_model(name, (7,), 11, width=8)(tokens).shape == (3, 7, 11), name
            continue
        options = {"width": 8} if MODELS[name].width else {}
        model = build_model(name, (1, 32, 33), 32 * 33, **options)
        assert model(torch.zeros(3, 1, 32, 33)).shape == (3, 32 * 33), name


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.width])
def test_default_widths_are_those_of_the_table(name):
    with torch.device("meta"):
        models = [build_model(name, (1, 32, 32), 1024, **options) for options in ({}, {"width": MODELS[name].width})]
    shapes = [[p.shape for p in model.parameters()] for model in models]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_widths_of_the_paper(name):
    assert _widths(build_model(name, IMAGE, 784)) == [784, 1000, 500, 250, 30, 250, 500, 1000, 784]


@pytest.mark.parametrize("width", [2000, 200])
def test_widths_of_the_papers_on_faces(width):
    model = build_model("autoencoder-faces", (1, 25, 25), 625, width=width)
    down = [2000 * width // 2000, 1000 * width // 2000, 500 * width // 2000, 30 * width // 2000]
    assert _widths(model) == [625, *down, *down[-2::-1], 625]
    assert all(layer.bias is not None for layer in _linear(model))


@pytest.mark.parametrize("name", AUTOENCODERS)
@pytest.mark.parametrize(
    ("width", "hidden"),
    [(250, [250, 125, 62, 8]), (2000, [2000, 1000, 500, 60]), (10, [10, 5, 2, 1]), (1, [1, 1, 1, 1])],
)
def test_hidden_widths_keep_their_proportions(name, width, hidden):
    model = build_model(name, IMAGE, 784, width=width)
    assert _widths(model) == [784, *hidden, *hidden[-2::-1], 784]
    assert model(torch.rand(2, *IMAGE)).shape == (2, 784)


@pytest.mark.parametrize(
    ("name", "bias", "count"),
    [
        ("autoencoder", None, 2_833_000),
        ("autoencoder", True, 2_837_314),
        ("autoencoder-sigmoid", None, 2_837_314),
        ("autoencoder-sigmoid", False, 2_833_000),
        ("mlp", None, 2_794_000),
    ],
)
def test_numbers_of_parameters(name, bias, count):
    options = {} if bias is None else {"bias": bias}
    model = build_model(name, IMAGE, 10 if name == "mlp" else 784, **options)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    ("name", "activation", "activated"),
    [
        ("autoencoder", nn.Tanh, [1, 2, 3, 5, 6, 7]),
        ("autoencoder-sigmoid", nn.Sigmoid, [1, 2, 3, 4, 5, 6, 7]),
        ("autoencoder-faces", nn.Sigmoid, [1, 2, 3, 5, 6, 7]),
    ],
)
@pytest.mark.parametrize("shape", [IMAGE, (1, 40, 25)], ids=["784", "as wide as the first layer"])
def test_what_is_linear(name, activation, activated, shape):
    """Only the output, and of two autoencoders the code (layer 4)."""
    found, layer = [], 0
    for module in build_model(name, shape, math.prod(shape)):
        layer += isinstance(module, nn.Linear)
        if isinstance(module, activation):
            found.append(layer)
    assert found == activated


def test_weights_start_as_the_papers_say():
    """He: variance 2 / fan-in. Glorot, times 4 for the sigmoid: 16 * 2 / (fan-in + fan-out)."""
    torch.manual_seed(0)
    for name, variance in (
        ("autoencoder", lambda w: 2 / w.shape[1]),
        ("autoencoder-sigmoid", lambda w: 32 / sum(w.shape)),
        ("autoencoder-faces", lambda w: 32 / sum(w.shape)),
    ):
        for layer in _linear(build_model(name, IMAGE, 784, bias=True)):
            assert float(layer.weight.detach().var()) == pytest.approx(variance(layer.weight), rel=0.05)
            assert not layer.bias.any()
