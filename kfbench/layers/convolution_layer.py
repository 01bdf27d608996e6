"""Convolutions: every output position is one, its input the patch under the kernel (Grosse & Martens 2016)."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kfbench.layers.contract import Layer, full
from kfbench.layers.estimate import Estimate
from kfbench.layers.geometry import Geometry
from kfbench.layers.moments import Form, JoinedMoment, Moment, MomentOfChunks, MomentOfInputs
from kfbench.layers.plane import Plane
from kfbench.layers.sample_rows import SampleRows
from kfbench.layers.shifts import Shifts
from kfbench.layers.structured import ChannelGroups, TapMean


class ConvolutionLayer(Layer):
    """An ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``, or one of its groups, which is a layer of its own."""

    @staticmethod
    def why_not(module: Any) -> None:
        """All can be captured."""

    @property
    def groups(self) -> int:
        """Those of the module."""
        return self.module.groups

    @property
    def geometry(self) -> Geometry:
        """Of the kernel over ``images``."""
        return Geometry.of(self.module)

    def images(self, x: Tensor) -> Tensor:
        """What the kernel goes over: the group's channels, padded; of a sequence an image of one row."""
        return self.geometry.padded(self._plane(self._own_channels(x)))

    def sizes(self, given: tuple[int, ...]) -> tuple[int, ...]:
        """Of ``images`` before they are padded, of what the layer was given."""
        return given if len(given) > 1 else (1, *given)

    def _own_channels(self, x: Tensor) -> Tensor:
        channels = x.shape[1] // self.groups
        return x.narrow(1, self.group * channels, channels)

    @staticmethod
    def _plane(x: Tensor) -> Tensor:
        return x.unsqueeze(2) if x.dim() == 3 else x

    def input_rows(self, x: Tensor) -> Float[Tensor, "N P d_in"]:
        """Patches, each in the order of the weight: channels, then the kernel's axes."""
        return self.with_ones(self.geometry.patches(self.images(x)))

    def gradient_rows(self, g: Tensor) -> Float[Tensor, "N P d_out"]:
        """Output positions in their order in memory, as patches go through them."""
        return self._own_channels(g).flatten(2).transpose(1, 2)

    def sample_rows(self, given: Callable[[], Tensor], samples: int, positions: int) -> SampleRows:
        """Over planes by convolutions; of volumes patches are made."""
        if len(self.geometry.kernel) != 2:
            return super().sample_rows(given, samples, positions)
        plane = Plane(self.geometry, self.has_bias)
        return plane.sample_rows(lambda part: self.images(full(given()[part])), samples, positions, self.d_in)

    def input_moment(self, inputs: list[Tensor], ones: bool, estimate: Estimate) -> Moment:
        """By shifts where they are fewer multiply-adds and all calls are alike, else by patches of a few samples."""
        given = [full(x[: estimate.count(len(x))]) for x in inputs]
        if estimate.sharing == "reduce":
            return MomentOfChunks(lambda: self._sums(given, ones))
        if len({x.shape[1:] for x in given}) > 1:
            return JoinedMoment.of([self.input_moment([x], ones, estimate) for x in given])
        form = self.form(tuple(given[0].shape[1:]), ones, estimate)
        if form is not None:
            return MomentOfInputs([self.images(x) for x in given], form)
        return MomentOfChunks(lambda: self._chunks(given, ones))

    def form(self, image: tuple[int, ...], ones: bool, estimate: Estimate) -> Form | None:
        """Of [C, ...] images, as the layer is given them; of volumes always None, by patches."""
        geometry, channels = self.geometry, image[0] // self.groups
        sizes: Any = geometry.padded_sizes(self.sizes(image[1:]))
        if len(sizes) != 2:
            return None
        axes: tuple[Any, Any, Any, Any] = geometry.kernel, geometry.zeros, geometry.dilation, geometry.stride
        if estimate.spatial == "sua":
            return TapMean(channels, sizes, *axes, ones)
        if estimate.groups > 1 and channels % estimate.groups == 0:
            return ChannelGroups(channels, sizes, estimate.groups, *axes, ones)
        return None if estimate.sharing == "reduce" else self.shifts(image, ones)

    def _chunks(self, given: list[Tensor], ones: bool) -> Iterator[Float[Tensor, "R d"]]:
        for x in given:

            def make(part: slice, x: Tensor = x) -> Tensor:
                return self.rows_with(ones, x[part])

            rows = SampleRows(make, len(x), self._positions(x), self.d_in)
            for _, some in rows.parts(0):
                yield some.flatten(0, 1)

    def _sums(self, given: list[Tensor], ones: bool) -> Iterator[Float[Tensor, "n d"]]:
        """Over the positions of all calls."""

        def sums(part: slice) -> Tensor:
            return torch.stack([self.rows_with(ones, x[part]).sum(1) for x in given]).sum(0)

        for _, some in SampleRows(sums, len(given[0]), sum(map(self._positions, given)), self.d_in).parts(0):
            yield some

    def _positions(self, x: Tensor) -> int:
        return self.positions(tuple(x.shape))

    def shifts(self, image: tuple[int, ...], ones: bool) -> Shifts | None:
        """Those of [C, ...] images, where they are cheaper than half of the products of all patches."""
        geometry = self.geometry
        if set(geometry.stride) != {1} or geometry.is_pointwise or len(geometry.kernel) != 2:
            return None
        sizes, channels = geometry.padded_sizes(self.sizes(image[1:])), image[0] // self.groups
        shifts = Shifts.of(channels, sizes, geometry.kernel, geometry.zeros, geometry.dilation, ones)
        by_patches = shifts.positions * shifts.d_in**2 / 2
        return shifts if shifts.multiply_adds(1) < by_patches else None

    def positions(self, shape: tuple[int, ...]) -> int:
        """P of inputs of this shape; 0 where they are no batch."""
        if len(shape) != self.module.weight.dim():
            return 0
        return math.prod(self.geometry.outputs(self.sizes(tuple(shape[2:]))))
