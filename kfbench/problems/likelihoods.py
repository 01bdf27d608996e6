"""Likelihoods: what the output of the model means, its loss, and the Fisher of the output.

The Fisher of one sample's output f is ``E[grad_f log p(y|f) grad_f log p(y|f)']`` over labels y
drawn from the model. It is handed on as K vectors per sample whose outer products sum to it, or
for sampled labels to an unbiased estimate of it; ``OutputFisher`` makes whatever else
methods ask for. Samples lie along the first dimension; whatever
else an output holds (tokens, pixels) are independent labels of the same sample, over which its
loss is a sum.
"""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy


@runtime_checkable
class Likelihood(Protocol):
    """``-log p(target | output)`` and its Fisher, for outputs with samples along the first dimension.

    ``root_times``, ``fisher_sum`` and ``fisher_product``, which those below have, may be missing: ``full_vectors`` says
    it all, at K times the memory.
    """

    def loss(self, output: Tensor, target: Tensor) -> Float[Tensor, "N"]:
        """Per-sample loss, never reduced over samples."""

    def sampled_vectors(self, output: Tensor, generator: torch.Generator | None) -> Tensor:
        """[1, *output.shape]: gradient of the loss at one label drawn per sample."""

    def full_vectors(self, output: Tensor) -> Tensor:
        """[K, *output.shape]: the columns of an exact square root of the output Fisher."""

    def correct(self, output: Tensor, target: Tensor) -> Tensor | None:
        """[N] booleans, or [N, P] where each position has a label; None where accuracy means nothing."""


class Categorical:
    """Softmax: output = logits [N, C], target = class indices [N].

    Outputs of more dimensions have a label at every position and need ``class_dim``, where their classes lie: 1 as
    in torch's cross-entropy ([N, C, T], [N, C, H, W]) or -1 ([N, T, C]); targets have the output's shape without it.
    ValueError where an output leaves that open.
    """

    def __init__(self, class_dim: int | None = None) -> None:
        self.class_dim = class_dim

    def _logits(self, output: Tensor) -> Float[Tensor, "N P C"]:
        """One row a position."""
        if output.dim() == 2:
            return output[:, None]
        if self.class_dim is None or output.dim() < 2:
            raise ValueError(
                f"the categorical likelihood takes logits [N, C], got an output of shape {list(output.shape)}; with a "
                "label at every position say where the classes lie: Categorical(class_dim=1), or -1"
            )
        return output.movedim(self.class_dim, -1).flatten(1, -2)

    def _like(self, vectors: Float[Tensor, "K N P C"], output: Tensor) -> Tensor:
        """[K, *output.shape]: the inverse of ``_logits``."""
        if output.dim() == 2:
            return vectors[:, :, 0]
        assert self.class_dim is not None
        last = output.movedim(self.class_dim, -1)
        own = self.class_dim if self.class_dim < 0 else self.class_dim + 1  # the vectors come first
        return vectors.view(len(vectors), *last.shape).movedim(-1, own)

    def loss(self, output: Tensor, target: Tensor) -> Float[Tensor, "N"]:
        """Cross-entropy in nats, summed over the positions of a sample."""
        if output.dim() == 2:
            return cross_entropy(output, target, reduction="none")
        logits = self._logits(output)
        return cross_entropy(logits.movedim(-1, 1), target.flatten(1), reduction="none").sum(1)

    def sampled_vectors(self, output: Tensor, generator: torch.Generator | None) -> Tensor:
        """``p - onehot(y)`` with y drawn from p, at every position."""
        p = self._logits(output).softmax(dim=-1)
        # The first of C exponential clocks of rates p to ring. Unlike torch.multinomial this does not
        # abort a CUDA context when the outputs are no longer finite: the loss will say so.
        clocks = torch.empty_like(p).exponential_(generator=generator)
        drawn = (p / clocks).argmax(dim=-1, keepdim=True)
        return self._like(p.scatter_add(-1, drawn, -torch.ones_like(p))[None], output)

    def full_vectors(self, output: Tensor) -> Tensor:
        """Columns of ``diag(sqrt p) - p sqrt(p)'``, whose square is ``diag(p) - p p'``: C for every position."""
        p = self._logits(output).softmax(dim=-1)
        root = p.sqrt()
        columns = torch.diag_embed(root) - p[..., :, None] * root[..., None, :]  # [N, P, C, K of one position]
        positions = p.shape[1]
        if positions == 1:
            return self._like(columns.permute(3, 0, 1, 2), output)
        # Labels of different positions are independent: each vector is zero at all positions but one.
        vectors = columns.new_zeros(positions, p.shape[2], *p.shape)
        for q in range(positions):
            vectors[q, :, :, q] = columns[:, q].permute(2, 0, 1)
        return self._like(vectors.flatten(0, 1), output)

    def fisher_product(self, output: Tensor, v: Tensor) -> Tensor:
        """The output Fisher of every sample times v, both [N, ...]: ``p o v - p p'v``."""
        p, rows = self._logits(output).softmax(dim=-1), self._logits(v)
        return self._like((p * (rows - (p * rows).sum(-1, keepdim=True)))[None], output)[0]

    def root_times(self, output: Tensor, weights: Tensor) -> Tensor:
        """The same root times ``weights`` [k, *output.shape]: no column is formed."""
        p, w = self._logits(output).softmax(dim=-1), torch.stack([self._logits(each) for each in weights])
        root = p.sqrt()
        return self._like(root * w - p * (root * w).sum(dim=-1, keepdim=True), output)

    def fisher_sum(self, output: Float[Tensor, "N C"], scale: Float[Tensor, "N C"]) -> Float[Tensor, "C C"]:
        """``sum_n D_n F_n D_n``, F_n the Fisher of sample n's output and D_n = diag(scale_n)."""
        p = output.softmax(dim=-1)
        scaled = p * scale
        return (scaled * scale).sum(0).diag() - scaled.T @ scaled

    def correct(self, output: Tensor, target: Tensor) -> Tensor:
        """Whether the most likely class is the true one, at every position."""
        right = self._logits(output).argmax(dim=-1) == target.reshape(len(target), -1)
        return right if right.shape[1] > 1 else right[:, 0]


