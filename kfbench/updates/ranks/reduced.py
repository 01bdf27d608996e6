"""Statistics whose moments are of a whole batch, though this process has seen but a part of its rows."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from kfbench.curvature.statistics import LayerStatistics
from kfbench.layers.estimate import EXACT, Estimate
from kfbench.layers.moments import Form, MeasuredMoment, Moment
from kfbench.layers.outer_products import from_lower_half, lower_half
from kfbench.layers.sample_rows import SampleRows


@dataclass(frozen=True)
class ReducedMoment:
    """A sum that was made by several processes, in the form in which each kept it."""

    kept: Tensor
    form: Form | None

    def add_to(self, kept: Tensor | None, keep: float, scale: float) -> Tensor:
        """Added as it is."""
        return MeasuredMoment(self.kept).add_to(kept, keep, scale)


def as_sent(moment: Moment, counts: bool) -> Float[Tensor, "h"]:
    """What travels of a moment: its compact form, or the half of its matrix; zeros where it counts nothing."""
    made = moment.add_to(None, 0.0, 1.0)
    made = made if counts else made.zero_()
    return made.reshape(-1) if moment.form is not None else lower_half(made)


def received(sent: Float[Tensor, "h"], form: Form | None) -> ReducedMoment:
    """The inverse."""
    return ReducedMoment(sent if form is not None else from_lower_half(sent, symmetric=True), form)


class ReducedStatistics(LayerStatistics):
    """One layer: rows are those of this process, moments and what they count those of all ``samples``.

    ``summed`` joins an input moment of another kind than the one that was.
    """

    def __init__(
        self,
        own: LayerStatistics,
        samples: int,
        estimate: Estimate,
        inputs: ReducedMoment,
        outputs: ReducedMoment | None,
        summed: Callable[[LayerStatistics, bool | None, Estimate], ReducedMoment],
    ) -> None:
        self._own, self._samples, self._estimate = own, samples, estimate
        self._inputs, self._outputs, self._summed = inputs, outputs, summed
        self.samples, self.positions, self.has_bias, self.vectors = (
            own.samples,
            own.positions,
            own.has_bias,
            own.vectors,
        )

    def sample_rows(self) -> SampleRows:
        """Of this process."""
        return self._own.sample_rows()

    @property
    def output_gradients(self) -> Float[Tensor, "K N P d_out"] | None:
        """Likewise."""
        return self._own.output_gradients

    def input_moment(self, ones: bool | None = None, estimate: Estimate = EXACT) -> Moment:
        """Of all samples."""
        if estimate == self._estimate and ones in (None, self.has_bias):
            return self._inputs
        return self._summed(self._own, ones, estimate)

    def output_moment(self, estimate: Estimate = EXACT) -> Moment:
        """Likewise; AssertionError for another estimate than the method's own."""
        assert self._outputs is not None, "the method's fisher is 'none', so nothing was backpropagated"
        assert estimate == self._estimate, "a method observes moments of its own estimate"
        return self._outputs

    def counted(self, estimate: Estimate) -> int:
        """All samples."""
        return self._samples

    def counted_rows(self, estimate: Estimate) -> int:
        """All of their positions."""
        return self._samples * self.positions

    def to_check(self) -> list[Tensor]:
        """What all processes know, so that all judge alike."""
        return [moment.kept for moment in (self._inputs, self._outputs) if moment is not None]
