"""What one turn collects of its micro-batches, joined, with layers that were skipped; whether it is finite."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kfbench.curvature.captured import Captured
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import LayerStatistics, join_statistics
from kfbench.layers.contract import Layer, full
from kfbench.layers.estimate import EXACT, Estimate
from kfbench.updates.ranks.sharing import ALONE, Ranks

Batches = Iterable[tuple[Tensor, Tensor]]  # inputs and targets
FisherBatches = Callable[[int], Batches]  # number of a refresh -> the points that a method draws for itself


class Collected:
    """What the micro-batches of one update have given, until its turn is taken; of ``ranks``, what all of theirs have.

    ``estimate``: how the moments of its statistics are asked for.
    """

    def __init__(self, ranks: Ranks = ALONE, estimate: Estimate = EXACT) -> None:
        self._ranks, self._estimate = ranks, estimate
        self.discard()

    def discard(self) -> None:
        """Give it up."""
        self._gradients: list[dict[str, LayerGradient]] = []
        self._statistics: list[dict[str, LayerStatistics]] = []
        self._plain: list[tuple[int, list[Tensor | None]]] = []

    def add(self, captured: Captured, losses: Tensor, keep_graph: bool) -> None:
        """Gradients of one micro-batch; frees the graph unless it is to be kept."""
        self._gradients.append(captured.gradients(losses, keep_graph))
        self._plain.append((len(losses), captured.plain_gradients(losses)))

    def add_statistics(self, statistics: dict[str, LayerStatistics]) -> None:
        """Those of one micro-batch."""
        self._statistics.append(statistics)

    def gradients(self, layers: Mapping[str, Layer], keep_rows: bool, l2: float) -> dict[str, LayerGradient]:
        """Of every layer over the whole batch, with that of ``l2 / 2 |theta|^2``."""
        joined = joined_gradients(self._gradients, self._plain, layers, keep_rows)
        joined, self._plain = self._ranks.gradients(joined, self._plain)
        return {name: G.plus_matrix(l2 * weights(layers[name])) for name, G in joined.items()} if l2 else joined

    def plain(self, parameters: Sequence[nn.Parameter], l2: float) -> Iterator[tuple[nn.Parameter, Tensor | None]]:
        """The same of every parameter of no captured layer; None where no micro-batch used it."""
        for parameter, gradient in joined_plain(self._plain, parameters):
            yield parameter, gradient if gradient is None or not l2 else gradient + l2 * parameter.detach()

    def statistics(self, layers: Mapping[str, Layer], newest_only: bool) -> dict[str, LayerStatistics] | None:
        """Over the whole batch; None where it was not observed."""
        joined = joined_statistics(self._statistics, layers, newest_only)
        return None if joined is None else self.whole(joined)

    def whole(self, statistics: dict[str, LayerStatistics]) -> dict[str, LayerStatistics]:
        """Of all processes, what this one has of them."""
        return self._ranks.statistics(statistics, self._estimate)

    def whole_gradients(self, gradients: dict[str, LayerGradient]) -> dict[str, LayerGradient]:
        """Likewise, of a batch that no update is made of."""
        return self._ranks.gradients(gradients, [(1, [])])[0]


def weights(layer: Layer) -> Tensor:
    """Weight and bias as the layer's one matrix [d_out, d_in]."""
    return full(layer.matrix([parameter.detach() for parameter in layer.parameters]))


def joined_gradients(
    parts: Sequence[Mapping[str, LayerGradient]],
    plain: Sequence[tuple[int, Any]],
    layers: Mapping[str, Layer],
    keep_rows: bool,
) -> dict[str, LayerGradient]:
    """The gradient of every layer over all micro-batches; zero rows where one did not use it.

    ``plain``: (samples, ...) of every micro-batch.
    """
    joined = {}
    for name, layer in layers.items():
        own = [part.get(name) for part in parts]
        like = next((G for G in own if G is not None), None)
        positions = like.rows // like.samples if like is not None and like.samples else 1
        whole = [
            _zero_gradient(layer, samples, positions) if G is None else G
            for G, (samples, _) in zip(own, plain, strict=True)
        ]
        joined[name] = LayerGradient.join(whole, keep_rows)
    return joined


