"""Transposed convolutions: correlations of stride 1 over images whose pixels are spread out among zeros."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from kfbench.layers.convolution_layer import ConvolutionLayer
from kfbench.layers.geometry import Geometry


class TransposedLayer(ConvolutionLayer):
    """An ``nn.ConvTranspose1d``, 2d or 3d: its kernel, flipped, goes over the image with s - 1 zeros between pixels.

    Its P output positions are those of what it returns; an ``output_size`` given at a call is not known here.
    """

    @property
    def geometry(self) -> Geometry:
        """``d (K - 1) - p`` in front, and behind what the output has more; negative where the image is cut off."""
        conv: Any = self.module
        axes = zip(conv.kernel_size, conv.dilation, conv.padding, conv.output_padding, strict=True)
        padding = tuple((d * (k - 1) - p, d * (k - 1) - p + more) for k, d, p, more in axes)
        return Geometry(conv.kernel_size, (1,) * len(padding), conv.dilation, padding).as_plane()

    def images(self, x: Tensor) -> Tensor:
        """Spread out and padded."""
        own, stride = self._own_channels(x), self.module.stride
        if set(stride) != {1}:
            spread = own.new_zeros(*own.shape[:2], *self._spread(tuple(own.shape[2:])))
            pixels: Any = (..., *(slice(None, None, s) for s in stride))
            spread[pixels] = own
            own = spread
        return self.geometry.padded(self._plane(own))

    def sizes(self, given: tuple[int, ...]) -> tuple[int, ...]:
        """Spread out."""
        return super().sizes(self._spread(given))

    def _spread(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple((size - 1) * s + 1 for size, s in zip(sizes, self.module.stride, strict=True))

    @property
    def d_out(self) -> int:
        """Its weight is [C_in, C_out / groups, ...]."""
        return self.module.weight.shape[1]

    @property
    def d_in(self) -> int:
        """Likewise."""
        weight = self.module.weight
        return len(weight) // self.groups * weight[0, 0].numel() + self.has_bias

    def weight_matrix(self, weight: Tensor) -> Float[Tensor, "d_out columns"]:
        """Flipped in space, inputs and outputs swapped."""
        return weight.flip(tuple(range(2, weight.dim()))).transpose(0, 1).flatten(1)

    def weight_of(self, matrix: Float[Tensor, "d_out columns"]) -> Tensor:
        """The inverse."""
        outputs, *kernel = self.module.weight.shape[1:]
        weight = matrix.reshape(outputs, -1, *kernel).transpose(0, 1)
        return weight.flip(tuple(range(2, weight.dim())))
