"""Capture: layer inputs and output-gradient edges of one training forward, and what follows from them.

The model is the user's own and stays as it is: hooks live only inside the ``with`` block. What is
kept of an output is its edge in the graph, never the tensor: after an in-place activation,
differentiating to the tensor would be silently wrong.
"""

from __future__ import annotations

from collections.abc import Callable
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


@dataclass
class _Call:
    """One call of a layer: its input (shared, not copied), that input's version, its output's edge."""

    input: Tensor
    version: int
    edge: GradientEdge


@dataclass
class Captured:
    """One captured forward. ``gradients`` may be asked once per graph; labels are drawn before."""

    layers: dict[str, Layer]
    plain: list[nn.Parameter]
    calls: dict[str, list[_Call]] = field(default_factory=dict)
    _rows: dict[str, Tensor] | None = None
    _plain_gradients: list[Tensor | None] | None = None
    _inputs: dict[str, Tensor] = field(default_factory=dict)
    _fisher_rows: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def samples_per_call(self) -> dict[str, set[int]]:
        """The batch sizes that each layer was called with."""
        return {name: {call.input.shape[0] for call in calls} for name, calls in self.calls.items()}

    def exclude(self, name: str) -> None:
        """Forget a layer: its parameters are then treated as plain ones, by the caller."""
        self.calls.pop(name, None)
        self._inputs.pop(name, None)

    def gradient_of(self, name: str, losses: Tensor) -> Tensor:
        """One layer's mean gradient [d_out, d_in], keeping the graph: for checking it against autograd."""
        # Not through _true_rows, which is kept: it would hold rows of layers that may yet be excluded.
        by_call = torch.autograd.grad(
            losses.sum(), [call.edge for call in self.calls[name]], retain_graph=True, allow_unused=True
        )
        rows = [self._one_call(name, call, g) for call, g in zip(self.calls[name], by_call, strict=True)]
        return LayerGradient(torch.cat(rows, 1).flatten(0, 1), self.inputs(name).flatten(0, 1), len(losses)).dense()

    def inputs(self, name: str) -> Tensor:
        """Input rows [N, P, d_in] of a layer; a layer used twice joins along P."""
        # Kept: statistics and gradients ask for the same rows, which for a convolution are all its patches.
        if name not in self._inputs:
            for call in self.calls[name]:
                if call.input._version != call.version:
                    raise CaptureError(
                        f"the input of layer {name!r} was changed in place after the layer used it, "
                        "so its rows are lost; make the operation that follows it out of place"
                    )
            rows = [self.layers[name].input_rows(call.input) for call in self.calls[name]]
            self._inputs[name] = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
        return self._inputs[name]

    def statistics(
        self, fisher: str, losses: Tensor, output: Tensor, vectors: Callable[[Tensor, str], Tensor] | None = None
    ) -> dict[str, LayerStatistics]:
        """The rows of every layer for ``fisher`` none | sampled | full | empirical.

        ``vectors(output, fisher)`` gives the K vectors [K, *output.shape] of the likelihood for
        sampled and full; empirical uses the true labels' gradients. Needs the graph: call it
        before ``optimizer.step``. Asked again for the same ``fisher``, nothing is drawn or
        backpropagated a second time.
        """
        if fisher not in self._fisher_rows:
            self._fisher_rows[fisher] = self._rows_for(fisher, losses, output, vectors)
        rows = self._fisher_rows[fisher]
        return {
            name: LayerStatistics(self.inputs(name), rows.get(name), self.layers[name].has_bias) for name in self.calls
        }

    def _rows_for(
        self, fisher: str, losses: Tensor, output: Tensor, vectors: Callable[[Tensor, str], Tensor] | None
    ) -> dict[str, Tensor]:
        """Gradient rows [K, N, P, d_out] of every layer; of none for fisher none."""
        if fisher == "none":
            return {}
        if fisher == "empirical":
            # True labels cost no pass of their own: these are the rows that the gradient is made of.
            return {name: g[None] for name, g in self._true_rows(losses, keep_graph=True).items()}
        assert vectors is not None, f"fisher {fisher!r} needs a likelihood"
        # Detached: labels are drawn from the output, not differentiated through it.
        drawn = vectors(output.detach(), fisher)
        per_vector = [self._backpropagate(output, vector)[0] for vector in drawn]
        return {name: torch.stack([r[name] for r in per_vector]) for name in self.calls}

    def gradients(self, losses: Tensor, keep_graph: bool = False) -> dict[str, LayerGradient]:
        """Every layer's mean gradient of ``losses`` [N], as rows; frees the graph unless it is to be kept."""
        rows = self._true_rows(losses, keep_graph)
        n = len(losses)
        return {name: LayerGradient(g.flatten(0, 1), self.inputs(name).flatten(0, 1), n) for name, g in rows.items()}

    def plain_gradients(self, losses: Tensor) -> list[Tensor | None]:
        """The mean gradient of each parameter in ``plain``; None where the loss does not use it."""
        self._true_rows(losses, keep_graph=False)
        assert self._plain_gradients is not None
        return [None if g is None else g / len(losses) for g in self._plain_gradients]

    def _true_rows(self, losses: Tensor, keep_graph: bool) -> dict[str, Tensor]:
        # One pass gives both, and is made once: after it the graph may be gone.
        if self._rows is None:
            self._rows, self._plain_gradients = self._backpropagate(losses, None, keep_graph, self.plain)
        return self._rows

    def _backpropagate(
        self, start: Tensor, vector: Tensor | None, keep_graph: bool = True, plain: list[nn.Parameter] | None = None
    ) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        """Gradient rows of every layer [N, P, d_out], then the plain parameters' gradients, of a SUM."""
        edges = [call.edge for calls in self.calls.values() for call in calls]
        wanted: list[Any] = [*edges, *(plain or [])]
        if not wanted:
            return {}, []
        # Ones make it the gradient of the sum, so that each row is of its own sample's loss, without 1/N.
        weights = torch.ones_like(start) if vector is None else vector
        gradients: list[Tensor | None] = list(
            torch.autograd.grad(start, wanted, weights, retain_graph=keep_graph, allow_unused=True)
        )
        # In the order of `edges`; what is left over belongs to the plain parameters.
        rows = {}
        for name, calls in self.calls.items():
            parts = [self._one_call(name, call, gradients.pop(0)) for call in calls]
            rows[name] = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return rows, gradients

    def _one_call(self, name: str, call: _Call, gradient: Tensor | None) -> Tensor:
        if gradient is None:  # this call does not reach the loss
            rows = self.layers[name].input_rows(call.input)
            return rows.new_zeros(rows.shape[0], rows.shape[1], self.layers[name].d_out)
        return self.layers[name].gradient_rows(gradient)


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
                return None
            replaced = None
            if output._is_view():  # an in-place operation on a view would rewrite its edge
                output = replaced = output.clone()
            x = args[0] if args else kwargs["input"]
            # A layer used twice has two. Detaching keeps memory and version counter, so a later change is noticed.
            calls.setdefault(name, []).append(_Call(x.detach(), x._version, get_gradient_edge(output)))
            return replaced  # None leaves what the layer returned

        return hook
