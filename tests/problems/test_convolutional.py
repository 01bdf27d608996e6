"""Convolutional models: parameters as published, starts as EKFAC's appendix B says, and what is refused."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kfbench.errors import UsageError
from kfbench.problems.convolutional import BasicBlock
from kfbench.problems.datasets import load_dataset
from kfbench.problems.models import build_model

CIFAR = (3, 32, 32)


def _count(name, shape=CIFAR, outputs=10, **options):
    with torch.device("meta"):  # numbers of parameters need no numbers in them
        model = build_model(name, shape, outputs, **options)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("resnet18", {}, 11_173_962),
        ("resnet18", {"norm": "batch"}, 11_173_962),
        ("resnet18", {"norm": "none"}, 11_164_362),
        ("resnet18", {"norm": "batch-fixed"}, 11_164_362),
        ("resnet18", {"norm": "none", "bias": True}, 11_169_162),
        ("resnet34", {}, 21_282_122),
        ("resnet34", {"norm": "none"}, 21_265_098),
        ("resnet34", {"norm": "none", "bias": True}, 21_273_610),
        ("vgg11", {"norm": "batch"}, 9_231_114),
        ("vgg11", {}, 9_225_610),
        ("vgg11", {"bias": False}, 9_222_858),
        ("resnet18", {"width": 16}, 701_466),
        ("resnet34", {"width": 16}, 1_334_618),
        ("vgg11", {"width": 16}, 578_410),
    ],
)
def test_numbers_of_parameters(name, options, count):
    assert _count(name, **options) == count
    if "width" not in options:
        assert _count(name, outputs=100, **options) == count + 46_170


def test_numbers_of_parameters_of_convnet():
    assert _count("convnet", (1, 28, 28)) == 29_066
    assert _count("convnet", (1, 28, 28), width=4, norm="batch") == 40 + 296 + 1168 + 2 * 28 + 1450


def _recipe(model):
    """Weight -> variance times fan-in, read off the names of a ResNet's parameters (George et al. 2018, appendix B)."""
    for name, weight in model.named_parameters():
        if name.startswith("stem.") or ".shortcut." in name:
            yield name, weight, 1.0
        else:
            yield name, weight, 0.2 if ".second." in name else 2.0


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_every_weight_starts_with_the_variance_of_the_recipe(name):
    model = build_model(name, CIFAR, 10, width=16, norm="none", init="careful", bias=True)
    checked = 0
    for key, parameter, gain in _recipe(model):
        if parameter.dim() == 1:
            assert not parameter.any(), key
            continue
        n, numbers = parameter[0].numel(), parameter.numel()
        # The mean square of so many normal numbers has this deviation, relative to the variance.
        deviations = (float(parameter.detach().square().mean()) * n / gain - 1) / math.sqrt(2 / numbers)
        assert abs(deviations) < 5, f"{key}: variance is {deviations:+.1f} sigma off"
        checked += 1
    assert checked == {"resnet18": 21, "resnet34": 37}[name]


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_without_norm_the_careful_start_is_the_default_and_has_a_usual_loss(name):
    """ln 10 = 2.30; with He's weights each block adds its variance to that of its shortcut, and losses are above 10."""
    data = load_dataset("fashion-mnist-1k", pad_to=32)
    x, y = data.train_inputs[:50], data.train_targets[:50]

    def loss(seed, **init):
        torch.manual_seed(seed)
        with torch.no_grad():
            return float(cross_entropy(build_model(name, data.input_shape, 10, width=16, norm="none", **init)(x), y))

    careful = [loss(seed, init="careful") for seed in range(3)]
    assert 2 < sum(careful) / 3 < 3, f"losses of three seeds: {careful}"
    assert loss(0) == careful[0] and loss(0, init="he") > 10


def test_chains_start_with_he_unless_told_otherwise():
    for name in ("vgg11", "convnet"):
        for init, first in (("he", 2.0), ("careful", 1.0), (None, 2.0)):
            model = build_model(name, CIFAR, 10, width=32, **({"init": init} if init else {}))
            weights = [m.weight.detach() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
            for weight, gain in zip(weights, [first, *[2.0] * len(weights[1:])], strict=True):
                assert float(weight.square().mean()) * weight[0].numel() == pytest.approx(gain, rel=0.15)


@pytest.mark.parametrize(("stride", "d"), [(1, 4), (2, 6)])
def test_a_block_is_two_convolutions_beside_its_shortcut(stride, d):
    block = BasicBlock(4, d, stride, bias=True, norm="none").double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    before = x.clone()
    first, second = block.first[0], block.second[0]
    shortcut = x if block.shortcut is None else block.shortcut[0](x)
    expected = (second(first(x).relu()) + shortcut).relu()
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-14)
    assert torch.equal(x, before), "what a hook has seen stays as it is"
    assert (block.shortcut is None) == (stride == 1) and block(x).shape == (2, d, 6 // stride, 6 // stride)


@pytest.mark.parametrize("norm", ["batch", "batch-fixed"])
@pytest.mark.parametrize("name", ["convnet", "vgg11", "resnet18"])
def test_every_convolution_is_normalised(name, norm):
    model = build_model(name, CIFAR, 10, width=2, norm=norm)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert {m.affine for m in norms} == {norm == "batch"}
    assert model(torch.randn(3, *CIFAR)).shape == (3, 10)


@pytest.mark.parametrize(("name", "least"), [("convnet", 8), ("vgg11", 32)])
def test_images_too_small_for_the_poolings_are_refused(name, least):
    build_model(name, (1, least, least), 10, width=1)
    with pytest.raises(UsageError, match=f"at least {least} pixels a side, got .*; give --pad-to"):
        build_model(name, (1, least, least - 1), 10, width=1)
