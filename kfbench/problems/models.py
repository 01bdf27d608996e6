"""Models: name -> plain ``nn.Module``, initialised as in the FOOF paper (Kaiming-He) where nothing else is said."""

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from kfbench.config.importing import import_object
from kfbench.errors import UsageError
from kfbench.problems.convolutional import convnet, resnet18, resnet34, vgg11
from kfbench.problems.sequences.transformer import transformer

HIDDEN_LAYERS = 3

# The autoencoder of Hinton & Salakhutdinov 2006: hidden widths down to the code, and back.
ENCODER_WIDTHS = (1000, 500, 250, 30)
FACES_WIDTHS = (2000, 1000, 500, 30)  # theirs for FACES, of 625 pixels
# The sigmoid is 1/2 + f/4 near 0, so that weights must be 4 times larger for signals to keep their size.
_SIGMOID_GAIN = 4.0


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


def example_network(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Of Martens & Grosse 2015, Figure 1: means of 2 x 2 pixels and four hidden layers of 20, tanh.

    Theirs has 256 inputs, of 16 x 16 pixels. Named by its path alone, for claims on dense matrices.
    """
    sizes = (input_shape[-1] // 2 * (input_shape[-2] // 2), 20, 20, 20, 20, outputs)
    layers = [part for d, e in pairwise(sizes) for part in (nn.Linear(d, e), nn.Tanh())]
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), *layers[:-1])


def autoencoder(input_shape: tuple[int, ...], width: int = ENCODER_WIDTHS[0], bias: bool = False) -> nn.Module:
    """d-1000-500-250-30-250-500-1000-d with tanh, code and output linear (FOOF paper, appendix D.7).

    ``width`` is that of the widest hidden layer, the others keep their proportions. Initialised as
    all models of that paper (appendix D); biases are left out as in its other fully connected
    networks (D.5): D.7 does not mention them.
    """
    return _initialised(_mirrored(input_shape, ENCODER_WIDTHS, width, bias, nn.Tanh, activate_code=False))


def autoencoder_sigmoid(input_shape: tuple[int, ...], width: int = ENCODER_WIDTHS[0], bias: bool = True) -> nn.Module:
    """The same widths with sigmoid units, the code's too, and logits as output (George et al. 2018, section 4.1).

    That paper names neither biases nor an initialisation. Biases are those of Hinton &
    Salakhutdinov 2006; weights are Glorot & Bengio's (2010), times 4 for the sigmoid's slope. With
    He's weights Adam stays for some epochs at the loss of the mean image.
    """
    model = _mirrored(input_shape, ENCODER_WIDTHS, width, bias, nn.Sigmoid, activate_code=True)
    return _initialised(model, _glorot_for_sigmoid)


def autoencoder_faces(input_shape: tuple[int, ...], width: int = FACES_WIDTHS[0], bias: bool = True) -> nn.Module:
    """d-2000-1000-500-30-500-1000-2000-d with sigmoid units and biases, code and output linear.

    Hinton & Salakhutdinov 2006, Martens 2010. They start from pretrained and from sparse weights; these start as
    those of ``autoencoder_sigmoid``.
    """
    model = _mirrored(input_shape, FACES_WIDTHS, width, bias, nn.Sigmoid, activate_code=False)
    return _initialised(model, _glorot_for_sigmoid)


def _mirrored(
    input_shape: tuple[int, ...],
    encoder: Sequence[int],
    width: int,
    bias: bool,
    activation: type[nn.Module],
    activate_code: bool,
) -> nn.Sequential:
    """Encoder and decoder of mirrored widths, weights untied, output linear; a width is at least 1.

    The first of the ``encoder``'s becomes ``width``, the others keep their proportions to it.
    """
    d = math.prod(input_shape)
    down = [max(1, round(w * width / encoder[0])) for w in encoder]
    widths = [d, *down, *down[-2::-1], d]  # the code is there once
    layers: list[nn.Module] = [nn.Flatten()]
    for index, (d_in, d_out) in enumerate(pairwise(widths), start=1):
        layers.append(nn.Linear(d_in, d_out, bias))
        if index != len(down) or activate_code:
            layers.append(activation())
    return nn.Sequential(*layers[:-1])  # the last activation is the likelihood's


def _he(weight: Tensor) -> Tensor:
    """He et al. 2015: normal weights of variance 2 / fan-in."""
    return nn.init.kaiming_normal_(weight, nonlinearity="relu")


def _glorot_for_sigmoid(weight: Tensor) -> Tensor:
    """Glorot & Bengio 2010: normal weights of variance 2 / (fan-in + fan-out), times 4."""
    return nn.init.xavier_normal_(weight, gain=_SIGMOID_GAIN)


def _initialised(model: nn.Module, weights: Callable[[Tensor], Tensor] = _he) -> nn.Module:
    """The same for every layer, the last one too; zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weights(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


_KNOWN: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "logistic": logistic,
    "autoencoder": autoencoder,
    "autoencoder-sigmoid": autoencoder_sigmoid,
    "autoencoder-faces": autoencoder_faces,
    "convnet": convnet,
    "vgg11": vgg11,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "transformer": transformer,
}


def build_model(name: str, input_shape: tuple[int, ...], outputs: int, **options: Any) -> nn.Module:
    """The model of that name, or what the user's ``package.module:function`` returns.

    The function is called with those of ``input_shape`` (C, H, W), of a text (T,), ``outputs`` (number of classes or
    characters, or of pixels where the inputs are the targets) and the options (width, bias, norm, init, depth, heads,
    tied) that its signature names. UsageError where that fails.
    """
    make = _KNOWN.get(name) or import_object(name, "model")
    arguments = {"input_shape": input_shape, "outputs": outputs, **options}
    try:
        accepted = inspect.signature(make).parameters
        model = make(**{key: value for key, value in arguments.items() if key in accepted})
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's function may fail in any way
        raise UsageError(f"model {name!r} could not be built: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {name!r} returned a {type(model).__name__}, expected a torch.nn.Module")
    if not any(p.requires_grad for p in model.parameters()):
        raise UsageError(f"model {name!r} has no trainable parameter")
    return model
