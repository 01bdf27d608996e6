"""A small causal transformer for tokens, made of plain linear layers so that every projection can be preconditioned."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu

_STD = 0.02  # of weights at the start (Radford et al. 2019)


def transformer(
    input_shape: tuple[int, ...],
    outputs: int,
    width: int = 64,
    bias: bool = True,
    depth: int = 2,
    heads: int = 4,
    tied: bool = False,
) -> nn.Module:
    """Pre-norm blocks as of GPT-2 (Radford et al. 2019): causal attention, then an MLP of 4 times the width with GELU.

    ``input_shape`` is (T,), the most positions; logits [N, T, outputs]. Weights are normal with deviation 0.02, of
    layers that end a block divided by sqrt(2 depth), biases 0. ``tied``: the output has the embedding's weight.
    ValueError where ``heads`` does not divide ``width``.
    """
    if width % heads:
        raise ValueError(f"its width must be a multiple of its {heads} heads, got {width}")
    return Transformer(input_shape[0], outputs, width, bias, depth, heads, tied)


class Transformer(nn.Module):
    """Embedding and positions, blocks, a last norm, an output without bias."""

    def __init__(self, context: int, outputs: int, width: int, bias: bool, depth: int, heads: int, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(outputs, width)
        self.positions = Positions(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, bias) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, bias=bias)
        self.output = nn.Linear(width, outputs, bias=False)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding | Positions):
                ends_block = name.endswith(("attention.output", "mlp.down"))
                nn.init.normal_(module.weight, std=_STD / (2 * depth) ** 0.5 if ends_block else _STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if tied:
            self.output.weight = self.embedding.weight

    def forward(self, tokens: Int[Tensor, "N T"]) -> Float[Tensor, "N T outputs"]:
        """Logits of the token that follows each."""
        return self.output(self.norm(self.blocks(self.positions(self.embedding(tokens)))))


class Positions(nn.Module):
    """A learned vector for every position, added."""

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(context, width))

    def forward(self, x: Float[Tensor, "N T d"]) -> Float[Tensor, "N T d"]:
        """As many as there are."""
        return x + self.weight[: x.shape[1]]


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.attention, self.mlp = Attention(width, heads, bias), FeedForward(width, bias)

    def forward(self, x: Float[Tensor, "N T d"]) -> Float[Tensor, "N T d"]:
        """The same shape."""
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class Attention(nn.Module):
    """Causal self-attention; one linear layer makes queries, keys and values, another one the output."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.output = nn.Linear(width, 3 * width, bias), nn.Linear(width, width, bias)

    def forward(self, x: Float[Tensor, "N T d"]) -> Float[Tensor, "N T d"]:
        """The same shape."""
        q, k, v = (rows.unflatten(2, (self.heads, -1)).transpose(1, 2) for rows in self.qkv(x).chunk(3, dim=2))
        # Fused kernels have no forward-mode derivative, which step rules take, and on some devices no repeatable
        # backward pass; torch's own unfused form looks for rows that are masked whole, of which there are none here.
        positions = x.shape[1]
        later = torch.full((positions, positions), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
        scaled, keys, values = ((q / math.sqrt(q.shape[3])).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
        mixed = torch.baddbmm(later, scaled, keys.mT).softmax(2) @ values
        return self.output(mixed.unflatten(0, (len(x), self.heads)).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """To 4 times the width and back."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width, bias), nn.Linear(4 * width, width, bias)

    def forward(self, x: Float[Tensor, "N T d"]) -> Float[Tensor, "N T d"]:
        """The same shape."""
        return self.down(gelu(self.up(x)))
