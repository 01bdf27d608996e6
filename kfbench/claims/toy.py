"""The toy of the FOOF paper's appendix F: two points, two weights, one update of SGD and of FOOF."""

import torch

from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import LayerStatistics
from kfbench.preconditioners.foof import FOOF

# Inputs (3, 1) and (1, 0), labels 1 and -1, weights (0, 0), loss 1/2 (w x - y)^2.
INPUTS = ((3.0, 1.0), (1.0, 0.0))
LABELS = (1.0, -1.0)


def updates() -> dict[str, tuple[float, float]]:
    """The weights after one step of length 1, of SGD along the SUM of gradients, as printed, and of undamped FOOF."""
    x = torch.tensor(INPUTS, dtype=torch.float64)
    g = -torch.tensor(LABELS, dtype=torch.float64)[:, None]  # of the loss with respect to the output, at w = 0
    foof = FOOF(ema=0.0)
    foof.observe({"w": LayerStatistics(x[:, None])})
    foof.refresh(damping=0.0)
    gradient = LayerGradient(g, x, len(x))
    direction = foof.apply({"w": gradient})["w"]
    sgd = gradient.dense() * len(x)  # here gradients are means
    return {name: tuple((-step).flatten().tolist()) for name, step in (("sgd", sgd), ("foof", direction))}


def losses(weights: tuple[float, float]) -> list[float]:
    """Of both points."""
    return [0.5 * (weights[0] * a + weights[1] * b - y) ** 2 for (a, b), y in zip(INPUTS, LABELS, strict=True)]


def toy_losses() -> dict[str, list[float]]:
    """LABEL -> loss of each point: before, and after one step of each method."""
    return {"before": losses((0.0, 0.0)), **{name: losses(w) for name, w in updates().items()}}
