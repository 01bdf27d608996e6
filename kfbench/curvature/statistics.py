"""What one batch says about each layer.

Factors (Grosse & Martens 2016, weight sharing "expand"), means over samples, so that neither the
batch size nor the reduction of the loss enters:

- ``A = 1/N sum_n sum_p a a'`` [d_in, d_in]
- ``B = 1/(N P) sum_n sum_p g g'`` [d_out, d_out], summed over the K backpropagated vectors
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from kfbench.curvature.recursion import Link
from kfbench.layers.estimate import EXACT, Estimate
from kfbench.layers.moments import JoinedMoment, MeasuredMoment, Moment, MomentOfRows
from kfbench.layers.sample_rows import SampleRows, with_ones


class LayerStatistics:
    """One layer's rows in one batch, of P ``positions`` in each of N ``samples``, for K ``vectors`` (0 for none).

    ``inputs`` [N, P, d_in]. ``output_gradients`` [K, N, P, d_out] or None where the method needs no
    Fisher: the gradients of K vectors per sample whose outer products sum to (an estimate of) the
    Fisher of the output. K = 1 for true or once-sampled labels, the number of classes for "full".
    ``has_bias``: the last column of the inputs is the bias's, all ones. ``link``: how the layer leads on, for methods
    whose Fisher is "recursion".
    """

    link: Link | None = None

    def __init__(
        self, inputs: Tensor | SampleRows, output_gradients: Tensor | None = None, has_bias: bool = False
    ) -> None:
        self._rows = inputs if isinstance(inputs, SampleRows) else SampleRows.of(inputs)
        self._output_gradients, self.has_bias = output_gradients, has_bias
        self.samples, self.positions = self._rows.samples, self._rows.positions
        self.vectors = 0 if output_gradients is None else len(output_gradients)

    @property
    def inputs(self) -> Float[Tensor, "N P d_in"]:
        """Of a convolution all its patches, made anew at every look: what needs but their moment asks for that."""
        return self.sample_rows().all()

    @property
    def output_gradients(self) -> Float[Tensor, "K N P d_out"] | None:
        """AssertionError where only their moment was kept, for methods that say ``moments_only``."""
        return self._output_gradients

    def parts(self, numbers: int) -> Iterator[tuple[Float[Tensor, "K n P d_out"], Float[Tensor, "n P d_in"]]]:
        """Output gradients and inputs, a few samples at a time, beside ``numbers`` that are worked on for each."""
        g = self.output_gradients
        assert g is not None, "the method's fisher is 'none', so nothing was backpropagated"
        for part, a in self.sample_rows().parts(numbers):
            yield g[:, part], a

    def sample_rows(self) -> SampleRows:
        """The inputs, made when asked for."""
        return self._rows

    def input_moment(self, ones: bool | None = None, estimate: Estimate = EXACT) -> Moment:
        """``sum_n sum_p a a'``; ``ones``: with a column of ones (default: where the layer has a bias)."""
        rows = self._rows.make(slice(estimate.count(self.samples)))
        rows = with_ones(rows) if ones and not self.has_bias else rows
        return MomentOfRows(rows.sum(1) if estimate.sharing == "reduce" else rows)

    def output_moment(self, estimate: Estimate = EXACT) -> Moment:
        """``sum_k sum_n sum_p g g'``."""
        assert self._output_gradients is not None, "the method's fisher is 'none', so nothing was backpropagated"
        g = self._output_gradients[:, : estimate.count(self.samples)]
        return MomentOfRows(g.sum(2) if estimate.sharing == "reduce" else g)

    def first(self, samples: int | None) -> "LayerStatistics":
        """Its rows of the first so many samples, or all, without whatever else it knows."""
        rows, g = self.sample_rows().first(samples), self.output_gradients
        return LayerStatistics(rows, None if g is None else g[:, : rows.samples], self.has_bias)

    def counted(self, estimate: Estimate) -> int:
        """How many samples its moments are made of."""
        return estimate.count(self.samples)

    def counted_rows(self, estimate: Estimate) -> int:
        """How many rows: samples times positions."""
        return estimate.count(self.samples) * self.positions

    def to_check(self) -> list[Tensor]:
        """Tensors that are finite only if all that was captured is."""
        return [self.inputs] if self._output_gradients is None else [self.inputs, self._output_gradients]


