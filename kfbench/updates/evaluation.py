"""Loss and accuracy over many samples: forwards in large batches, without graph, leaving no trace."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kfbench.problems.likelihoods import Likelihood
from kfbench.updates.isolation import evaluating

# Large enough for efficient products, small enough that activations stay in tens of megabytes: those of convolutions,
# which have weights of more than two dimensions, are images of many channels.
_BATCH, _BATCH_OF_IMAGES = 2000, 200
CHANGES_ITS_INPUT = "changes its input in place, which is the data set: let its first layer make a new tensor"


def evaluate(model: nn.Module, likelihood: Likelihood, inputs: Tensor, targets: Tensor) -> tuple[float, float | None]:
    """(mean loss, accuracy or None), in evaluation mode; sums are kept in float64 on the device.

    ValueError for a model that changes its input in place; the samples stay as they are.
    """
    loss = torch.zeros((), dtype=torch.float64, device=inputs.device)
    correct: Tensor | None = torch.zeros((), dtype=torch.int64, device=inputs.device)
    size = _BATCH_OF_IMAGES if any(p.dim() > 2 for p in model.parameters()) else _BATCH
    with torch.no_grad(), evaluating(model):
        for start in range(0, len(inputs), size):
            target = targets[start : start + size]
            batch = inputs[start : start + size].clone()  # not a view: a model may write into what it is given
            before = batch._version
            output = model(batch)
            if batch._version != before:
                raise ValueError(f"the model, a {type(model).__name__}, {CHANGES_ITS_INPUT}")
            loss += likelihood.loss(output, target).sum(dtype=torch.float64)
            right = likelihood.correct(output, target)
            correct = None if right is None or correct is None else correct + right.sum()
    # Read only now: each of these waits for the device.
    accuracy = None if correct is None else correct.item() / len(inputs)
    return loss.item() / len(inputs), accuracy


@runtime_checkable
class _HasModes(Protocol):
    """An optimizer that trains other weights than those it is to be judged by, as schedule-free ones do."""

    def train(self) -> None: ...

    def eval(self) -> None: ...


@contextmanager
def at_weights_to_judge(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within the block the model has the weights that its optimizer defines; then it trains on."""
    if not isinstance(optimizer, _HasModes):
        yield
        return
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
