"""What users name by path, right and wrong: copied into the working folder of the tests of the command line."""

import os
import signal
from pathlib import Path

import torch
from torch import nn


def function():
    """No class."""


class PlainClass:
    """Neither an optimizer nor a preconditioner."""


class Raises(torch.optim.SGD):
    """Raises on construction, in two lines."""

    def __init__(self, params, lr=0.1):
        raise ValueError("the first line\nthe second line")


def data_raises():
    """Raises when called, in two lines."""
    raise ValueError("no data\ntoday")


def data_not_a_number():
    """One of the inputs is none."""
    x = torch.zeros(20, 3)
    x[3, 1] = float("nan")
    return x, torch.arange(20) % 2, x[:5].nan_to_num(), torch.arange(5) % 2


def model_raises(input_shape, outputs):
    """Raises when called."""
    raise ValueError("no such model\ntoday")


def model_is_text(input_shape, outputs):
    """Returns no module."""
    return "model"


def model_without_parameters(input_shape, outputs):
    """Nothing to train."""
    return nn.Flatten()


def model_of_wrong_shape(input_shape, outputs):
    """One output too many."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, outputs + 1))


def model_for_other_inputs(input_shape, outputs):
    """Fails on the first batch."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3, outputs))


def model_for_images(input_shape, outputs):
    """Returns images where the flattened inputs are expected."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 784), nn.Unflatten(1, input_shape))


class InterruptsItself(nn.Sequential):
    """Sends Ctrl-C in its 8th training forward, where a file of that name lies in the working folder."""

    forwards = 0

    def forward(self, x):
        """As a user would press it, once."""
        type(self).forwards += self.training
        if self.forwards == 8 and Path("press-ctrl-c").exists():
            Path("press-ctrl-c").unlink()
            os.kill(os.getpid(), signal.SIGINT)
        return super().forward(x)


def model_interrupts(input_shape, outputs):
    """A small linear model."""
    return InterruptsItself(nn.Flatten(), nn.Linear(784, outputs))