class CapturedStatistics(LayerStatistics):
    """The same of a captured layer whose rows are made when asked for.

    ``rows`` make its inputs, ``moment(ones, estimate)`` their moment; of the output gradients either rows
    [K, N, P, d_out] or the ``output_moments`` that were summed up while they were there, or a ``link`` in place of
    both. ``raw``: what the layer was given.
    """

    def __init__(
        self,
        rows: SampleRows,
        has_bias: bool,
        moment: Callable[[bool, Estimate], Moment],
        raw: list[Tensor],
        vectors: int,
        output_gradients: Tensor | None,
        output_moments: Mapping[Estimate, Tensor] | None,
        link: Link | None = None,
    ) -> None:
        super().__init__(rows, output_gradients, has_bias)
        self.link = link
        self.vectors = vectors  # also where their gradients were not kept
        self._moment, self._raw, self._output_moments = moment, raw, output_moments

    @property
    def output_gradients(self) -> Float[Tensor, "K N P d_out"] | None:
        """AssertionError where only their moment was kept."""
        assert self._output_moments is None, "the method said moments_only, so no output gradients were kept"
        return self._output_gradients

    def input_moment(self, ones: bool | None = None, estimate: Estimate = EXACT) -> Moment:
        """Without patches where that is cheaper."""
        return self._moment(self.has_bias if ones is None else ones, estimate)

    def output_moment(self, estimate: Estimate = EXACT) -> Moment:
        """As it was summed up, or of the rows."""
        if self._output_moments is None:
            return super().output_moment(estimate)
        return MeasuredMoment(self._output_moments[estimate.of_outputs])

    def to_check(self) -> list[Tensor]:
        """Inputs as they were given, not as patches."""
        moments = (self._output_moments or {}).values()
        linked = self.link.tensors if self.link is not None else []
        return [t for t in (*self._raw, self._output_gradients, *moments, *linked) if t is not None]


Statistics = Mapping[str, LayerStatistics]


def join_statistics(parts: list[dict[str, LayerStatistics]]) -> dict[str, LayerStatistics]:
    """The statistics of micro-batches as those of the whole batch."""
    if len(parts) == 1:
        return parts[0]
    return {name: _JoinedStatistics([part[name] for part in parts]) for name in parts[0]}


class _JoinedStatistics(LayerStatistics):
    """Of several micro-batches, whose moments are added up and whose rows are joined where they are asked for."""

    def __init__(self, parts: list[LayerStatistics]) -> None:
        self._parts, first = parts, parts[0]
        self.samples = sum(part.samples for part in parts)
        self.positions, self.has_bias, self.vectors = first.positions, first.has_bias, first.vectors
        self.link = Link.joined([part.link for part in parts])

    def sample_rows(self) -> SampleRows:
        """Joined where they lie in memory."""
        return SampleRows.join([part.sample_rows() for part in self._parts])

    @property
    def output_gradients(self) -> Float[Tensor, "K N P d_out"] | None:
        """Likewise."""
        gradients = [g for part in self._parts if (g := part.output_gradients) is not None]
        return torch.cat(gradients, dim=1) if gradients else None

    def input_moment(self, ones: bool | None = None, estimate: Estimate = EXACT) -> Moment:
        """One after the other."""
        return JoinedMoment.of([part.input_moment(ones, estimate) for part in self._parts])

    def output_moment(self, estimate: Estimate = EXACT) -> Moment:
        """Likewise."""
        return JoinedMoment.of([part.output_moment(estimate) for part in self._parts])

    def counted(self, estimate: Estimate) -> int:
        """Those of every part."""
        return sum(part.counted(estimate) for part in self._parts)

    def counted_rows(self, estimate: Estimate) -> int:
        """Likewise: their positions may differ, as sizes of images do."""
        return sum(part.counted_rows(estimate) for part in self._parts)

    def to_check(self) -> list[Tensor]:
        """Of all parts."""
        return [tensor for part in self._parts for tensor in part.to_check()]
