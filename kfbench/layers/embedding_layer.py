"""Embeddings: a linear layer whose inputs are one-hot, so that its input factor is diagonal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot

from kfbench.layers.contract import Layer, full
from kfbench.layers.estimate import Estimate
from kfbench.layers.moments import Form, Moment, MomentOfInputs
from kfbench.layers.sample_rows import RowMap, SampleRows


class EmbeddingLayer(Layer):
    """An ``nn.Embedding`` of V vectors: position p has the row ``a = onehot(token)`` [V], the weight is W'.

    ``A = counts / N`` under expand; under reduce it is the second moment of each sample's counts, no longer diagonal.
    """

    module: nn.Embedding
    always_of_form = True
    looks_up = True

    @staticmethod
    def why_not(module: nn.Embedding) -> str | None:
        """What changes weights, or what a token counts for, on the way."""
        options = {
            "padding_idx": module.padding_idx is not None,
            "max_norm": module.max_norm is not None,
            "scale_grad_by_freq": module.scale_grad_by_freq,
            "sparse": module.sparse,
        }
        given = [name for name, is_given in options.items() if is_given]
        return f"an embedding with {', '.join(given)} has no Kronecker factors here" if given else None

    @property
    def has_bias(self) -> bool:
        """None."""
        return False

    @property
    def d_out(self) -> int:
        """Width of a vector."""
        return self.module.embedding_dim

    @property
    def d_in(self) -> int:
        """V."""
        return self.module.num_embeddings

    def positions(self, shape: tuple[int, ...]) -> int:
        """Every token of a sample."""
        return int(torch.Size(shape[1:]).numel())

    def input_rows(self, x: Int[Tensor, "N ..."]) -> Float[Tensor, "N P V"]:
        """One-hot, in the weight's precision."""
        return one_hot(x.reshape(len(x), -1), self.d_in).to(self.module.weight.dtype)

    def gradient_rows(self, g: Tensor) -> Float[Tensor, "N P d_out"]:
        """Positions in the order of memory."""
        return g.reshape(g.shape[0], -1, g.shape[-1])

    def sample_rows(self, given: Callable[[], Tensor], samples: int, positions: int) -> SampleRows:
        """Products with them look tokens up and add to their places."""
        return token_rows(given, samples, positions, self.d_in, full(self.module.weight.detach()).dtype)

    def form(self, image: tuple[int, ...], ones: bool, estimate: Estimate) -> Form | None:
        """Counts; a matrix where samples are summed, and beside a column of ones, which every token meets."""
        if ones or estimate.sharing == "reduce":
            return None
        return Counts(self.d_in, str(full(self.module.weight.detach()).dtype).removeprefix("torch."))

    def input_moment(self, inputs: list[Tensor], ones: bool, estimate: Estimate) -> Moment:
        """As counts where it is diagonal."""
        form = self.form((), ones, estimate)
        if form is None:
            return super().input_moment(inputs, ones, estimate)
        return MomentOfInputs([x[: estimate.count(len(x))] for x in inputs], form)

    def weight_matrix(self, weight: Float[Tensor, "V d_out"]) -> Float[Tensor, "d_out V"]:
        """A token's vector is a column."""
        return weight.T

    def weight_of(self, matrix: Float[Tensor, "d_out V"]) -> Float[Tensor, "V d_out"]:
        """The inverse."""
        return matrix.T.contiguous()


def token_rows(
    given: Callable[[], Int[Tensor, "N ..."]], samples: int, positions: int, width: int, dtype: torch.dtype
) -> SampleRows:
    """One-hot rows [N, P, V] of tokens, which are asked for whenever rows are."""

    def tokens(part: slice = slice(None)) -> Int[Tensor, "n P"]:
        return given()[part].reshape(-1, positions)

    def times(matrix: Float[Tensor, "d_out V"]) -> Float[Tensor, "N P d_out"]:
        return matrix.T[tokens()]

    def weighted_sum(weights: Float[Tensor, "N P d_out"]) -> Float[Tensor, "d_out V"]:
        total = weights.new_zeros(width, weights.shape[2])
        return total.index_add_(0, tokens().flatten(), weights.flatten(0, 1)).T

    return SampleRows(
        lambda part: one_hot(tokens(part), width).to(dtype),
        samples,
        positions,
        width,
        mapped=times,
        summed=weighted_sum,
        described=lambda: {"tokens": tokens(), "width": width, "dtype": str(dtype).removeprefix("torch.")},
    )


@dataclass(frozen=True)
class Counts(Form):
    """A diagonal matrix, kept as its diagonal: how often each of ``d`` tokens is there."""

    kind = "counts"
    d: int
    dtype: str

    @property
    def d_in(self) -> int:
        """V."""
        return self.d

    @property
    def blocks(self) -> int:
        """One, and it is diagonal."""
        return 1

    @property
    def input_blocks(self) -> tuple[tuple[int, int], ...]:
        """Each number of a row is multiplied by one."""
        return ((1, self.d),)

    def multiply_adds(self, samples: int) -> float:
        """Counting multiplies nothing."""
        return 0.0

    def measure(self, x: Int[Tensor, "..."]) -> Float[Tensor, "V"]:
        """How often each token is there."""
        ones = torch.ones(x.numel(), dtype=getattr(torch, self.dtype), device=x.device)
        # Not bincount, which waits for an accelerator; whole numbers add up alike in any order.
        return ones.new_zeros(self.d).index_add_(0, x.reshape(-1), ones)

    def block(self, kept: Tensor, index: int) -> Float[Tensor, "V V"]:
        """All of it."""
        return self.assemble(kept)

    def on_blocks(self, rows: Float[Tensor, "R V"], maps: Sequence[RowMap]) -> Float[Tensor, "R V"]:
        """By the one block."""
        return maps[0](rows)

    def assemble(self, kept: Tensor) -> Float[Tensor, "V V"]:
        """The matrix itself."""
        return kept.diag()

    def trace(self, kept: Tensor) -> Float[Tensor, ""]:
        """The sum."""
        return kept.sum()

    def diagonal(self, kept: Tensor) -> Float[Tensor, "V"]:
        """What is kept."""
        return kept
