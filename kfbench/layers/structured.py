"""Input factors of convolutions that are block-diagonal: one block for all taps (SUA), or one a group of channels.

A bias has a block of its own, its number of positions P: coupled to taps that are taken for alike it would make the
matrix indefinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kfbench.layers.geometry import outputs
from kfbench.layers.moments import Form
from kfbench.layers.outer_products import add_outer_products
from kfbench.layers.sample_rows import RowMap, SampleRows


@dataclass(frozen=True)
class TapMean(Form):
    """``C (x) I`` over the taps, C the mean over taps k of the blocks ``A[(., k), (., k)]``: one product of pixels.

    Of all matrices of that structure the nearest to A, of equal trace. Kept: C, then P where there are ``ones``.
    """

    kind = "sua"
    channels: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    stride: tuple[int, int]
    ones: bool

    @property
    def taps(self) -> int:
        """K1 K2."""
        return self.kernel[0] * self.kernel[1]

    @property
    def d_in(self) -> int:
        """Width of A."""
        return self.channels * self.taps + self.ones

    @property
    def blocks(self) -> int:
        """C, and P."""
        return 1 + self.ones

    @property
    def input_blocks(self) -> tuple[tuple[int, int], ...]:
        """C meets every tap of a row."""
        return ((self.channels, self.taps), *([(1, 1)] * self.ones))

    def multiply_adds(self, samples: int) -> float:
        """Of ``measure``."""
        return float(samples * self.size[0] * self.size[1] * self.channels**2)

    def measure(self, x: Float[Tensor, "N C H W"]) -> Tensor:
        """What is kept of these images, summed over them."""
        geometry = self.kernel, self.dilation, self.padding, self.stride
        columns = functional.unfold(x.new_zeros(1, 1, *self.size), *geometry)
        # How many pairs of output position and tap read each pixel.
        weights = functional.fold(torch.ones_like(columns), self.size, *geometry)[0, 0]
        total = x.new_zeros(self.channels, self.channels)
        for _, images in SampleRows.of(x.flatten(2)).parts(0):
            rows = images * weights.flatten().sqrt()
            add_outer_products(total, rows.transpose(1, 2).flatten(0, 1), keep=1.0, scale=1.0 / self.taps)
        positions = x.new_full((1,), len(x) * columns.shape[2])
        return torch.cat([total.flatten(), positions]) if self.ones else total.flatten()

    def block(self, kept: Tensor, index: int) -> Float[Tensor, "d d"]:
        """C, or [[P]]."""
        return kept[: self.channels**2].view(self.channels, self.channels) if index == 0 else kept[-1:].view(1, 1)

    def on_blocks(self, rows: Float[Tensor, "R d_in"], maps: Sequence[RowMap]) -> Float[Tensor, "R d_in"]:
        """Every tap's channels by the first map, the ones by the second."""
        C, K = self.channels, self.taps
        by_tap = rows[:, : C * K].unflatten(1, (C, K)).transpose(1, 2)
        weights = maps[0](by_tap.flatten(0, 1)).unflatten(0, (-1, K)).transpose(1, 2).flatten(1)
        return torch.cat([weights, maps[1](rows[:, -1:])], dim=1) if self.ones else weights

    def assemble(self, kept: Tensor) -> Float[Tensor, "d_in d_in"]:
        """A, in the order of patches."""
        weights = torch.kron(self.block(kept, 0), torch.eye(self.taps, dtype=kept.dtype, device=kept.device))
        return torch.block_diag(weights, self.block(kept, 1)) if self.ones else weights

    def trace(self, kept: Tensor) -> Float[Tensor, ""]:
        """``tr A``."""
        return self.taps * self.block(kept, 0).trace() + (kept[-1] if self.ones else 0)


@dataclass(frozen=True)
class ChannelGroups(Form):
    """One block a group of channels, each from patches of that group alone. Kept: the blocks, then P."""

    kind = "groups"
    channels: int
    size: tuple[int, int]
    groups: int
    kernel: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    stride: tuple[int, int]
    ones: bool

    @property
    def width(self) -> int:
        """Of a group's block."""
        return self.channels // self.groups * self.kernel[0] * self.kernel[1]

    @property
    def d_in(self) -> int:
        """Width of A."""
        return self.groups * self.width + self.ones

    @property
    def blocks(self) -> int:
        """Of the groups, and P."""
        return self.groups + self.ones

    @property
    def input_blocks(self) -> tuple[tuple[int, int], ...]:
        """Each group's, met once."""
        return ((self.width, 1),) * self.groups + ((1, 1),) * self.ones

    def multiply_adds(self, samples: int) -> float:
        """Of ``measure``."""
        padded = [size + 2 * p for size, p in zip(self.size, self.padding, strict=True)]
        positions = math.prod(outputs(padded, self.kernel, self.dilation, self.stride))
        return float(samples * positions * self.groups * self.width**2)

    def measure(self, x: Float[Tensor, "N C H W"]) -> Tensor:
        """What is kept of these images, summed over them."""
        total, positions = x.new_zeros(self.groups, self.width, self.width), 0
        step = self.channels // self.groups
        for group in range(self.groups):
            part = x[:, group * step : (group + 1) * step]
            for _, images in SampleRows.of(part.flatten(2)).parts(self.width * part[0, 0].numel()):
                shaped = images.unflatten(2, x.shape[2:])
                patches = functional.unfold(shaped, self.kernel, self.dilation, self.padding, self.stride)
                positions = patches.shape[2]
                add_outer_products(total[group], patches.transpose(1, 2).flatten(0, 1), keep=1.0, scale=1.0)
        flat = total.flatten()
        return torch.cat([flat, flat.new_full((1,), len(x) * positions)]) if self.ones else flat

    def block(self, kept: Tensor, index: int) -> Float[Tensor, "d d"]:
        """Of one group, or [[P]]."""
        if index == self.groups:
            return kept[-1:].view(1, 1)
        return kept[: self.groups * self.width**2].view(self.groups, self.width, self.width)[index]

    def on_blocks(self, rows: Float[Tensor, "R d_in"], maps: Sequence[RowMap]) -> Float[Tensor, "R d_in"]:
        """Every group's columns by its own map."""
        columns = rows.split([self.width] * self.groups + [1] * self.ones, dim=1)
        return torch.cat([m(part) for m, part in zip(maps, columns, strict=True)], dim=1)

    def assemble(self, kept: Tensor) -> Float[Tensor, "d_in d_in"]:
        """A, in the order of patches."""
        return torch.block_diag(*(self.block(kept, i) for i in range(self.blocks)))

    def trace(self, kept: Tensor) -> Float[Tensor, ""]:
        """``tr A``."""
        return torch.stack([self.block(kept, i).trace() for i in range(self.blocks)]).sum()