class Gaussian:
    """Unit variance: loss ``1/2 |f - y|^2`` per sample (no constant); output and target [N, ...] alike."""

    def loss(self, output: Tensor, target: Tensor) -> Float[Tensor, "N"]:
        """Half the squared error, summed over the dimensions of a sample."""
        return 0.5 * (output - target).square().reshape(len(output), -1).sum(1)

    def sampled_vectors(self, output: Tensor, generator: torch.Generator | None) -> Tensor:
        """``f - y`` with y drawn around f: a standard normal."""
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        return noise[None]  # its sign is as likely either way

    def full_vectors(self, output: Tensor) -> Tensor:
        """The output Fisher is the identity, and its own root: a vector for every number of a sample's output."""
        width = math.prod(output.shape[1:])
        identity = torch.eye(width, dtype=output.dtype, device=output.device)
        # A view: every sample has the same vectors.
        return identity.view(width, 1, *output.shape[1:]).expand(-1, *output.shape)

    def fisher_product(self, output: Tensor, v: Tensor) -> Tensor:
        """The output Fisher of every sample times v, both [N, ...]: v itself."""
        return v

    def root_times(self, output: Tensor, weights: Tensor) -> Tensor:
        """The identity times ``weights`` [k, *output.shape]."""
        return weights

    def fisher_sum(self, output: Float[Tensor, "N C"], scale: Float[Tensor, "N C"]) -> Float[Tensor, "C C"]:
        """``sum_n D_n F_n D_n``, F_n the Fisher of sample n's output and D_n = diag(scale_n)."""
        return scale.square().sum(0).diag()

    def correct(self, output: Tensor, target: Tensor) -> None:
        """Regression has no accuracy."""
        return None


class Bernoulli:
    """Independent units: output = logits [N, ...], target alike from 0 to 1, such as pixels.

    A target between 0 and 1 counts as that part of a 1, as in Hinton & Salakhutdinov 2006; the
    Fisher is that of the Bernoulli distribution, whose labels are 0 or 1.
    """

    def loss(self, output: Tensor, target: Tensor) -> Float[Tensor, "N"]:
        """Cross-entropy in nats, summed over the units of a sample; stable for large logits."""
        return binary_cross_entropy_with_logits(output, target, reduction="none").reshape(len(output), -1).sum(1)

    def sampled_vectors(self, output: Tensor, generator: torch.Generator | None) -> Tensor:
        """``p - y`` with every unit of y drawn from p."""
        p = output.sigmoid()
        uniform = torch.rand(p.shape, generator=generator, dtype=p.dtype, device=p.device)
        return (p - (uniform < p).to(p.dtype))[None]

    def full_vectors(self, output: Tensor) -> Tensor:
        """Columns of ``diag(sqrt(p (1 - p)))``."""
        root = self._variance(output).sqrt().reshape(len(output), -1)
        return torch.diag_embed(root).permute(2, 0, 1).reshape(-1, *output.shape)

    def fisher_product(self, output: Tensor, v: Tensor) -> Tensor:
        """The output Fisher of every sample times v, both [N, ...]: ``p (1 - p) v``."""
        return self._variance(output) * v

    def root_times(self, output: Tensor, weights: Tensor) -> Tensor:
        """The same root times ``weights`` [k, *output.shape]: no column is formed."""
        return self._variance(output).sqrt() * weights

    def fisher_sum(self, output: Float[Tensor, "N C"], scale: Float[Tensor, "N C"]) -> Float[Tensor, "C C"]:
        """``sum_n D_n F_n D_n``, F_n the Fisher of sample n's output and D_n = diag(scale_n)."""
        return (self._variance(output) * scale.square()).sum(0).diag()

    def _variance(self, output: Tensor) -> Tensor:
        # 1 - p is the sigmoid of -f, which loses no digits.
        return output.sigmoid() * (-output).sigmoid()

    def correct(self, output: Tensor, target: Tensor) -> None:
        """Reconstruction has no accuracy."""
        return None


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "categorical": Categorical,
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
}


