"""Models: name -> plain ``nn.Module``, initialised as in the FOOF paper (Kaiming-He)."""

import inspect
import math
from collections.abc import Callable
from typing import Any

from torch import nn

from kfbench.errors import UsageError
from kfbench.importing import import_object

HIDDEN_LAYERS = 3


def logistic(input_shape: tuple[int, ...], outputs: int, bias: bool = False) -> nn.Module:
    """Multinomial logistic regression on flattened inputs."""
    return _initialised(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), outputs, bias)))


def mlp(input_shape: tuple[int, ...], outputs: int, width: int = 1000, bias: bool = False) -> nn.Module:
    """Three hidden ReLU layers of equal width (FOOF paper, appendix D.5: 784-1000-1000-1000-10)."""
    layers: list[nn.Module] = [nn.Flatten()]
    d = math.prod(input_shape)
    for _ in range(HIDDEN_LAYERS):
        layers += [nn.Linear(d, width, bias), nn.ReLU()]
        d = width
    return _initialised(nn.Sequential(*layers, nn.Linear(d, outputs, bias)))


def _initialised(model: nn.Module) -> nn.Module:
    """He et al. 2015: normal weights of variance 2 / fan-in, in the last layer too; zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def build_model(name: str, input_shape: tuple[int, ...], outputs: int, **options: Any) -> nn.Module:
    """The model of that name, or what the user's ``package.module:function`` returns.

    The function is called with those of ``input_shape`` (C, H, W), ``outputs`` (number of classes)
    and the options (width, bias) that its signature names. UsageError where that fails.
    """
    known: dict[str, Callable[..., Any]] = {"mlp": mlp, "logistic": logistic}
    make = known.get(name) or import_object(name, "model")
    arguments = {"input_shape": input_shape, "outputs": outputs, **options}
    try:
        accepted = inspect.signature(make).parameters
        model = make(**{key: value for key, value in arguments.items() if key in accepted})
    except Exception as error:
        raise UsageError(f"model {name!r} could not be built: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {name!r} returned a {type(model).__name__}, expected a torch.nn.Module")
    if not any(p.requires_grad for p in model.parameters()):
        raise UsageError(f"model {name!r} has no trainable parameter")
    return model
