"""The Fisher of a model's output in every form that a method asks for, from what its likelihood says of it."""

from collections.abc import Callable

import torch
from torch import Tensor

from kfbench.problems.likelihoods import Likelihood


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

    def vectors(self, output: Tensor, fisher: str) -> Tensor:
        """[K, *output.shape]: what is backpropagated, of "sampled" labels or, for any other kind, of the exact root."""
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
