"""Capture: layer inputs and output-gradient edges of one training forward, and what follows from them.

The model is the user's own and stays as it is: hooks live only inside the ``with`` block. What is
kept of an output is its edge in the graph, never the tensor: after an in-place activation,
differentiating to the tensor would be silently wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from kfbench.curvature.contract import Layer, full
from kfbench.curvature.estimate import Estimate
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.moments import Moment, MomentOfRows
from kfbench.curvature.sample_rows import SampleRows
from kfbench.curvature.statistics import CapturedStatistics, LayerStatistics


class CaptureError(RuntimeError):
    """A model did what capture cannot follow; the message is one sentence for the user."""


# Layer -> how it is estimated -> ``sum_k sum_n sum_p g g'``.
_Moments = dict[str, dict[Estimate, Tensor]]

_LET_GO = torch.empty(0)  # in place of an input that nobody will ask for


@dataclass(eq=False)
class _Call:
    """One call of a layer: its input (shared, not copied), that input's version, its output's edge, N and P."""

    input: Tensor
    version: int
    samples: int
    edge: GradientEdge
    positions: int


@dataclass
class Wanted:
    """What the methods of one update want of the backward pass of the losses; the cheapest where nobody says so."""

    rows: bool = False
    """Every layer's gradient as rows, however many, for methods that look at single samples."""
    matrices: bool = True
    """As matrices, where rows are many."""
    moments: frozenset[Estimate] = frozenset()
    """The moments of the output gradients, where the rows themselves are not kept."""
    inputs: bool = True
    """What every layer was given, for statistics; else it is let go before the backward pass, as without capture."""


