"""Convolutional models: a small quick one, VGG11 and ResNets for small images; He's weights, or EKFAC's appendix B."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

# Channels of VGG11 over those of its first stage, 64 in Simonyan & Zisserman 2015; None is 2 x 2 max pooling.
_VGG11 = (1, None, 2, None, 4, 4, None, 8, 8, None, 8, 8, None)
_CONVNET_STAGES = 3
# Variance of a weight times its fan-in.
_AFTER_RELU, _AFTER_NOTHING, _LAST_OF_BLOCK = 2.0, 1.0, 0.2


def convnet(
    input_shape: tuple[int, ...],
    outputs: int,
    width: int = 16,
    bias: bool = True,
    norm: str = "none",
    init: str | None = None,
) -> nn.Module:
    """Three 3 x 3 convolutions with ReLU and pooling, of 1, 2 and 4 times ``width`` channels, and one linear layer.

    Ours, small enough for a first experience; no paper's. Images are at least 8 pixels a side.
    """
    stages = [width * 2**i for i in range(_CONVNET_STAGES)]
    plan = [step for channels in stages for step in (channels, None)]
    return _chain(input_shape, outputs, plan, bias, norm, init)


def vgg11(
    input_shape: tuple[int, ...],
    outputs: int,
    width: int = 64,
    bias: bool = True,
    norm: str = "none",
    init: str | None = None,
) -> nn.Module:
    """VGG11 for images of 32 x 32 (Simonyan & Zisserman 2015, configuration A): one linear layer in place of three.

    ``width`` channels in the first stage, the others in proportion. Neither the FOOF nor the EKFAC paper says which
    head it has; without batch normalisation as the EKFAC paper (section 4.2) trains it.
    """
    return _chain(input_shape, outputs, [step and step * width for step in _VGG11], bias, norm, init)


def resnet18(
    input_shape: tuple[int, ...],
    outputs: int,
    width: int = 64,
    bias: bool = False,
    norm: str = "batch",
    init: str | None = None,
) -> nn.Module:
    """ResNet18 (He et al. 2016) with the stem for images of 32 x 32, as in the FOOF paper (appendix D.6)."""
    return _resnet((2, 2, 2, 2), input_shape, outputs, width, bias, norm, init)


def resnet34(
    input_shape: tuple[int, ...],
    outputs: int,
    width: int = 64,
    bias: bool = False,
    norm: str = "batch",
    init: str | None = None,
) -> nn.Module:
    """ResNet34 (He et al. 2016) with the stem for images of 32 x 32, as in the EKFAC paper (section 4.2)."""
    return _resnet((3, 4, 6, 3), input_shape, outputs, width, bias, norm, init)


def _chain(
    input_shape: tuple[int, ...],
    outputs: int,
    plan: list[int | None],
    bias: bool,
    norm: str,
    init: str | None,
) -> nn.Module:
    """Convolutions of so many channels with ReLU, and poolings where there is None; then one linear layer."""
    channels, rows, columns = input_shape
    layers: list[nn.Module] = []
    for step in plan:
        if step is None:
            layers.append(nn.MaxPool2d(2))
            rows, columns = rows // 2, columns // 2
        else:
            layers += [_convolution(channels, step, 3, 1, bias), *_normalisation(step, norm), nn.ReLU(inplace=True)]
            channels = step
    if not rows * columns:
        least = 2 ** plan.count(None)
        raise ValueError(f"it takes images of at least {least} pixels a side, got {list(input_shape)}; give --pad-to")
    layers += [nn.Flatten(), nn.Linear(channels * rows * columns, outputs)]
    model = nn.Sequential(*layers)
    first = layers[0]
    return _initialised(model, {first: _AFTER_NOTHING} if init == "careful" else {})


def _resnet(
    blocks: tuple[int, ...],
    input_shape: tuple[int, ...],
    outputs: int,
    width: int,
    bias: bool,
    norm: str,
    init: str | None,
) -> nn.Module:
    model = ResNet(blocks, input_shape[0], outputs, width, bias, norm)
    # Without normalisation He's weights let signals grow from block to block: losses of 15 to 800 at the start.
    careful = init == "careful" or (init is None and norm == "none")
    return _initialised(model, dict(model.careful()) if careful else {})


class ResNet(nn.Module):
    """Post-activation residual network of basic blocks for small images: a 3 x 3 stem of stride 1, no pooling.

    Stages of 1, 2, 4, 8 times ``width`` channels, each but the first halving the image; the mean over what is left of
    it; one linear layer, with bias.
    """

    def __init__(self, blocks: tuple[int, ...], channels: int, outputs: int, width: int, bias: bool, norm: str) -> None:
        super().__init__()
        stem = _convolution(channels, width, 3, 1, bias)
        self.stem = nn.Sequential(stem, *_normalisation(width, norm), nn.ReLU(inplace=True))
        layers: list[BasicBlock] = []
        d = width
        for stage, count in enumerate(blocks):
            for index in range(count):
                wider = width * 2**stage
                layers.append(BasicBlock(d, wider, 2 if stage and not index else 1, bias, norm))
                d = wider
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(d, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] images to [N, outputs]."""
        # Not adaptive pooling, whose backward pass on CUDA adds in any order.
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))

    def careful(self) -> Iterator[tuple[nn.Module, float]]:
        """Layers whose variance times fan-in is another than 2 (George et al. 2018, appendix B, and its rule 3).

        Read as: shortcuts have no activation of their own, although here they follow a ReLU; "divide the scale by 10"
        is the variance.
        """
        yield self.stem[0], _AFTER_NOTHING
        for block in self.blocks:
            assert isinstance(block, BasicBlock)
            yield block.second[0], _LAST_OF_BLOCK
            if block.shortcut is not None:
                yield block.shortcut[0], _AFTER_NOTHING


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: the identity, or a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels: int, outputs: int, stride: int, bias: bool, norm: str) -> None:
        super().__init__()
        first = _convolution(channels, outputs, 3, stride, bias)
        self.first = nn.Sequential(first, *_normalisation(outputs, norm), nn.ReLU(inplace=True))
        self.second = nn.Sequential(_convolution(outputs, outputs, 3, 1, bias), *_normalisation(outputs, norm))
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or channels != outputs:
            projection = _convolution(channels, outputs, 1, stride, bias)
            self.shortcut = nn.Sequential(projection, *_normalisation(outputs, norm))

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to [N, outputs, H / stride, W / stride]."""
        return (self.second(self.first(x)) + (x if self.shortcut is None else self.shortcut(x))).relu()


def _convolution(channels: int, outputs: int, kernel: int, stride: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, bias=bias)


def _normalisation(channels: int, norm: str) -> list[nn.Module]:
    """One layer or none; of "batch-fixed" scale 1 and shift 0 are not trained (FOOF paper, D.6, for FOOF and K-FAC)."""
    return [] if norm == "none" else [nn.BatchNorm2d(channels, affine=norm == "batch")]


def _initialised(model: nn.Module, variances: Mapping[nn.Module, float]) -> nn.Module:
    """Normal weights of variance 2 / fan-in (He et al. 2015), or of another number over fan-in; zero biases."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            fan_in = module.weight[0].numel()
            variance = variances.get(module, _AFTER_RELU) / fan_in
            with torch.no_grad():
                module.weight.normal_(std=variance**0.5)
                if module.bias is not None:
                    module.bias.zero_()
    return model
