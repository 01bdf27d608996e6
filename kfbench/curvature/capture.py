"""Capture: layer inputs and output-gradient edges of one training forward, and what follows from them.

The model is the user's own and stays as it is: hooks live only inside the ``with`` block. What is
kept of an output is its edge in the graph, never the tensor: after an in-place activation,
differentiating to the tensor would be silently wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from kfbench.curvature.contract import Layer
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import LayerStatistics


class CaptureError(RuntimeError):
    """A model did what capture cannot follow; the message is one sentence for the user."""


@dataclass(eq=False)
class _Call:
    """One call of a layer: its input (shared, not copied), that input's version, its output's edge."""

    input: Tensor
    version: int
    edge: GradientEdge


@dataclass
class Captured:
    """One captured forward: draw labels, then ask for gradients (which may free the graph), then for statistics.

    Calls that the losses do not reach (a teacher's forward, a metric) count nowhere, once ``gradients`` has
    found out which they are. Half precisions become float32 here, so that no factor is kept in less.
    """

    layers: dict[str, Layer]
    plain: list[nn.Parameter]
    calls: dict[str, list[_Call]] = field(default_factory=dict)
    without_graph: set[str] = field(default_factory=set)
    """Layers that were called under no_grad: by an evaluation, or where a checkpoint hides them."""
    loss_scale: float = 1.0
    """What the losses were multiplied by; it is taken out of every gradient."""
    _true: list[Tensor | None] | None = None
    _plain_gradients: list[Tensor | None] | None = None
    _inputs: dict[str, Tensor] = field(default_factory=dict)
    _labels: dict[str, list[list[Tensor | None]]] = field(default_factory=dict)

    @property
    def edges(self) -> list[GradientEdge]:
        """Of all calls, layer by layer: the order of every list of gradients by call."""
        return [call.edge for calls in self.calls.values() for call in calls]

    def exclude(self, name: str) -> None:
        """Forget a layer: its parameters are then treated as plain ones, by the caller."""
        self.calls.pop(name, None)
        self._inputs.pop(name, None)

    def used(self, name: str) -> list[_Call]:
        """The calls of a layer that the losses reach, as far as that is known; all of them before any backward pass."""
        calls = self.calls.get(name, [])
        if self._true is None:
            return calls
        return [call for call, g in zip(calls, self._of_layer(name, self._true), strict=True) if g is not None]

    def _of_layer(self, name: str, by_call: list[Any]) -> list[Any]:
        """The part of a list in the order of ``edges`` that is one layer's."""
        start = 0
        for other, calls in self.calls.items():
            if other == name:
                return by_call[start : start + len(calls)]
            start += len(calls)
        return []

    def inputs(self, name: str) -> Tensor:
        """Input rows [N, P, d_in] of a layer; a layer used twice joins along P."""
        # Kept: statistics and gradients ask for the same rows, which for a convolution are all its patches.
        if name not in self._inputs:
            calls = self.used(name)
            for call in calls:
                if call.input._version != call.version:
                    raise CaptureError(
                        f"the input of layer {name!r} was changed in place after the layer used it, "
                        "so its rows are lost; make the operation that follows it out of place"
                    )
            self._inputs[name] = _joined([_full(self.layers[name].input_rows(call.input)) for call in calls])
        return self._inputs[name]

    def draw(
        self, fisher: str, output: Tensor, vectors: Callable[[Tensor, str], Tensor] | None, losses: Tensor
    ) -> None:
        """Backpropagate what a Fisher of this kind needs, keeping the graph; once for all who ask.

        ``vectors(output, fisher)`` gives the K vectors [K, *output.shape] of the likelihood for sampled and
        full; empirical uses the true labels' gradients.
        """
        if fisher == "empirical":
            self._backpropagate_losses(losses, keep_graph=True)
        elif fisher != "none" and fisher not in self._labels:
            assert vectors is not None, f"fisher {fisher!r} needs a likelihood"
            # Detached: labels are drawn from the output, not differentiated through it.
            drawn = vectors(output.detach(), fisher)
            self._labels[fisher] = [self._backpropagate(output, vector) for vector in drawn]

    def statistics(self, fisher: str) -> dict[str, LayerStatistics]:
        """The rows of every layer that was used, for ``fisher`` none | sampled | full | empirical, after ``draw``."""
        found = {}
        for name in self.calls:
            if not self.used(name):
                continue
            rows = None
            if fisher == "empirical":
                assert self._true is not None, "draw comes first"
                rows = self._rows(name, self._true)[None] / self.loss_scale
            elif fisher != "none":
                rows = torch.stack([self._rows(name, by_call) for by_call in self._labels[fisher]])
            found[name] = LayerStatistics(self.inputs(name), rows, self.layers[name].has_bias)
        return found

    def gradients(self, losses: Tensor, keep_graph: bool = False) -> dict[str, LayerGradient]:
        """The mean gradient of ``losses`` [N] of every used layer, as rows; frees the graph unless it is to be kept."""
        by_call = self._backpropagate_losses(losses, keep_graph)
        gradients = {}
        for name in self.calls:
            if self.used(name):
                g = self._rows(name, by_call) / self.loss_scale if self.loss_scale != 1.0 else self._rows(name, by_call)
                gradients[name] = LayerGradient(g.flatten(0, 1), self.inputs(name).flatten(0, 1), len(losses))
        return gradients

    def plain_gradients(self, losses: Tensor) -> list[Tensor | None]:
        """The mean gradient of each parameter in ``plain``; None where the loss does not use it."""
        self._backpropagate_losses(losses, keep_graph=False)
        assert self._plain_gradients is not None
        return [None if g is None else g / (len(losses) * self.loss_scale) for g in self._plain_gradients]

    def _rows(self, name: str, by_call: list[Tensor | None]) -> Tensor:
        """Gradient rows [N, P, d_out] of the calls that were used; zero where one was not reached from this start."""
        used, parts = self.used(name), []
        for call, g in zip(self.calls[name], self._of_layer(name, by_call), strict=True):
            if call in used:
                parts.append(self._zeros(name, call) if g is None else _full(self.layers[name].gradient_rows(g)))
        return _joined(parts)

    def _zeros(self, name: str, call: _Call) -> Tensor:
        rows = _full(self.layers[name].input_rows(call.input))
        return rows.new_zeros(*rows.shape[:2], self.layers[name].d_out)

    def _backpropagate_losses(self, losses: Tensor, keep_graph: bool) -> list[Tensor | None]:
        # One pass gives both, and is made once: after it the graph may be gone.
        if self._true is None:
            by_call = self._backpropagate(losses, None, keep_graph, self.plain)
            count = len(by_call) - len(self.plain)
            self._true, self._plain_gradients = by_call[:count], by_call[count:]
            self._inputs.clear()  # rows of calls that turn out to be unused may be among them
        return self._true

    def _backpropagate(
        self,
        start: Tensor,
        vector: Tensor | None,
        keep_graph: bool = True,
        plain: Sequence[nn.Parameter] = (),
    ) -> list[Tensor | None]:
        """The gradient of a SUM with respect to every call's output, then to the plain parameters."""
        wanted: list[Any] = [*self.edges, *plain]
        if not wanted:
            return []
        # Ones make it the gradient of the sum, so that each row is of its own sample's loss, without 1/N.
        weights = torch.ones_like(start) if vector is None else vector.to(start.dtype)
        return list(torch.autograd.grad(start, wanted, weights, retain_graph=keep_graph, allow_unused=True))


def _full(rows: Tensor) -> Tensor:
    """In float32 where it is less."""
    return rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class capture:
    """``with capture(layers) as captured:`` around a training forward; the hooks end with the block."""

    def __init__(self, layers: dict[str, Layer], plain: list[nn.Parameter] | None = None) -> None:
        self.captured = Captured(dict(layers), plain or [])
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Captured:
        for layer in self.captured.layers.values():
            hook = self._make_hook(layer.name)
            # A model may give the layer its input by keyword.
            self._handles.append(layer.module.register_forward_hook(hook, with_kwargs=True))
        return self.captured

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _make_hook(self, name: str) -> Callable[..., Tensor | None]:
        calls = self.captured.calls

        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
            if not output.requires_grad:  # evaluation, or under no_grad
                self.captured.without_graph.add(name)
                return None
            replaced = None
            if output._is_view():  # an in-place operation on a view would rewrite its edge
                output = replaced = output.clone()
            x = args[0] if args else kwargs["input"]
            # A layer used twice has two. Detaching keeps memory and version counter, so a later change is noticed.
            calls.setdefault(name, []).append(_Call(x.detach(), x._version, get_gradient_edge(output)))
            return replaced  # None leaves what the layer returned

        return hook
