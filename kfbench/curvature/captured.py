"""What one captured forward gives: gradients and statistics of every layer, made as cheaply as they are wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kfbench.curvature.backward import Backpropagated, Call, Moments, backpropagate, nodes_below
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.recursion import Link, check_chain, links_of
from kfbench.curvature.statistics import CapturedStatistics, LayerStatistics
from kfbench.layers.contract import Layer, full
from kfbench.layers.estimate import Estimate
from kfbench.layers.moments import Moment, MomentOfRows
from kfbench.layers.sample_rows import SampleRows, with_ones

_LET_GO = torch.empty(0)  # in place of an input that nobody will ask for


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
    unwritten: set[str] = field(default_factory=set)
    """Layers whose outputs, where these are views, nobody is known to change in place."""
    calls: dict[str, list[Call]] = field(default_factory=dict)
    without_graph: set[str] = field(default_factory=set)
    """Layers that were called under no_grad: by an evaluation, or where a checkpoint hides them."""
    loss_scale: float = 1.0
    """What the losses were multiplied by; it is taken out of every gradient."""
    wanted: Wanted = field(default_factory=Wanted)
    outputs: list[tuple[str, Tensor, int]] = field(default_factory=list)
    """What layers returned as views or copies of such, each with its version, until the losses are there."""
    _reached: set[Any] | None = None
    _true: Backpropagated | None = None
    _inputs: dict[str, Tensor] = field(default_factory=dict)
    _labels: dict[str, list[Backpropagated]] = field(default_factory=dict)
    _links: dict[str, Link] = field(default_factory=dict)

    def exclude(self, name: str) -> None:
        """Forget a layer: its parameters are then treated as plain ones, by the caller."""
        self.calls.pop(name, None)
        self._inputs.pop(name, None)

    def reach(self, losses: Tensor) -> Counter[int]:
        """Find out which calls ``losses`` are made of; returns how often each parameter (by id) is used below them.

        CaptureError where a layer's output was changed in place, and was not in the forwards before.
        """
        written = {name for name, output, version in self.outputs if output._version != version}
        if new := sorted(written & self.unwritten):
            raise CaptureError(
                f"the output of layer {new[0]!r} was changed in place, which it was not in the forwards before; make "
                "the operation that follows it out of place"
            )
        self.unwritten |= {name for name, *_ in self.outputs} - written
        self.outputs.clear()
        self._reached, uses = nodes_below(losses)
        return uses

    def used(self, name: str) -> list[Call]:
        """The calls of a layer that the losses reach, as far as that is known."""
        calls = self.calls.get(name, [])
        return calls if self._reached is None else [call for call in calls if call.edge.node in self._reached]

    @property
    def _calls_used(self) -> dict[str, list[Call]]:
        return {name: used for name in self.calls if (used := self.used(name))}

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
                self._inputs[name] = _joined([full(layer.input_rows(x)) for x in self._given(name)()])
            return SampleRows.of(self._inputs[name])

        given, positions = self._given(name), sum(call.positions for call in used)
        if len(used) == 1:
            return layer.sample_rows(lambda: given()[0], used[0].samples, positions)

        def make(part: slice) -> Tensor:
            return _joined([full(layer.input_rows(x[part])) for x in given()])

        return SampleRows(make, used[0].samples, positions, layer.d_in)

    def _given(self, name: str) -> Callable[[], list[Tensor]]:
        """What the layer was given, when asked for; neither the calls, whose edges keep the graph, nor ``self``."""
        return partial(_unchanged, name, [(call.input, call.version) for call in self.used(name)])

    def draw(
        self,
        fisher: str,
        output: Tensor,
        vectors: Callable[[Tensor, str], Tensor] | None,
        losses: Tensor,
        moments: Collection[Estimate] = (),
        fisher_sum: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        """Backpropagate what a Fisher of this kind needs, keeping the graph; once for all who ask.

        ``vectors(output, fisher)`` gives the K vectors [K, *output.shape] of the likelihood for sampled and
        full; empirical uses the true labels' gradients; recursion asks ``fisher_sum`` and follows the layers,
        ValueError where they are no chain. ``moments``: where nobody asks for rows of output gradients, all that is
        asked for, so that each row may be given up when it has been added to them.
        """
        if fisher == "empirical":
            self._backpropagate_losses(losses, keep_graph=True)
        elif fisher == "recursion":
            assert fisher_sum is not None, "the recursion needs a likelihood"
            self._links = self._links or links_of(self.layers, self._calls_used, output, fisher_sum)
        elif fisher != "none" and fisher not in self._labels:
            assert vectors is not None, f"fisher {fisher!r} needs a likelihood"
            # Detached: labels are drawn from the output, not differentiated through it.
            drawn = vectors(output.detach(), fisher)
            kept = {name for name in self.calls if not self._adds_up(name, moments)}
            sums: Moments | None = {} if moments else None
            given = self.layers, self._calls_used, output
            self._labels[fisher] = [
                backpropagate(*given, vector, kept=kept, moments=sums, estimates=moments) for vector in drawn
            ]

    def check_chain(self, output: Tensor) -> None:
        """ValueError where the recursion would not be of this model."""
        check_chain(self.layers, self._calls_used, output)

    def statistics(self, fisher: str) -> dict[str, LayerStatistics]:
        """Those of every layer that was used, for the ``fisher`` given to ``draw``; without any draw for "none"."""
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
            inputs = self.inputs(name)
            found[name] = CapturedStatistics(
                rows=inputs,
                has_bias=layer.has_bias,
                moment=partial(_input_moment, layer, inputs, self._given(name)),
                # Groups were given the same, which the first of them answers for.
                raw=[call.input for call in used] if layer.group == 0 else [],
                vectors=len(passes),
                output_gradients=rows,
                output_moments=moments,
                link=self._links.get(name) if fisher == "recursion" else None,
            )
        return found

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

    def _rows(self, name: str, of: Backpropagated) -> Tensor:
        """Gradient rows [N, P, d_out] of the calls that were used; zero where one was not reached from this start."""
        layer = self.layers[name]
        parts = [
            self._zeros(name, call) if (g := of.by_call.get(call)) is None else full(layer.gradient_rows(g))
            for call in self.used(name)
        ]
        return _joined(parts)

    def _zeros(self, name: str, call: Call) -> Tensor:
        like = full(self.layers[name].module.weight.detach())
        return like.new_zeros(call.samples, call.positions, self.layers[name].d_out)

    def _backpropagate_losses(self, losses: Tensor, keep_graph: bool) -> Backpropagated:
        # One pass gives all, and is made once: after it the graph may be gone.
        if self._true is None:
            if self._reached is None:
                self.reach(losses)
            used = [name for name in self.calls if self.used(name)]
            on_rows = {name for name in used if self._keeps_rows(name)}
            dense = {name for name in used if name not in on_rows or (self.wanted.matrices and not self.is_small(name))}
            moments: Moments | None = {} if self.wanted.moments else None
            asked = self.wanted.moments
            kept = on_rows | {name for name in used if asked and not self._adds_up(name, asked)}
            if not self.wanted.inputs:
                for name in self.calls.keys() - kept:
                    for call in self.calls[name]:
                        call.input = _LET_GO
            self._true = backpropagate(
                self.layers, self._calls_used, losses, None, keep_graph, kept, moments, asked, self.plain, dense
            )
        return self._true


class CaptureError(RuntimeError):
    """A model did what capture cannot follow; the message is one sentence for the user."""


def _unchanged(name: str, given: list[tuple[Tensor, int]]) -> list[Tensor]:
    """What the layer was given, of each call with its version."""
    for x, version in given:
        if x._version != version:
            raise CaptureError(
                f"the input of layer {name!r} was changed in place after the layer used it, "
                "so its rows are lost; make the operation that follows it out of place"
            )
    return [x for x, _ in given]


def _input_moment(
    layer: Layer, rows: SampleRows, given: Callable[[], list[Tensor]], ones: bool, estimate: Estimate
) -> Moment:
    if (
        rows.positions > 1 or layer.always_of_form
    ):  # however few they are: a layer's own form, once kept, is then kept on
        return layer.input_moment(given(), ones, estimate)
    some = rows.make(slice(estimate.count(rows.samples)))
    return MomentOfRows(with_ones(some) if ones and not layer.has_bias else some)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
