"""Where the kernel of a convolution reads: sizes, padding of every kind, patches; over planes or volumes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

_Pair = tuple[int, int]
_Axes = tuple[int, ...]


def outputs(padded: Sequence[int], kernel: _Axes, dilation: _Axes, stride: _Axes) -> _Axes:
    """Positions along every axis, of images whose sizes count all of their padding."""
    axes = zip(padded, kernel, dilation, stride, strict=True)
    return tuple((size - d * (k - 1) - 1) // s + 1 for size, k, d, s in axes)


@dataclass(frozen=True)
class Geometry:
    """One kernel over images [N, C, H, W] or volumes [N, C, D, H, W]; a sequence is an image of one row.

    ``padding``: (in front, behind) of every axis; a negative one cuts off. ``mode``: with what, as torch names it.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[_Pair, ...]
    mode: str = "zeros"

    @classmethod
    def of(cls, conv: Any) -> "Geometry":
        """Of a module that convolves forwards."""
        padding: tuple[_Pair, ...]
        if conv.padding == "same":  # the odd one of an even kernel lies behind
            totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
            padding = tuple((total // 2, total - total // 2) for total in totals)
        else:
            amounts = (0,) * len(conv.kernel_size) if conv.padding == "valid" else conv.padding
            padding = tuple((p, p) for p in amounts)
        return cls(conv.kernel_size, conv.stride, conv.dilation, padding, conv.padding_mode).as_plane()

    def as_plane(self) -> "Geometry":
        """A sequence as the only row of an image."""
        if len(self.kernel) > 1:
            return self
        axes = (1, *self.kernel), (1, *self.stride), (1, *self.dilation)
        return Geometry(*axes, ((0, 0), *self.padding), self.mode)

    @property
    def zeros(self) -> tuple[int, ...]:
        """So many zeros on both sides of every axis are left to whoever goes over what ``padded`` returns."""
        return tuple(max(0, min(pair)) if self.mode == "zeros" else 0 for pair in self.padding)

    @property
    def is_pointwise(self) -> bool:
        """Whether a patch is a pixel."""
        return set(self.kernel) == {1} and not any(self.zeros)

    def padded(self, images: Tensor) -> Tensor:
        """With all of the padding but ``zeros``; most convolutions have none such, and nothing is copied."""
        rest = [(front - z, behind - z) for (front, behind), z in zip(self.padding, self.zeros, strict=True)]
        if not any(map(any, rest)):
            return images
        amounts = [amount for pair in reversed(rest) for amount in pair]  # torch begins with the last axis
        return functional.pad(images, amounts, mode="constant" if self.mode == "zeros" else self.mode)

    def padded_sizes(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Of what ``padded`` returns."""
        pairs = zip(sizes, self.padding, self.zeros, strict=True)
        return tuple(size + front + behind - 2 * z for size, (front, behind), z in pairs)

    def outputs(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Positions along every axis of images of these sizes."""
        padded = [size + sum(pair) for size, pair in zip(sizes, self.padding, strict=True)]
        return outputs(padded, self.kernel, self.dilation, self.stride)

    def patches(self, images: Float[Tensor, "N C *sizes"]) -> Float[Tensor, "N P columns"]:
        """Of images that are ``padded``: positions in their order, columns in that of a weight, (channel, taps)."""
        if self.is_pointwise and len(self.kernel) == 2:
            return images[:, :, :: self.stride[0], :: self.stride[1]].flatten(2).transpose(1, 2)
        if len(self.kernel) == 2:
            return functional.unfold(images, self.kernel, self.dilation, self.zeros, self.stride).transpose(1, 2)
        axes, sides = len(self.kernel), [z for z in reversed(self.zeros) for _ in range(2)]
        views = functional.pad(images, sides) if any(sides) else images
        for axis, (k, d, s) in enumerate(zip(self.kernel, self.dilation, self.stride, strict=True)):
            views = views.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
        # [N, C, positions, taps]: one copy, of what is asked for alone.
        return views.movedim(1, 1 + axes).flatten(1 + axes).flatten(1, axes)
