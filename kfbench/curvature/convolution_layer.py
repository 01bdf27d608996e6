"""Convolutions: every output position is one, its input the patch under the kernel (Grosse & Martens 2016)."""

from jaxtyping import Float
from torch import Tensor, nn

from kfbench.curvature.contract import Layer


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
        patches = nn.functional.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
        return self.with_ones(patches.transpose(1, 2))

    def gradient_rows(self, g: Tensor) -> Float[Tensor, "N P d_out"]:
        """Output positions row by row, as ``unfold`` goes through them."""
        return g.flatten(2).transpose(1, 2)
