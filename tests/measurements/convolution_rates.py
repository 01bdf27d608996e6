"""Why an update of FOOF on a ResNet18 is above its multiply-add count. A measurement, not a test.

    python -m tests.measurements.convolution_rates [rounds]

For the 3 x 3 convolutions of the four stages at width 16, on a batch of 100 images of 32 x 32 and one thread:
multiply-adds a second of a convolution's forward, and of the product of a gradient with the inverse of A by the BLAS
and by oneDNN (an operator of torch that is not public), interleaved. Prints a CSV of medians. Then trace A / d_in of
each convolution of an untrained ResNet18 on Fashion-MNIST-1k, averaged over each stage.
"""

import sys
import time
from statistics import mean, median

import torch
from torch.nn.functional import conv2d

from kfbench.config.load import load_config
from kfbench.updates.build import build_data, build_network
from kfbench.updates.preconditioning import Preconditioning
from kfbench.updates.timed import preload

STAGES = ((16, 32), (32, 16), (64, 8), (128, 4))  # channels, pixels a side
IMAGES = 100


def products(channels, side):
    """NAME -> multiply-adds, and the call."""
    rows = channels * 9
    x, weight = torch.randn(IMAGES, channels, side, side), torch.randn(channels, channels, 3, 3)
    gradient, inverse = torch.randn(channels, rows), torch.randn(rows, rows)
    _linear = torch.ops.mkldnn._linear_pointwise
    return {
        "convolution": (IMAGES * side**2 * channels * rows, lambda: conv2d(x, weight, padding=1)),
        "blas": (channels * rows**2, lambda: gradient @ inverse),
        "onednn": (
            channels * rows**2,
            lambda: torch.ops.mkldnn._linear_pointwise(gradient, inverse, None, "none", [], ""),
        ),
    }


def seconds(call, repeats):
    """Of one call, of several in a row."""
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def traces():
    """STAGE -> mean of trace A / d_in over its convolutions of stride 1."""
    config = load_config(specs=["foof:T=1"], flags={"model": "resnet18", "width": 16, "dataset": "fashion-mnist-1k"})
    data = build_data(config, torch.device("cpu"))
    model = build_network(config.problem, config.run, data, torch.device("cpu"), 0)
    x, y = preload(data, IMAGES, 0)[0]
    pre = Preconditioning(model, "foof", damping=1.0, T=1, order="same")
    with pre.capture():
        output = model(x)
    pre.accumulate(torch.nn.functional.cross_entropy(output, y, reduction="none"), output)
    pre.finish()
    found = {channels: [] for channels, _ in STAGES}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.in_channels == layer.out_channels:
            found[layer.out_channels].append(float(pre.method.A.means[name].diag().mean()))
    return {channels: mean(values) for channels, values in found.items()}


def main(rounds):
    """Print both tables."""
    torch.set_num_threads(1)
    print(f"# {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}")
    print("channels,side,what,multiply_adds,seconds,multiply_adds_per_second")
    for channels, side in STAGES:
        calls = products(channels, side)
        times = {name: [] for name in calls}
        for _ in range(rounds):
            for name, (count, call) in calls.items():
                times[name].append(seconds(call, max(1, int(2e8 / count))))
        for name, (count, _) in calls.items():
            taken = median(times[name])
            print(f"{channels},{side},{name},{count},{taken:.6g},{count / taken:.4g}")
    print("channels,mean_trace_over_width")
    for channels, value in traces().items():
        print(f"{channels},{value:.4g}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 11)