@dataclass
class Captured:
    """One captured forward: say what reaches the losses, draw labels, ask for gradients, then for statistics.

    Calls that the losses do not reach (a teacher's forward, a metric) count nowhere. Half precisions become
    float32 here, so that no factor is kept in less.

    A layer's gradient comes from autograd, as a matrix, unless it is kept as rows: where a method wants those, where
    a sample is one row, and where all rows are fewer than d_out, since a preconditioner's right side is then
    cheaper on them.
    """

    layers: dict[str, Layer]
    plain: list[nn.Parameter]
    calls: dict[str, list[_Call]] = field(default_factory=dict)
    without_graph: set[str] = field(default_factory=set)
    """Layers that were called under no_grad: by an evaluation, or where a checkpoint hides them."""
    loss_scale: float = 1.0
    """What the losses were multiplied by; it is taken out of every gradient."""
    wanted: Wanted = field(default_factory=Wanted)
    _reached: set[Any] | None = None
    _true: _Backpropagated | None = None
    _inputs: dict[str, Tensor] = field(default_factory=dict)
    _labels: dict[str, list[_Backpropagated]] = field(default_factory=dict)

    def exclude(self, name: str) -> None:
        """Forget a layer: its parameters are then treated as plain ones, by the caller."""
        self.calls.pop(name, None)
        self._inputs.pop(name, None)

    def reach(self, losses: Tensor) -> Counter[int]:
        """Find out which calls ``losses`` are made of; returns how often each parameter (by id) is used below them."""
        uses: Counter[int] = Counter()
        seen, waiting = set(), [losses.grad_fn]
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
        self._reached = {losses.grad_fn, *seen}
        return uses

    def used(self, name: str) -> list[_Call]:
        """The calls of a layer that the losses reach, as far as that is known."""
        calls = self.calls.get(name, [])
        return calls if self._reached is None else [call for call in calls if call.edge.node in self._reached]

    def is_small(self, name: str) -> bool:
        """Whether the layer's rows are fewer than d_out, or one a sample: then they are the cheaper form."""
        used = self.used(name)
        positions = sum(call.positions for call in used)
        return positions <= 1 or positions * used[0].samples < self.layers[name].d_out

    def _keeps_rows(self, name: str) -> bool:
        return self.wanted.rows or self.is_small(name)

    def _adds_up(self, name: str, moments: Collection[Estimate]) -> bool:
        """Whether rows of output gradients are added to these moments call by call, and given up at once.

        Not where they are few, nor where a sum goes over the positions of several calls.
        """
        several = len(self.used(name)) > 1 and any(estimate.sharing == "reduce" for estimate in moments)
        return bool(moments) and not several and not self.is_small(name)

    def inputs(self, name: str) -> SampleRows:
        """Input rows [N, P, d_in] of a layer, made when asked for; a layer used twice joins along P."""
        used, layer = self.used(name), self.layers[name]
        if self.is_small(name):  # statistics and gradients ask for the same ones; patches would fill the memory
            if name not in self._inputs:
                self._inputs[name] = _joined([full(layer.input_rows(x)) for x in self._unchanged(name)])
            return SampleRows.of(self._inputs[name])

        # Not ``self``, which would keep every gradient of this update for as long as a method keeps these rows.
        given = partial(_unchanged, name, used)

        def make(part: slice) -> Tensor:
            return _joined([full(layer.input_rows(x[part])) for x in given()])

        rows = SampleRows(make, used[0].samples, sum(call.positions for call in used), layer.d_in)
        if len(used) > 1 or not layer.has_maps:
            return rows
        return replace(
            rows,
            mapped=lambda matrix: layer.outputs(full(given()[0]), matrix),
            summed=lambda weights: layer.gradient(full(given()[0]), weights),
        )

    def _unchanged(self, name: str) -> list[Tensor]:
        """What the layer was given."""
        return _unchanged(name, self.used(name))

    def draw(
        self,
        fisher: str,
        output: Tensor,
        vectors: Callable[[Tensor, str], Tensor] | None,
        losses: Tensor,
        moments: Collection[Estimate] = (),
    ) -> None:
        """Backpropagate what a Fisher of this kind needs, keeping the graph; once for all who ask.

        ``vectors(output, fisher)`` gives the K vectors [K, *output.shape] of the likelihood for sampled and
        full; empirical uses the true labels' gradients. ``moments``: where nobody asks for rows of output gradients,
        all that is asked for, so that each row may be given up when it has been added to them.
        """
        if fisher == "empirical":
            self._backpropagate_losses(losses, keep_graph=True)
        elif fisher != "none" and fisher not in self._labels:
            assert vectors is not None, f"fisher {fisher!r} needs a likelihood"
            # Detached: labels are drawn from the output, not differentiated through it.
            drawn = vectors(output.detach(), fisher)
            kept = {name for name in self.calls if not self._adds_up(name, moments)}
            sums: _Moments | None = {} if moments else None
            self._labels[fisher] = [
                self._backpropagate(output, vector, kept=kept, moments=sums, estimates=moments) for vector in drawn
            ]

    def statistics(self, fisher: str) -> dict[str, LayerStatistics]:
        """Those of every layer that was used, for ``fisher`` none | sampled | full | empirical, after ``draw``."""
        found: dict[str, LayerStatistics] = {}
        for name in self.calls:
            layer, used = self.layers[name], self.used(name)
            if not used:
                continue
            passes, scale = self._labels.get(fisher, []), 1.0
            if fisher == "empirical":
                assert self._true is not None, "draw comes first"
                passes, scale = [self._true], self.loss_scale
            rows = moments = None
            if passes and (sums := passes[0].moments) is not None and name in sums:
                moments = {key: total / scale**2 if scale != 1.0 else total for key, total in sums[name].items()}
            elif passes:
                rows = torch.stack([self._rows(name, each) for each in passes])
                rows = rows / scale if scale != 1.0 else rows
            found[name] = CapturedStatistics(
                rows=self.inputs(name),
                has_bias=layer.has_bias,
                moment=partial(self._input_moment, name),
                # Groups were given the same, which the first of them answers for.
                raw=[call.input for call in used] if layer.group == 0 else [],
                vectors=len(passes),
                output_gradients=rows,
                output_moments=moments,
            )
        return found

    def _input_moment(self, name: str, ones: bool, estimate: Estimate) -> Moment:
        if not self.is_small(name) or estimate.is_structured:
            return self.layers[name].input_moment(self._unchanged(name), ones, estimate)
        rows = self.inputs(name).make(slice(estimate.count(self.used(name)[0].samples)))
        if ones and not self.layers[name].has_bias:
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)
        return MomentOfRows(rows.sum(1) if estimate.sharing == "reduce" else rows)

    def gradients(self, losses: Tensor, keep_graph: bool = False) -> dict[str, LayerGradient]:
        """The mean gradient of ``losses`` [N] of every used layer; frees the graph unless it is to be kept."""
        true, scale = self._backpropagate_losses(losses, keep_graph), self.loss_scale
        gradients = {}
        for name in self.calls:
            if not self.used(name):
                continue
            matrix = None
            if name in true.dense:
                matrix = full(self.layers[name].matrix(true.dense[name])) / (len(losses) * scale)
            if not self._keeps_rows(name):
                assert matrix is not None
                gradients[name] = LayerGradient.from_dense(matrix, len(losses))
            else:
                g = self._rows(name, true) / scale if scale != 1.0 else self._rows(name, true)
                inputs = self.inputs(name)
                a = inputs.all().flatten(0, 1) if self.is_small(name) else inputs
                rows = LayerGradient(g.flatten(0, 1), a, len(losses))
                gradients[name] = rows if matrix is None else rows.knowing(matrix)
        return gradients

    def plain_gradients(self, losses: Tensor) -> list[Tensor | None]:
        """The mean gradient of each parameter in ``plain``; None where the loss does not use it."""
        true = self._backpropagate_losses(losses, keep_graph=False)
        return [None if g is None else g / (len(losses) * self.loss_scale) for g in true.plain]

    def _rows(self, name: str, of: _Backpropagated) -> Tensor:
        """Gradient rows [N, P, d_out] of the calls that were used; zero where one was not reached from this start."""
        layer = self.layers[name]
        parts = [
            self._zeros(name, call) if (g := of.by_call.get(call)) is None else full(layer.gradient_rows(g))
            for call in self.used(name)
        ]
        return _joined(parts)

    def _zeros(self, name: str, call: _Call) -> Tensor:
        like = full(self.layers[name].module.weight.detach())
        return like.new_zeros(call.samples, call.positions, self.layers[name].d_out)

    def _backpropagate_losses(self, losses: Tensor, keep_graph: bool) -> _Backpropagated:
        # One pass gives all, and is made once: after it the graph may be gone.
        if self._true is None:
            if self._reached is None:
                self.reach(losses)
            used = [name for name in self.calls if self.used(name)]
            on_rows = {name for name in used if self._keeps_rows(name)}
            dense = {name for name in used if name not in on_rows or (self.wanted.matrices and not self.is_small(name))}
            moments: _Moments | None = {} if self.wanted.moments else None
            asked = self.wanted.moments
            kept = on_rows | {name for name in used if asked and not self._adds_up(name, asked)}
            if not self.wanted.inputs:
                for name in self.calls.keys() - kept:
                    for call in self.calls[name]:
                        call.input = _LET_GO
            self._true = self._backpropagate(
                losses, None, keep_graph, kept, moments, self.wanted.moments, self.plain, dense
            )
        return self._true

    def _backpropagate(
        self,
        start: Tensor,
        vector: Tensor | None,
        keep_graph: bool = True,
        kept: Collection[str] = (),
        moments: _Moments | None = None,
        estimates: Collection[Estimate] = (),
        plain: Sequence[nn.Parameter] = (),
        dense: Collection[str] = (),
    ) -> _Backpropagated:
        """The gradient of a SUM with respect to outputs of the layers in ``kept``, to plain parameters, to weights.

        Where ``moments`` are wanted, those of all other layers are added to, each gradient being given up at once.
        """
        names = [name for name in self.calls if self.used(name)]
        calls = [call for name in names if name in kept for call in self.used(name)]
        weights = [(name, self.layers[name].parameters) for name in names if name in dense]
        passing = {} if moments is None else {c: n for n in names if n not in kept for c in self.used(n)}
        # To be asked for are those behind which nothing is: autograd comes by all others anyway.
        goals = {call.edge.node for call in (*calls, *passing)}
        last = [c for c, name in passing.items() if name not in dense and not _leads_to(c.edge.node, goals)]
        wanted: list[Any] = [c.edge for c in (*calls, *last)] + [*plain, *(p for _, own in weights for p in own)]
        if not wanted:
            return _Backpropagated({}, [], {}, moments)
        handles = [
            call.edge.node.register_prehook(partial(self._add_moments, moments, estimates, name, call))
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
        by_call: dict[_Call, Tensor | None] = {call: found.pop(0) for call in calls}
        for call in last:
            self._add_moments(moments, estimates, passing[call], call, {call.edge.output_nr: found.pop(0)})
        of_plain: list[Tensor | None] = [found.pop(0) for _ in plain]
        of_weights = {
            name: [torch.zeros_like(p) if (g := found.pop(0)) is None else g for p in own] for name, own in weights
        }
        return _Backpropagated(by_call, of_plain, of_weights, moments)

    def _add_moments(
        self, moments: Any, estimates: Collection[Estimate], name: str, call: _Call, gradients: Any
    ) -> None:
        """What autograd hands to a node: the gradients of its outputs."""
        layer, g = self.layers[name], gradients[call.edge.output_nr]
        sums = moments.setdefault(name, {})
        # Estimates that differ in the input factor alone share one output factor.
        for key in {estimate.of_outputs for estimate in estimates}:
            if g is not None:
                rows = full(layer.gradient_rows(g[: key.count(len(g))]))
                rows = rows.sum(1) if key.sharing == "reduce" else rows
                sums[key] = MomentOfRows(rows).add_to(sums.get(key), 1.0, 1.0)
            elif key not in sums:
                sums[key] = full(layer.module.weight.detach()).new_zeros(layer.d_out, layer.d_out)


@dataclass
class _Backpropagated:
    """What one backward pass gave: by call, of plain parameters, of whole layers; moments of what was not kept."""

    by_call: dict[_Call, Tensor | None]
    plain: list[Tensor | None]
    dense: dict[str, list[Tensor]]
    moments: _Moments | None


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


def _unchanged(name: str, calls: list[_Call]) -> list[Tensor]:
    """What the layer was given in these calls."""
    for call in calls:
        if call.input._version != call.version:
            raise CaptureError(
                f"the input of layer {name!r} was changed in place after the layer used it, "
                "so its rows are lost; make the operation that follows it out of place"
            )
    return [call.input for call in calls]


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class capture:
    """``with capture(layers) as captured:`` around a training forward; the hooks end with the block."""

    def __init__(self, layers: dict[str, Layer], plain: list[nn.Parameter] | None = None) -> None:
        self.captured = Captured(dict(layers), plain or [])
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Captured:
        for layer in self.captured.layers.values():
            hook = self._make_hook(layer.name, layer.d_out * layer.groups)
            # A model may give the layer its input by keyword.
            self._handles.append(layer.module.register_forward_hook(hook, with_kwargs=True))
        return self.captured

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _make_hook(self, name: str, width: int) -> Callable[..., Tensor | None]:
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
            samples, positions = output.shape[0], output.numel() // max(1, output.shape[0] * width)
            call = _Call(x.detach(), x._version, samples, get_gradient_edge(output), positions)
            calls.setdefault(name, []).append(call)
            return replaced  # None leaves what the layer returned

        return hook
