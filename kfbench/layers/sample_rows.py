"""The input rows of a layer, made for some samples at a time: patches of a whole batch would fill the memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Maps rows [R, d] to rows [R, d]: multiplication by a [d, d] matrix from the right.
RowMap = Callable[[Tensor], Tensor]


def with_ones(rows: Float[Tensor, "N P d"]) -> Float[Tensor, "N P d+1"]:
    """A column of ones behind: the bias's input."""
    return torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)


# So many numbers are worked on together: they stay near the cache.
_CHUNK = 2**20


@dataclass(frozen=True)
class SampleRows:
    """Rows [N, P, d_in] of N ``samples``; ``make`` gives those of a slice of them.

    ``mapped`` and ``summed``, where a layer has them: ``times`` and ``weighted_sum`` without any row.
    """

    make: Callable[[slice], Tensor]
    samples: int
    positions: int
    width: int
    mapped: Callable[[Tensor], Tensor] | None = None
    summed: Callable[[Tensor], Tensor] | None = None
    in_memory: Tensor | None = None
    described: Callable[[], dict[str, Any]] | None = None

    @classmethod
    def of(cls, rows: Float[Tensor, "N P d_in"]) -> "SampleRows":
        """Of rows that lie in memory."""
        return cls(lambda part: rows[part], len(rows), rows.shape[1], rows.shape[2], in_memory=rows)

    @classmethod
    def join(cls, parts: list["SampleRows"]) -> "SampleRows":
        """One after another, of micro-batches: of the same positions and width."""
        if all(part.in_memory is not None for part in parts):
            return cls.of(torch.cat([part.all() for part in parts]))
        sizes = [part.samples for part in parts]

        def make(wanted: slice) -> Tensor:
            start, stop, _ = wanted.indices(sum(sizes))
            found, first = [], 0
            for part in parts:
                begin, end = max(start - first, 0), min(stop - first, part.samples)
                if begin < end:
                    found.append(part.make(slice(begin, end)))
                first += part.samples
            return torch.cat(found)

        def weighted(weights: Tensor) -> Tensor:
            split = weights.split(sizes)
            return torch.stack([p.weighted_sum(w) for p, w in zip(parts, split, strict=True)]).sum(0)

        def mapped(matrix: Tensor) -> Tensor:
            return torch.cat([part.times(matrix) for part in parts])

        described = lambda: {"parts": [part.state_dict() for part in parts]}  # noqa: E731
        shape = sum(sizes), parts[0].positions, parts[0].width
        return cls(make, *shape, mapped, weighted, described=described)

    def all(self) -> Float[Tensor, "N P d_in"]:
        """Everything at once."""
        return self.make(slice(None))

    def times(self, matrix: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "N P d_out"]:
        """Every row by a matrix: what the layer would return with these weights."""
        return self.all() @ matrix.T if self.mapped is None else self.mapped(matrix)

    def weighted_sum(self, weights: Float[Tensor, "N P d_out"]) -> Float[Tensor, "d_out d_in"]:
        """``sum_n sum_p w a'``: the gradient of weights where the gradient of outputs is ``weights``."""
        if self.summed is None:
            return weights.flatten(0, 1).T @ self.all().flatten(0, 1)
        return self.summed(weights)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which they are made again, without rows where they are not in memory."""
        if self.described is not None:
            return self.described()
        # Apart, since products of rows that are made when asked for are others than of those in memory.
        return {"made": self.all()} if self.in_memory is None else {"rows": self.in_memory}

    def first(self, samples: int | None) -> "SampleRows":
        """Of the first so many samples, or all; without the layer's own ways, which know all of them."""
        if samples is None or samples >= self.samples:
            return self
        if self.in_memory is not None:
            return SampleRows.of(self.in_memory[:samples])
        return SampleRows(lambda part: self.make(slice(*part.indices(samples))), samples, self.positions, self.width)

    def parts(self, numbers: int) -> Iterator[tuple[slice, Float[Tensor, "n P d_in"]]]:
        """Slices of samples and their rows; ``numbers``: what is worked on for each sample beside its rows."""
        step = max(1, _CHUNK // max(1, self.positions * self.width + numbers))
        for start in range(0, self.samples, step):
            part = slice(start, min(start + step, self.samples))
            yield part, self.make(part)
