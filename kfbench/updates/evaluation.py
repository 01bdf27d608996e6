"""Loss and accuracy over many samples: forwards in large batches, without graph, leaving no trace."""

import torch
from torch import Tensor, nn

from kfbench.problems.likelihoods import Likelihood
from kfbench.updates.isolation import evaluating

# Large enough for efficient products, small enough that activations stay in tens of megabytes.
_BATCH = 2000


def evaluate(model: nn.Module, likelihood: Likelihood, inputs: Tensor, targets: Tensor) -> tuple[float, float | None]:
    """(mean loss, accuracy or None), in evaluation mode; sums are kept in float64 on the device."""
    loss = torch.zeros((), dtype=torch.float64, device=inputs.device)
    correct: Tensor | None = torch.zeros((), dtype=torch.int64, device=inputs.device)
    with torch.no_grad(), evaluating(model):
        for start in range(0, len(inputs), _BATCH):
            target = targets[start : start + _BATCH]
            output = model(inputs[start : start + _BATCH])
            loss += likelihood.loss(output, target).sum(dtype=torch.float64)
            right = likelihood.correct(output, target)
            correct = None if right is None or correct is None else correct + right.sum()
    accuracy = None if correct is None else correct.item() / len(inputs)
    return loss.item() / len(inputs), accuracy
