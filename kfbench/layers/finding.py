"""Finding the layers of a model: the table of layer types, and why a module is none of them."""

from torch import nn
from torch.nn.utils import parametrize

from kfbench.layers.contract import Layer
from kfbench.layers.convolution_layer import ConvolutionLayer
from kfbench.layers.embedding_layer import EmbeddingLayer
from kfbench.layers.linear_layer import LinearLayer
from kfbench.layers.transposed_layer import TransposedLayer

# A new layer type adds a row here and its file.
KINDS: dict[type[nn.Module], type[Layer]] = {
    nn.Linear: LinearLayer,
    nn.Conv1d: ConvolutionLayer,
    nn.Conv2d: ConvolutionLayer,
    nn.Conv3d: ConvolutionLayer,
    nn.ConvTranspose1d: TransposedLayer,
    nn.ConvTranspose2d: TransposedLayer,
    nn.ConvTranspose3d: TransposedLayer,
    nn.Embedding: EmbeddingLayer,
}


def find_layers(model: nn.Module) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers of ``model`` that can be captured, and why others cannot, by module name; groups as ``name[0]``, ...

    Only trainable parameters count. A module is left out, never wrongly preconditioned, where its
    rows would not determine its gradient; its parameters then keep their plain gradient.
    """
    # modules() gives each module once, so that a second owner is another module, not a second call.
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    layers: dict[str, Layer] = {}
    left_out: dict[str, str] = {}
    for name, module in model.named_modules():
        if not any(p.requires_grad for p in module.parameters(recurse=False)):
            continue
        # A subclass with a forward of its own may do anything with its weight.
        known = [t for t in KINDS if isinstance(module, t) and type(module).forward is t.forward]
        reason = _why_not(module, known, owners)
        if reason is None:
            layers.update({layer.name: layer for layer in KINDS[known[0]].all_of(name, module)})
        else:
            left_out[name] = reason
    return layers, left_out


def _why_not(module: nn.Module, known: list[type[nn.Module]], owners: dict[int, int]) -> str | None:
    """Why this module cannot be captured, or None where it can."""
    # Before its weight is looked at, which a parametrization replaces by a property.
    if parametrize.is_parametrized(module):
        return "its weight is a parametrization"
    if not known:
        return f"{type(module).__name__} has no Kronecker factors here"
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "its weight is not a parameter"
    if not module.weight.requires_grad:
        return "its weight is frozen"
    if any(owners[id(p)] > 1 for p in module.parameters(recurse=False)):
        return "it shares a parameter with another module"
    return KINDS[known[0]].why_not(module)


def batch_mixing(model: nn.Module) -> list[str]:
    """Names of modules through which samples see each other: BatchNorm that normalises by the batch.

    A layer's gradient is then still exact, but its rows are not the gradients of single samples.
    """
    kinds = nn.modules.batchnorm._BatchNorm
    # Without running averages it normalises by the batch in evaluation mode too.
    return [n for n, m in model.named_modules() if isinstance(m, kinds) and (m.training or m.running_mean is None)]
