"""Whether the layers are a chain: fully connected, each fed by an elementwise function of the one before."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kfbench.curvature.backward import Call, below, first_met
from kfbench.curvature.captured import Captured
from kfbench.layers.contract import Layer
from kfbench.layers.linear_layer import LinearLayer

_SEED = 0  # of the vectors that tell elementwise functions from others: no stream of the run is touched
_TF32 = 2.0**-10  # what accelerators may keep of float32


def chain(captured: Captured, result: Tensor, layers: Mapping[str, Layer]) -> list[str]:
    """The names of ``layers``, first to last, where their calls below ``result`` (losses or output) are a chain.

    Each must be fully connected, called once, with one row a sample; gradients must reach it through the next layer
    alone, and there through an elementwise function alone: activations, dropout, frozen BatchNorm, none at all. Calls
    that the losses do not use count nowhere. What stands before the first and behind the last layer is not looked at,
    nor what is added to an input but needs no gradient. Needs the graph, and keeps it; ValueError, one sentence, names
    what is no chain.
    """
    for name, layer in layers.items():
        _check_layer(name, layer, captured.used(name))
    calls = {name: captured.used(name)[0] for name in layers}
    of_node = {call.edge.node: name for name, call in calls.items()}
    names: list[str] = []  # from the last to the first
    while above := first_met(below(calls[names[-1]].edge.node) if names else [result.grad_fn], of_node):
        if len(above) > 1:
            both = " and ".join(repr(name) for name in layers if name in above)
            raise _no_chain(f"{both} both lead straight to {repr(names[-1]) if names else 'the loss'}")
        names += above
        if len(names) > 1 and not _is_elementwise(calls[names[-1]], calls[names[-2]], layers[names[-2]]):
            raise _no_chain(f"between {names[-1]!r} and {names[-2]!r} lies more than an elementwise function")
    if aside := [name for name in layers if name not in names]:
        raise _no_chain(f"{aside[0]!r} does not lead to the loss")
    return names[::-1]


def _check_layer(name: str, layer: Layer, calls: list[Call]) -> None:
    if not isinstance(layer, LinearLayer):
        raise _no_chain(f"{name!r} is a {type(layer.module).__name__}")
    if not calls:
        raise _no_chain(f"{name!r} does not lead to the loss")
    if len(calls) > 1:
        raise _no_chain(f"{name!r} is called {len(calls)} times in one forward")
    if calls[0].positions != 1:
        raise _no_chain(f"{name!r} has {calls[0].positions} rows a sample")


def _no_chain(why: str) -> ValueError:
    return ValueError(
        f"{why}, but accepted is a chain alone: fully connected layers, each called once with one row a sample, and "
        "elementwise functions between them"
    )


def _is_elementwise(before: Call, after: Call, layer: Layer) -> bool:
    """Whether ``layer``, whose call is ``after``, is fed by an elementwise function f of what ``before`` returned.

    If so, ``g = f' * (u W)`` for every u [N, d_out] that is backpropagated: g of two of them, each times the other's
    ``u W``, are equal.
    """
    weight = layer.module.weight.detach()
    generator = torch.Generator(weight.device).manual_seed(_SEED)
    shape = (*after.input.shape[:-1], len(weight))
    given, found = [], []
    for _ in range(2):
        u = torch.randn(shape, generator=generator, dtype=weight.dtype, device=weight.device)
        (g,) = torch.autograd.grad(after.edge, before.edge, u, retain_graph=True)
        given.append((u @ weight).flatten(1))
        found.append(g.flatten(1))
    if given[0].shape != found[0].shape:
        return False
    one, other = found[0] * given[1], found[1] * given[0]
    eps = torch.finfo(found[0].dtype).eps
    eps = eps if weight.device.type == "cpu" or weight.dtype == torch.float64 else max(eps, _TF32)
    # Synchronises; a layer that mixes is off by as much as all there is.
    return bool((one - other).norm() <= eps**0.5 * (one.norm() + other.norm()))