def _zero_gradient(layer: Layer, samples: int, positions: int) -> LayerGradient:
    weight = layer.module.weight
    like = full(weight.detach())
    rows = samples * positions
    return LayerGradient(like.new_zeros(rows, layer.d_out), like.new_zeros(rows, layer.d_in), samples)


def joined_plain(
    plain: Sequence[tuple[int, list[Tensor | None]]], parameters: Sequence[nn.Parameter]
) -> Iterator[tuple[nn.Parameter, Tensor | None]]:
    """The mean gradient of every parameter of no captured layer; None where no micro-batch used it."""
    total = sum(n for n, _ in plain)
    for index, parameter in enumerate(parameters):
        # Each is a mean over its own micro-batch.
        parts = [(n, g) for n, grads in plain if (g := grads[index]) is not None]
        yield parameter, sum((g * (n / total) for n, g in parts), torch.zeros_like(parameter)) if parts else None


def joined_statistics(
    parts: Sequence[dict[str, LayerStatistics]], layers: Mapping[str, Layer], newest_only: bool
) -> dict[str, LayerStatistics] | None:
    """The statistics over all micro-batches, None of none.

    A layer that some micro-batch skipped has zero rows there. One that none used is left out, so that averages keep
    what they know of it; a method that keeps only the newest rows gets zeros for it, which is exactly its Fisher.
    """
    if not parts:
        return None
    names = [name for name in layers if any(name in part for part in parts)]
    if len(names) == len(layers) and all(len(part) == len(names) for part in parts):
        return join_statistics(list(parts))  # the usual case
    any_layer = next((layer for part in parts for layer in part.values()), None)
    if any_layer is None:
        return None
    wanted = list(layers) if newest_only else names
    whole = []
    for part in parts:
        first = next(iter(part.values()), any_layer)
        whole.append({name: part.get(name) or _zero_statistics(name, layers[name], parts, first) for name in wanted})
    return join_statistics(whole)


def _zero_statistics(
    name: str, layer: Layer, parts: Sequence[Mapping[str, LayerStatistics]], first: LayerStatistics
) -> LayerStatistics:
    """Zero rows with the samples and vectors of ``first``, and the positions that the layer has elsewhere."""
    samples = first.samples
    positions = next((part[name].positions for part in parts if name in part), 1)
    like = full(layer.module.weight.detach())
    gradients = like.new_zeros(first.vectors, samples, positions, layer.d_out) if first.vectors else None
    return LayerStatistics(like.new_zeros(samples, positions, layer.d_in), gradients, layer.has_bias)


def first_not_finite(statistics: Mapping[str, LayerStatistics | LayerGradient]) -> str | None:
    """The first layer with rows that are not finite; one synchronisation with the device in all."""
    tensors = [(name, rows) for name, layer in statistics.items() for rows in layer.to_check()]
    if not tensors:
        return None
    # A sum is cheaper than looking at every entry, and is finite only if all of them are.
    sums = torch.stack([rows.sum(dtype=torch.promote_types(rows.dtype, torch.float32)).double() for _, rows in tensors])
    finite = torch.isfinite(sums).tolist()
    return next((name for (name, _), is_finite in zip(tensors, finite, strict=True) if not is_finite), None)


# What becomes of statistics that are not finite: left out of the method, or FloatingPointError.
ON_NONFINITE = ("skip", "stop")


class Sieve:
    """Holds back statistics that are not finite: one corrupt sample would stay in every average for good.

    ValueError for an ``on_nonfinite`` that is not one of ON_NONFINITE.
    """

    def __init__(self, on_nonfinite: str) -> None:
        if on_nonfinite not in ON_NONFINITE:
            raise ValueError(f"on_nonfinite must be one of {', '.join(ON_NONFINITE)}, got {on_nonfinite!r}")
        self._on_nonfinite, self.held_back = on_nonfinite, 0

    def lets_pass(self, statistics: Mapping[str, LayerStatistics | LayerGradient], needed: bool) -> bool:
        """Whether they are finite; FloatingPointError where they are not, and are ``needed`` or this is to stop."""
        bad = first_not_finite(statistics)
        if bad is None:
            return True
        self.held_back += 1
        sentence = f"a batch's statistics of layer {bad!r} are not finite"
        if self._on_nonfinite == "stop" or needed:
            raise FloatingPointError(sentence)
        if self.held_back == 1:
            warnings.warn(f"{sentence}, so they are left out (further batches are only counted)", stacklevel=3)
        return False
