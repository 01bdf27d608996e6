"""What verification finds and what it must not: rounding of sums that cancel, on convolutions behind batch norm."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kfbench.problems.datasets import load_dataset
from kfbench.updates.preconditioning import Preconditioning


def _net():
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(4)),
        *(nn.Flatten(), nn.Linear(512, 10)),
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_rounding_of_sums_that_cancel_is_no_mismatch(seed, precision):
    """78,400 terms whose mean batch norm makes zero, over a constant background: their sum is nearly nothing."""
    torch.manual_seed(seed)
    dtype = torch.float64 if precision == "float64" else torch.float32
    data = load_dataset("fashion-mnist-1k", dtype=dtype)
    model = _net().to(dtype)
    foof = Preconditioning(model, "foof", damping=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with foof.capture(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            output = model(data.train_inputs[:100])
        foof.backward(cross_entropy(output.to(dtype), data.train_targets[:100], reduction="none"), output)
    assert set(foof.layers) == {"0", "3", "8"}


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_a_real_mismatch_is_found_there_too(penalty, enabled):
    torch.manual_seed(0)
    data = load_dataset("fashion-mnist-1k")
    model = _net()
    foof = Preconditioning(model, "foof", damping=1.0)
    with foof.capture(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        output = model(data.train_inputs[:100])
    losses = cross_entropy(output.float(), data.train_targets[:100], reduction="none")
    losses = losses + penalty * model[8].weight.square().sum()
    with pytest.warns(UserWarning, match=r"8 \(its weight is used outside the layer too\)"):
        foof.backward(losses, output)
    assert set(foof.layers) == {"0", "3"}
