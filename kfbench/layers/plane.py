"""A convolution's rows from its padded images and its kernel alone: what a method may keep, and restore, of a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from kfbench.layers.embedding_layer import token_rows
from kfbench.layers.geometry import Geometry, outputs
from kfbench.layers.moments import full_precision
from kfbench.layers.sample_rows import SampleRows, with_ones


@dataclass(frozen=True)
class Plane:
    """One kernel over images [N, C, H, W] that have all of their padding but ``geometry.zeros``."""

    geometry: Geometry
    has_bias: bool

    @property
    def _axes(self) -> Any:
        return self.geometry.stride, self.geometry.zeros, self.geometry.dilation

    def rows(self, images: Tensor) -> Float[Tensor, "N P d_in"]:
        """Patches, with a column of ones where there is a bias."""
        patches = self.geometry.patches(images)
        return with_ones(patches) if self.has_bias else patches

    def outputs(self, images: Tensor, matrix: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "N P d_out"]:
        """Every row by a matrix: one convolution."""
        columns = matrix.shape[1] - self.has_bias
        weight = matrix[:, :columns].unflatten(1, (images.shape[1], *self.geometry.kernel))
        bias = matrix[:, -1] if self.has_bias else None
        with full_precision(images.device):
            return functional.conv2d(images, weight, bias, *self._axes).flatten(2).transpose(1, 2)

    def gradient(self, images: Tensor, weights: Float[Tensor, "N P d_out"]) -> Float[Tensor, "d_out d_in"]:
        """``sum_n sum_p w a'``: one gradient of a convolution's weights."""
        geometry = self.geometry
        padded = [size + 2 * z for size, z in zip(images.shape[2:], geometry.zeros, strict=True)]
        sizes = outputs(padded, geometry.kernel, geometry.dilation, geometry.stride)
        shape = (weights.shape[2], images.shape[1], *geometry.kernel)
        g = weights.transpose(1, 2).unflatten(2, sizes).contiguous()
        with full_precision(images.device):
            total = conv2d_weight(images, shape, g, *self._axes).flatten(1)
        return torch.cat([total, weights.sum((0, 1))[:, None]], dim=1) if self.has_bias else total

    def sample_rows(self, images: Callable[[slice], Tensor], samples: int, positions: int, width: int) -> SampleRows:
        """Of the images of a slice of samples, which are asked for whenever rows are."""
        every = slice(None)
        return SampleRows(
            lambda part: self.rows(images(part)),
            samples,
            positions,
            width,
            mapped=lambda matrix: self.outputs(images(every), matrix),
            summed=lambda weights: self.gradient(images(every), weights),
            described=lambda: {"images": images(every), "plane": self.describe(), "shape": [samples, positions, width]},
        )

    def describe(self) -> list[Any]:
        """Plain values from which it is made again; what is padded is padded already."""
        geometry = self.geometry
        return [geometry.kernel, geometry.stride, geometry.dilation, geometry.zeros, self.has_bias]


def rows_from_state(state: Any) -> SampleRows:
    """As ``SampleRows.state_dict`` told them, by the same products, hence bit for bit; a tensor is rows itself."""
    if isinstance(state, Tensor):
        return SampleRows.of(state)
    if "parts" in state:
        return SampleRows.join([rows_from_state(part) for part in state["parts"]])
    if "rows" in state:
        return SampleRows.of(state["rows"])
    if "made" in state:
        made: Tensor = state["made"]
        return SampleRows(lambda part: made[part], *made.shape)
    if "tokens" in state:
        tokens: Tensor = state["tokens"]
        samples, positions = tokens.shape
        return token_rows(lambda: tokens, samples, positions, state["width"], getattr(torch, state["dtype"]))
    kernel, stride, dilation, zeros, has_bias = state["plane"]
    geometry = Geometry(tuple(kernel), tuple(stride), tuple(dilation), tuple((z, z) for z in zeros))
    images: Tensor = state["images"]
    return Plane(geometry, has_bias).sample_rows(lambda part: images[part], *state["shape"])
