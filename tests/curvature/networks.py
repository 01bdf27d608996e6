"""Networks whose layers have many rows, each with one thing that a backward pass may trip over."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """A branch around two convolutions, as in a ResNet; batch norm and activations in place."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(2, 3, 3, padding=1, bias=not norm), nn.Conv2d(3, 3, 3, padding=1)
        self.b, self.short = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(3, 4, 1, stride=2, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3) if norm else nn.Identity() for _ in range(2)])
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.relu_(self.norms[0](self.stem(x)))
        h = self.short(h) + self.b(torch.tanh(self.norms[1](self.a(h))))
        return self.last(nn.functional.relu_(h).mean((2, 3)))


class Twice(nn.Module):
    """One convolution called twice, once on what it gave itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.twice(torch.tanh(self.twice(torch.tanh(self.first(x)))))).mean((2, 3)))


class Branch(nn.Module):
    """``aside`` is part of the losses, but no label reaches it; ``ignored`` is part of nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.aside, self.below = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 2), nn.Conv2d(2, 2, 2, padding=1)
        self.ignored, self.last = nn.Conv2d(3, 2, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        self.ignored(h)
        self.penalty = self.aside(torch.tanh(self.below(x)).repeat(1, 2, 1, 1)[:, :3]).square().mean((1, 2, 3))
        return self.last(h.mean((2, 3)))


class Scaled(nn.Module):
    """A plain parameter below the first captured layer, whose input hence needs a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((2, 1, 1), 1.5))
        self.first, self.second, self.last = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x * self.scale)))).mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "residual-without-norm": lambda: Residual(norm=False),
    "twice": Twice,
    "branch": Branch,
    "scaled": Scaled,
}


def network(name: str, n: int = 5) -> tuple[nn.Module, Tensor, Tensor]:
    """A model of float64, images, labels."""
    return NETWORKS[name]().double(), torch.randn(n, 2, 6, 5, dtype=torch.float64), torch.randint(3, (n,))


def losses_of(model: nn.Module, output: Tensor, y: Tensor) -> Tensor:
    """Cross entropy, and what the model adds of its own."""
    losses = nn.functional.cross_entropy(output, y, reduction="none")
    penalty = getattr(model, "penalty", None)
    return losses if penalty is None else losses + penalty
