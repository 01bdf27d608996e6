"""Convolutions: every output position is one, its input the patch under the kernel (Grosse & Martens 2016)."""

import math
from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn

from kfbench.curvature.contract import Layer, full
from kfbench.curvature.estimate import Estimate
from kfbench.curvature.moments import Form, Moment, MomentOfChunks, MomentOfImages
from kfbench.curvature.shifts import Shifts
from kfbench.curvature.structured import ChannelGroups, TapMean

# Patches are made of so many samples at once that they hold about this many numbers: they stay near the cache.
_CHUNK = 2**20


class ConvolutionLayer(Layer):
    """An ``nn.Conv2d``."""

    module: nn.Conv2d

    @staticmethod
    def why_not(module: nn.Conv2d) -> str | None:
        """Groups and padding other than with a number of zeros."""
        if module.groups != 1:
            return "grouped convolutions have no single input factor"
        # unfold pads with zeros alone, as many in front as behind.
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            return f"padding {module.padding!r} ({module.padding_mode}) is not supported"
        return None

    def input_rows(self, x: Tensor) -> Float[Tensor, "N P d_in"]:
        """Patches, each in the order of the weight: channels, then rows, then columns of the kernel."""
        conv = self.module
        assert not isinstance(conv.padding, str), "refused by why_not"
        if self._is_pointwise:  # a patch is a pixel
            return self.with_ones(x[:, :, :: conv.stride[0], :: conv.stride[1]].flatten(2).transpose(1, 2))
        patches = nn.functional.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
        return self.with_ones(patches.transpose(1, 2))

    @property
    def _is_pointwise(self) -> bool:
        return self.module.kernel_size == (1, 1) and self.module.padding == (0, 0)

    def gradient_rows(self, g: Tensor) -> Float[Tensor, "N P d_out"]:
        """Output positions row by row, as ``unfold`` goes through them."""
        return g.flatten(2).transpose(1, 2)

    def input_moment(self, inputs: list[Tensor], ones: bool, estimate: Estimate) -> Moment:
        """By shifts where they are fewer multiply-adds and all calls are alike, else by patches of a few samples."""
        images = [full(x[: estimate.count(len(x))]) for x in inputs]
        form = self.form(tuple(images[0].shape[1:]), ones, estimate)
        if form is not None and (estimate.is_structured or len({x.shape[1:] for x in images}) == 1):
            return MomentOfImages(images, form)
        return MomentOfChunks(lambda: self._chunks(images, ones, estimate.sharing == "reduce"))

    def form(self, image: tuple[int, ...], ones: bool, estimate: Estimate) -> Form | None:
        """Of [C, H, W] images."""
        conv, channels = self.module, image[0]
        geometry = conv.kernel_size, conv.padding, conv.dilation, conv.stride
        if estimate.spatial == "sua":
            return TapMean(channels, image[1:], *geometry, ones)  # type: ignore[arg-type]
        if estimate.groups > 1 and channels % estimate.groups == 0:
            return ChannelGroups(channels, image[1:], estimate.groups, *geometry, ones)  # type: ignore[arg-type]
        return None if estimate.sharing == "reduce" else self.shifts(image, ones)

    def _chunks(self, images: list[Tensor], ones: bool, summed: bool) -> Iterator[Float[Tensor, "R d"]]:
        for x in images:
            patch_numbers = self.d_in * self.positions(x.shape)
            for part in x.split(max(1, _CHUNK // patch_numbers)):
                rows = self.rows_with(ones, part)
                yield rows.sum(1) if summed else rows.flatten(0, 1)

    def shifts(self, image: tuple[int, ...], ones: bool) -> Shifts | None:
        """Those of [C, H, W] images, where they are cheaper than half of the products of all patches."""
        conv = self.module
        if conv.stride != (1, 1) or self._is_pointwise:
            return None
        shifts = Shifts.of(image[0], image[1:], conv.kernel_size, conv.padding, conv.dilation, ones)
        by_patches = shifts.positions * shifts.d_in**2 / 2
        return shifts if shifts.multiply_adds(1) < by_patches else None

    def positions(self, shape: tuple[int, ...]) -> int:
        """P of inputs of this shape."""
        conv, sizes = self.module, shape[2:]
        assert not isinstance(conv.padding, str), "refused by why_not"
        reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        per_axis = zip(sizes, conv.padding, reach, conv.stride, strict=True)
        return math.prod((size + 2 * p - r - 1) // s + 1 for size, p, r, s in per_axis)
