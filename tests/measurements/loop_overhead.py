"""What `train` costs over a bare PyTorch loop of the same optimizer. A measurement, not a test.

    python -m tests.measurements.loop_overhead [rounds] [device]

Both run the same batches of Fashion-MNIST (mlp 3x1000, N = 100); `train` includes indexing, losses, CSV, progress
and its clocks, evaluation aside. Interleaved, in random order; prints the ratio's median and 95 % interval.
"""

import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from kfbench.cli.progress import _PlainLines
from kfbench.config.load import load_config
from kfbench.results.intervals import median_interval
from kfbench.training.run import train
from kfbench.updates.build import build_data, build_network
from kfbench.updates.spent import synchronise
from kfbench.updates.timed import preload

UPDATES = 100


def bare_loop(model, optimizer, batches):
    """The shortest loop that trains."""
    began = time.perf_counter()
    for i in range(UPDATES):
        x, y = batches[i % len(batches)]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    synchronise(loss.device)
    return time.perf_counter() - began


def whole_train(config):
    """Seconds of all updates and everything else, of a run whose evaluations see one image."""
    with tempfile.TemporaryDirectory() as folder:
        summary = train(config, Path(folder), _PlainLines(config))["runs"][0]
    return summary["seconds_updates"] + summary["seconds_elsewhere"]


def main(rounds=15, device="cpu"):
    """Print the ratio over ``rounds``."""
    flags = {"dataset": "fashion-mnist", "updates": UPDATES, "eval_samples": 1, "device": device}
    config = load_config(specs=["sgd"], flags=flags)
    torch.set_num_threads(1)
    data = build_data(config, torch.device(device))
    model = build_network(config.problem, config.run, data, torch.device(device), 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    batches, ratios = preload(data, 100, 0), []
    bare_loop(model, optimizer, batches)
    for _ in range(rounds):
        found = {}
        for name in random.sample(["bare", "train"], 2):
            found[name] = bare_loop(model, optimizer, batches) if name == "bare" else whole_train(config)
        ratios.append(found["train"] / found["bare"])
    low, high = median_interval(ratios)
    print(f"train / bare loop: {median(ratios):.3f}, 95% interval {low:.3f} - {high:.3f}, {rounds} rounds of {UPDATES}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:3])
