"""The input factor of a stride-1 convolution from shifted images, without patches.

With ``R_D[c, c'] = sum_n sum_u x[n, c, u] x[n, c', u + d D]`` (x zero outside the image, d the dilation) the
block of A for taps k and l of the kernel is

    N A[(c, k), (c', l)] = R_{l-k}[c, c'] - (pixels u that no output position reads with tap k)

where both u and u + d (l - k) lie inside the image. What is subtracted lies on strips along the image's edges:
rows, plus columns, minus their corners. A 3x3 kernel with padding 1 needs 15 products of the whole image and 16
of strips in place of 81, and none of it needs a patch. All of it is linear in ``x x'``: the products are
averaged, and A is assembled from them where it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from kfbench.layers.moments import Form
from kfbench.layers.sample_rows import RowMap

# The convolution library adds long sums in order: over more positions a call float32 loses digits (over 102,400
# the factor is off by 9e-5, over 10^4 by 7e-6).
_POSITIONS_PER_CALL = 10_000

# From so many channels on plain products of shifted rows beat the library's weight gradient.
_PRODUCTS_FROM = 256

_Span = tuple[int, int]  # from, up to


@dataclass(frozen=True)
class Strip:
    """Pixels ``rows`` x ``columns`` that tap k does not read, beside those ``shift`` further on."""

    rows: _Span
    columns: _Span
    shift: tuple[int, int]

    @property
    def pixels(self) -> int:
        """How many."""
        return (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])


@dataclass(frozen=True)
class Shifts(Form):
    """Of [channels, height, width] images under one kernel: which products are kept, and A from them.

    What is kept is one vector: the products [products, C, C], and with ``ones`` (a column of ones beside the
    patches) what each tap reads [C K1 K2] and the number of positions.
    """

    kind = "shifts"
    channels: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ones: bool

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, *geometry: object) -> Shifts:
        """The same object for the same geometry, whose strips are then listed once."""
        return cls(*geometry)  # type: ignore[arg-type]

    @property
    def taps(self) -> int:
        """K1 K2."""
        return self.kernel[0] * self.kernel[1]

    @property
    def positions(self) -> int:
        """P."""
        return self._outputs(0) * self._outputs(1)

    @property
    def d_in(self) -> int:
        """Width of A."""
        return self.channels * self.taps + self.ones

    @property
    def length(self) -> int:
        """How many numbers are kept."""
        products = (len(self._whole) + len(self.strips)) * self.channels**2
        return products + (self.channels * self.taps + 1 if self.ones else 0)

    def _outputs(self, axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel[axis] - 1)
        return self.size[axis] + 2 * self.padding[axis] - reach

    @cached_property
    def _whole(self) -> dict[tuple[int, int], int]:
        """Shift D -> index of R_D, in the order of a weight gradient; the other half are transposes."""
        K1, K2 = self.kernel
        return {(D1, D2): i for i, (D1, D2) in enumerate(product(range(K1), range(1 - K2, K2)))}

    def _spans(self, axis: int, k: int, D: int) -> tuple[_Span, list[_Span]]:
        """Pixels u for which u + dD is inside too, and the parts of them that tap k does not read."""
        d, size = self.dilation[axis], self.size[axis]
        inside = (max(0, -d * D), min(size, size - d * D))
        first = d * k - self.padding[axis]
        read = (first, first + self._outputs(axis))
        unread = [(inside[0], min(inside[1], read[0])), (max(inside[0], read[1]), inside[1])]
        return inside, [span for span in unread if span[0] < span[1]]

    @cached_property
    def _blocks(self) -> tuple[dict[Strip, int], list[tuple[int, int, int, list[tuple[int, int]]]]]:
        """Strips with their index, and for tap pairs (k, l) on one side of the diagonal: R's index, (sign, strip)s."""
        strips: dict[Strip, int] = {}
        blocks = []
        K1, K2 = self.kernel
        for (k1, k2), (l1, l2) in product(product(range(K1), range(K2)), repeat=2):
            D = (l1 - k1, l2 - k2)
            if D < (0, 0):
                continue  # the transpose of a pair that comes
            (rows, rows_unread), (columns, columns_unread) = self._spans(0, k1, D[0]), self._spans(1, k2, D[1])
            found = []
            if rows[0] < rows[1] and columns[0] < columns[1]:
                shift = (self.dilation[0] * D[0], self.dilation[1] * D[1])
                parts = [(-1, Strip(r, columns, shift)) for r in rows_unread]
                parts += [(-1, Strip(rows, c, shift)) for c in columns_unread]
                parts += [(1, Strip(r, c, shift)) for r in rows_unread for c in columns_unread]
                found = [(sign, strips.setdefault(strip, len(strips))) for sign, strip in parts]
            blocks.append((k1 * K2 + k2, l1 * K2 + l2, self._whole[D], found))
        return strips, blocks

    @property
    def strips(self) -> dict[Strip, int]:
        """Every strip that some pair of taps needs -> its index."""
        return self._blocks[0]

    def multiply_adds(self, samples: int) -> float:
        """Of ``measure``."""
        pixels = len(self._whole) * self.size[0] * self.size[1] + sum(strip.pixels for strip in self.strips)
        return float(samples * pixels * self.channels**2)

    def measure(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, length]:
        """What is kept of these images, summed over them."""
        C = self.channels
        R = self._by_products(x) if C >= _PRODUCTS_FROM else self._by_weight_gradient(x)
        parts = [R.flatten(), *(self._strip(x, strip).flatten() for strip in self.strips)]
        if self.ones:
            # Of the sum over samples: what a tap reads is linear in x.
            read = functional.unfold(x.sum(0, keepdim=True), self.kernel, self.dilation, self.padding)[0].sum(1)
            parts += [read, read.new_full((1,), len(x) * self.positions)]
        return torch.cat(parts)

    def _by_weight_gradient(self, x: Tensor) -> Float[Tensor, "products C C"]:
        """All shifts at once, as the gradient of a kernel of their size, a few samples a call."""
        C, (K1, K2), (d1, d2) = self.channels, self.kernel, self.dilation
        shape = (C, C, K1, 2 * K2 - 1)
        below = functional.pad(x, (0, 0, 0, d1 * (K1 - 1)))
        step = max(1, _POSITIONS_PER_CALL // (self.size[0] * self.size[1]))
        total = x.new_zeros(shape)
        for image, shifted in zip(x.split(step), below.split(step), strict=True):
            total += conv2d_weight(shifted, shape, image, padding=(0, d2 * (K2 - 1)), dilation=self.dilation)
        return total.permute(2, 3, 0, 1).flatten(0, 1)

    def _by_products(self, x: Tensor) -> Float[Tensor, "products C C"]:
        """Positions before samples, zero columns appended: each shift is an offset in the flattened rows."""
        C, d1, d2 = self.channels, *self.dilation
        columns = self.size[1] + d2 * (self.kernel[1] - 1)
        rows = x.new_zeros(self.size[0], columns, len(x), C)
        rows[:, : self.size[1]] = x.permute(2, 3, 0, 1)
        rows = rows.view(-1, C)
        R = x.new_zeros(len(self._whole), C, C)
        for (D1, D2), index in self._whole.items():
            offset = (d1 * D1 * columns + d2 * D2) * len(x)
            ahead, behind = rows[max(offset, 0) :], rows[max(-offset, 0) :]
            count = min(len(ahead), len(behind))
            if (D1, D2) >= (0, 0):  # else it is never asked for: its transpose stands beside it
                torch.mm(behind[:count].T, ahead[:count], out=R[index])
        return R

    def _strip(self, x: Tensor, strip: Strip) -> Float[Tensor, "C C"]:
        (r0, r1), (c0, c1), (s1, s2) = strip.rows, strip.columns, strip.shift
        here = x[:, :, r0:r1, c0:c1].transpose(0, 1).flatten(1)
        there = x[:, :, r0 + s1 : r1 + s1, c0 + s2 : c1 + s2].transpose(0, 1).flatten(1)
        return here @ there.T

    def assemble(self, kept: Float[Tensor, length]) -> Float[Tensor, "d_in d_in"]:
        """A, in the order of patches: channels, then taps; then the column of ones."""
        C, taps, whole = self.channels, self.taps, len(self._whole)
        products = kept[: (whole + len(self.strips)) * C**2].view(-1, C, C)
        A = kept.new_empty(self.d_in, self.d_in)
        # A view of the part without ones; writing block by block fills it once.
        weights = A[: C * taps, : C * taps].unflatten(0, (C, taps)).unflatten(2, (C, taps))
        for k, other, R, strips in self._blocks[1]:
            block = products[R]
            for sign, strip in strips:
                block = block.add(products[whole + strip], alpha=sign)
            weights[:, k, :, other] = block
            if k != other:
                weights[:, other, :, k] = block.T
        if self.ones:
            read, positions = kept[-C * taps - 1 : -1], kept[-1]
            A[-1, :-1], A[:-1, -1], A[-1, -1] = read, read, positions
        return A

    @property
    def blocks(self) -> int:
        """A itself."""
        return 1

    @property
    def input_blocks(self) -> tuple[tuple[int, int], ...]:
        """A, met once."""
        return ((self.d_in, 1),)

    def block(self, kept: Float[Tensor, length], index: int) -> Float[Tensor, "d_in d_in"]:
        """A."""
        return self.assemble(kept)

    def on_blocks(self, rows: Float[Tensor, "R d_in"], maps: Sequence[RowMap]) -> Float[Tensor, "R d_in"]:
        """By the one map there is."""
        return maps[0](rows)

    def trace(self, kept: Float[Tensor, length]) -> Float[Tensor, ""]:
        """``tr A``, without A."""
        C, whole = self.channels, len(self._whole)
        products = kept[: (whole + len(self.strips)) * C**2].view(-1, C, C)
        traces = products.diagonal(dim1=1, dim2=2).sum(1)
        weights = traces.new_zeros(len(traces))
        for k, other, R, strips in self._blocks[1]:
            for sign, index in [(1, R), *((s, whole + i) for s, i in strips)] if k == other else ():
                weights[index] += sign
        return weights @ traces + (kept[-1] if self.ones else 0)
