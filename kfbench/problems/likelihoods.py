"""Likelihoods: what the output of the model means, its loss, and the Fisher of the output.

The Fisher of one sample's output f is ``E[grad_f log p(y|f) grad_f log p(y|f)']`` over labels y
drawn from the model. It is handed on as K vectors per sample whose outer products sum to it, or
for sampled labels to an unbiased estimate of it.
"""

from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy


class Likelihood(Protocol):
    """``-log p(target | output)`` and its Fisher, for outputs with samples along the first dimension."""

    def loss(self, output: Tensor, target: Tensor) -> Float[Tensor, "N"]:
        """Per-sample loss, never reduced."""

    def sampled_vectors(self, output: Tensor, generator: torch.Generator | None) -> Tensor:
        """[1, *output.shape]: gradient of the loss at one label drawn per sample."""

    def full_vectors(self, output: Tensor) -> Tensor:
        """[K, *output.shape]: the columns of an exact square root of the output Fisher."""

    def correct(self, output: Tensor, target: Tensor) -> Tensor | None:
        """[N] booleans, or None where accuracy means nothing."""


class Categorical:
    """Softmax over the last dimension: output = logits [N, C], target = class indices [N]."""

    def loss(self, output: Float[Tensor, "N C"], target: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
        """Cross-entropy in nats."""
        return cross_entropy(output, target, reduction="none")

    def sampled_vectors(
        self, output: Float[Tensor, "N C"], generator: torch.Generator | None
    ) -> Float[Tensor, "1 N C"]:
        """``p - onehot(y)`` with y drawn from p."""
        p = output.softmax(dim=-1)
        # The first of C exponential clocks of rates p to ring. Unlike torch.multinomial this does not
        # abort a CUDA context when the outputs are no longer finite: the loss will say so.
        clocks = torch.empty_like(p).exponential_(generator=generator)
        drawn = (p / clocks).argmax(dim=-1, keepdim=True)
        return p.scatter_add(1, drawn, -torch.ones_like(p))[None]

    def full_vectors(self, output: Float[Tensor, "N C"]) -> Float[Tensor, "K N C"]:
        """Columns of ``diag(sqrt p) - p sqrt(p)'``, whose square is ``diag(p) - p p'``."""
        p = output.softmax(dim=-1)
        root = p.sqrt()
        return (torch.diag_embed(root) - p[:, :, None] * root[:, None, :]).permute(2, 0, 1)

    def correct(self, output: Tensor, target: Tensor) -> Tensor:
        """Whether the most likely class is the true one."""
        return output.argmax(dim=-1) == target


class Gaussian:
    """Unit variance: loss ``1/2 |f - y|^2`` per sample (no constant); output and target [N, d]."""

    def loss(self, output: Float[Tensor, "N d"], target: Float[Tensor, "N d"]) -> Float[Tensor, "N"]:
        """Half the squared error, summed over the dimensions of a sample."""
        return 0.5 * (output - target).square().flatten(1).sum(1)

    def sampled_vectors(
        self, output: Float[Tensor, "N d"], generator: torch.Generator | None
    ) -> Float[Tensor, "1 N d"]:
        """``f - y`` with y drawn around f: a standard normal."""
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        return noise[None]

    def full_vectors(self, output: Float[Tensor, "N d"]) -> Float[Tensor, "d N d"]:
        """The output Fisher is the identity, and its own root."""
        identity = torch.eye(output.shape[1], dtype=output.dtype, device=output.device)
        return identity[:, None, :].expand(-1, len(output), -1)

    def correct(self, output: Tensor, target: Tensor) -> None:
        """Regression has no accuracy."""
        return None


class Bernoulli:
    """Independent units: output = logits [N, d], target [N, d] from 0 to 1, such as pixels.

    A target between 0 and 1 counts as that part of a 1, as in Hinton & Salakhutdinov 2006; the
    Fisher is that of the Bernoulli distribution, whose labels are 0 or 1.
    """

    def loss(self, output: Float[Tensor, "N d"], target: Float[Tensor, "N d"]) -> Float[Tensor, "N"]:
        """Cross-entropy in nats, summed over the units of a sample; stable for large logits."""
        return binary_cross_entropy_with_logits(output, target, reduction="none").sum(1)

    def sampled_vectors(
        self, output: Float[Tensor, "N d"], generator: torch.Generator | None
    ) -> Float[Tensor, "1 N d"]:
        """``p - y`` with every unit of y drawn from p."""
        p = output.sigmoid()
        uniform = torch.rand(p.shape, generator=generator, dtype=p.dtype, device=p.device)
        return (p - (uniform < p).to(p.dtype))[None]

    def full_vectors(self, output: Float[Tensor, "N d"]) -> Float[Tensor, "d N d"]:
        """Columns of ``diag(sqrt(p (1 - p)))``; ``1 - p`` is the sigmoid of ``-f``, which loses no digits."""
        root = (output.sigmoid() * (-output).sigmoid()).sqrt()
        return torch.diag_embed(root).permute(2, 0, 1)

    def correct(self, output: Tensor, target: Tensor) -> None:
        """Reconstruction has no accuracy."""
        return None


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "categorical": Categorical,
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
}
