"""The input rows of a layer, made for some samples at a time: patches of a whole batch would fill the memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

# So many numbers are worked on together: they stay near the cache.
_CHUNK = 2**20


@dataclass(frozen=True)
class SampleRows:
    """Rows [N, P, d_in] of N ``samples``; ``make`` gives those of a slice of them."""

    make: Callable[[slice], Tensor]
    samples: int
    positions: int
    width: int

    @classmethod
    def of(cls, rows: Float[Tensor, "N P d_in"]) -> "SampleRows":
        """Of rows that lie in memory."""
        return cls(lambda part: rows[part], *rows.shape)

    def all(self) -> Float[Tensor, "N P d_in"]:
        """Everything at once."""
        return self.make(slice(None))

    def parts(self, numbers: int) -> Iterator[tuple[slice, Float[Tensor, "n P d_in"]]]:
        """Slices of samples and their rows; ``numbers``: what is worked on for each sample beside its rows."""
        step = max(1, _CHUNK // max(1, self.positions * self.width + numbers))
        for start in range(0, self.samples, step):
            part = slice(start, min(start + step, self.samples))
            yield part, self.make(part)