class OutputFisher:
    """Of one likelihood; labels and signs are drawn from ``generator``.

    ``columns``: in place of the K columns of the Fisher's root V so many random combinations of them,
    ``V R / sqrt(columns)`` with independent signs R for every sample, whose outer products have the Fisher for their
    mean. ``mixes`` says whether samples see each other in the model, as behind batch norm.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        generator: torch.Generator | None = None,
        columns: int | None = None,
        mixes: Callable[[], bool] = lambda: False,
    ) -> None:
        self.likelihood, self.generator, self._columns, self._mixes = likelihood, generator, columns, mixes
        # A user's own likelihood need not have these.
        self._root_times = getattr(likelihood, "root_times", None)
        self._fisher_sum = getattr(likelihood, "fisher_sum", None)
        self._place: Callable[[], tuple[int, slice]] | None = None

    def draw_for_whole(self, place: Callable[[], tuple[int, slice]]) -> None:
        """From now on outputs are part of a batch of so many samples, these rows of it, for which others draw alike."""
        self._place = place

    def vectors(self, output: Tensor, fisher: str) -> Tensor:
        """[K, *output.shape]: what is backpropagated, of "sampled" labels or, for any other kind, of the exact root."""
        draws = fisher == "sampled" or self._columns is not None or self._mixes()
        if self._place is None or not draws:
            return self._vectors(output, fisher)
        # Drawn for all samples, so that each meets what it would meet if one process had the whole batch.
        samples, rows = self._place()
        whole = output.new_zeros(samples, *output.shape[1:])
        whole[rows] = output
        return self._vectors(whole, fisher)[:, rows]

    def _vectors(self, output: Tensor, fisher: str) -> Tensor:
        if fisher == "sampled":
            return self.likelihood.sampled_vectors(output, self.generator)
        if self._columns is not None:
            return self._combined(output, self._columns)
        vectors = self.likelihood.full_vectors(output)
        if not self._mixes():
            return vectors
        # Each sample's vector times a random sign: behind batch norm it reaches the rows of all other samples. Products
        # of two samples' vectors then vanish in the mean, as they do for sampled labels, and B is unbiased.
        return vectors * _like_vectors(self._signs(vectors, *vectors.shape[:2]), vectors)

    def _combined(self, output: Tensor, columns: int) -> Tensor:
        if self._root_times is not None:
            return self._root_times(output, self._signs(output, columns, *output.shape)) / columns**0.5
        vectors = self.likelihood.full_vectors(output)
        signs = self._signs(output, columns, *vectors.shape[:2])
        return torch.stack([(vectors * _like_vectors(each, vectors)).sum(0) for each in signs]) / columns**0.5

    def _signs(self, like: Tensor, *shape: int) -> Tensor:
        bits = torch.randint(2, shape, generator=self.generator, device=like.device)
        return (2 * bits - 1).to(like.dtype)

    def sum(self, output: Tensor, scale: Tensor) -> Tensor:
        """``sum_n D_n F_n D_n`` [C, C] of outputs [N, C], D_n = diag(scale_n): no sample's own Fisher is formed."""
        if self._fisher_sum is not None:
            return self._fisher_sum(output, scale)
        vectors = (self.likelihood.full_vectors(output) * scale).flatten(0, 1)
        return vectors.T @ vectors


def _like_vectors(signs: Tensor, vectors: Tensor) -> Tensor:
    """Signs [K, N] beside vectors [K, N, ...]."""
    return signs.view(*signs.shape, *[1] * (vectors.dim() - 2))
