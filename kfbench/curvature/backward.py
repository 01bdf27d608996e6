"""One backward pass to the calls of layers: what is kept of it, and what is added up and given up on the way."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from kfbench.layers.contract import Layer, full
from kfbench.layers.estimate import Estimate
from kfbench.layers.moments import MomentOfRows

# Layer -> how it is estimated -> ``sum_k sum_n sum_p g g'``.
Moments = dict[str, dict[Estimate, Tensor]]


@dataclass(eq=False)
class Call:
    """One call of a layer: its input (shared, not copied), that input's version, its output's edge, N and P.

    ``input_edge``: where its input came from, None of one without a gradient.
    """

    input: Tensor
    version: int
    samples: int
    edge: GradientEdge
    positions: int
    input_edge: GradientEdge | None = None


@dataclass
class Backpropagated:
    """What one backward pass gave: by call, of plain parameters, of whole layers; moments of what was not kept."""

    by_call: dict[Call, Tensor | None]
    plain: list[Tensor | None]
    dense: dict[str, list[Tensor]]
    moments: Moments | None


def backpropagate(
    layers: Mapping[str, Layer],
    used: Mapping[str, Sequence[Call]],
    start: Tensor,
    vector: Tensor | None,
    keep_graph: bool = True,
    kept: Collection[str] = (),
    moments: Moments | None = None,
    estimates: Collection[Estimate] = (),
    plain: Sequence[nn.Parameter] = (),
    dense: Collection[str] = (),
) -> Backpropagated:
    """The gradient of a SUM with respect to outputs of the layers in ``kept``, to plain parameters, to weights.

    ``used``: the calls of every layer that count. Where ``moments`` are wanted, those of all other layers are added
    to, each gradient being given up at once.
    """
    calls = [call for name, own in used.items() if name in kept for call in own]
    weights = [(name, layers[name].parameters) for name in used if name in dense]
    passing = {} if moments is None else {call: n for n, own in used.items() if n not in kept for call in own}
    # To be asked for are those behind which nothing is: autograd comes by all others anyway.
    goals = {call.edge.node for call in (*calls, *passing)}
    last = [c for c, name in passing.items() if name not in dense and not _leads_to(c.edge.node, goals)]
    wanted: list[Any] = [c.edge for c in (*calls, *last)] + [*plain, *(p for _, own in weights for p in own)]
    if not wanted:
        return Backpropagated({}, [], {}, moments)
    handles = [
        call.edge.node.register_prehook(partial(_add_moments, moments, estimates, layers[name], call))
        for call, name in passing.items()
        if call not in last
    ]
    # Ones make it the gradient of the sum, so that each row is of its own sample's loss, without 1/N.
    start_with = torch.ones_like(start) if vector is None else vector.to(start.dtype)
    try:
        found = list(torch.autograd.grad(start, wanted, start_with, retain_graph=keep_graph, allow_unused=True))
    finally:
        for handle in handles:
            handle.remove()
    by_call: dict[Call, Tensor | None] = {call: found.pop(0) for call in calls}
    for call in last:
        _add_moments(moments, estimates, layers[passing[call]], call, {call.edge.output_nr: found.pop(0)})
    of_plain: list[Tensor | None] = [found.pop(0) for _ in plain]
    of_weights = {
        name: [torch.zeros_like(p) if (g := found.pop(0)) is None else g for p in own] for name, own in weights
    }
    return Backpropagated(by_call, of_plain, of_weights, moments)


def _add_moments(moments: Any, estimates: Collection[Estimate], layer: Layer, call: Call, gradients: Any) -> None:
    """What autograd hands to a node: the gradients of its outputs."""
    g, sums = gradients[call.edge.output_nr], moments.setdefault(layer.name, {})
    # Estimates that differ in the input factor alone share one output factor.
    for key in {estimate.of_outputs for estimate in estimates}:
        if g is not None:
            rows = full(layer.gradient_rows(g[: key.count(len(g))]))
            rows = rows.sum(1) if key.sharing == "reduce" else rows
            sums[key] = MomentOfRows(rows).add_to(sums.get(key), 1.0, 1.0)
        elif key not in sums:
            sums[key] = full(layer.module.weight.detach()).new_zeros(layer.d_out, layer.d_out)


def nodes_below(losses: Tensor) -> tuple[set[Any], Counter[int]]:
    """The nodes of the graph that ``losses`` are made of, and how often each parameter (by id) is used there."""
    uses: Counter[int] = Counter()
    seen, waiting = {losses.grad_fn}, [losses.grad_fn]
    while waiting:
        node = waiting.pop()
        for following, _ in node.next_functions if node is not None else ():
            if following is None:
                continue
            if following.name() == "torch::autograd::AccumulateGrad":
                uses[id(following.variable)] += 1  # type: ignore[attr-defined]
            elif following not in seen:
                seen.add(following)
                waiting.append(following)
    return seen, uses


def _leads_to(node: Any, goals: set[Any]) -> bool:
    """Whether one of these nodes lies below."""
    seen, waiting = set(), [node]
    while waiting:
        for following, _ in waiting.pop().next_functions:
            if following in goals:
                return True
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return False


def first_met(nodes: list[Any], of_node: Mapping[Any, str]) -> set[str]:
    """The layers whose outputs are met first on all ways down, these nodes of the graph included."""
    met, seen, waiting = set(), set(nodes), list(nodes)
    while waiting:
        node = waiting.pop()
        if node in of_node:
            met.add(of_node[node])
            continue
        new = [following for following in below(node) if following not in seen]
        seen.update(new)
        waiting += new
    return met


def below(node: Any) -> list[Any]:
    """The nodes of the graph that this one follows from."""
    return [] if node is None else [following for following, _ in node.next_functions if following is not None]
