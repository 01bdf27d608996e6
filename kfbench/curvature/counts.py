"""Multiply-adds: what an update must cost before anything is timed (Martens & Grosse 2015, appendix G)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class LayerShape:
    """One layer in one batch: rows R = N P, P the ``positions``, of widths d_in (bias column counted) and d_out.

    ``first``: its input needs no gradient, so the backward pass skips one of its products.
    ``positions``: P. ``factor_per_sample``: multiply-adds of the input factor where it is not formed from rows.
    ``observed``: rows that its factors are made of, where these are not all. ``input_blocks``: (width, how often it
    meets a row) of each block of the input factor, where it is not one. ``looked_up``: the rows are one-hot, so that a
    product with them adds vectors of d_out.
    """

    rows: int
    d_out: int
    d_in: int
    first: bool = False
    positions: int = 1
    factor_per_sample: float | None = None
    input_blocks: tuple[tuple[int, int], ...] = ()
    observed: int | None = None
    looked_up: bool = False

    def with_points(self, points: int) -> "LayerShape":
        """The same layer in a batch of another size."""
        return replace(self, rows=points * self.positions)

    @property
    def product(self) -> float:
        """One product of the rows with a [d_out, d_in] matrix."""
        return float(self.rows * self.d_out * (1 if self.looked_up else self.d_in))

    @property
    def on_rows(self) -> bool:
        """Whether the gradient is kept as rows: else it comes from autograd as a matrix (``curvature/captured.py``)."""
        return self.positions == 1 or self.rows < self.d_out

    @property
    def right_side(self) -> float:
        """Multiplying the gradient by a matrix of the input factor's structure, on whichever form is less."""
        blocks = self.input_blocks or ((self.d_in, 1),)
        per_row = sum(times * width**2 for width, times in blocks)
        return float((min(self.rows, self.d_out) if self.on_rows else self.d_out) * per_row)

    @property
    def input_cholesky(self) -> float:
        """A Cholesky factor of every block of the input factor."""
        return sum(cholesky(width) for width, _ in self.input_blocks or ((self.d_in, 1),))

    @property
    def left_side(self) -> float:
        """Likewise by a [d_out, d_out] matrix."""
        return float((min(self.rows, self.d_in) if self.on_rows else self.d_in) * self.d_out**2)

    @property
    def input_factor(self) -> float:
        """``sum_n sum_p a a'``, as it is formed."""
        rows = self.rows if self.observed is None else self.observed
        if self.factor_per_sample is None:
            return symmetric_product(rows, self.d_in)
        return rows // self.positions * self.factor_per_sample

    def output_factor(self, vectors: int) -> float:
        """``sum_k sum_n sum_p g g'``."""
        return symmetric_product(vectors * (self.rows if self.observed is None else self.observed), self.d_out)

    @property
    def input_triangles(self) -> int:
        """Numbers of a triangular factor of every block of the input factor, each with a flag; none of a diagonal's."""
        if self.is_diagonal:
            return 0
        return sum(triangle(width) + 1 for width, _ in self.input_blocks or ((self.d_in, 1),))

    @property
    def is_diagonal(self) -> bool:
        """Whether the input factor is, by its structure."""
        return self.d_in > 1 and self.input_blocks == ((1, self.d_in),)

    @property
    def both_bases(self) -> int:
        """Numbers of the eigenvectors and eigenvalues of both factors; none of a diagonal one."""
        of_inputs = 0 if self.is_diagonal else self.d_in * (self.d_in + 1)
        return of_inputs + self.d_out * (self.d_out + 1)

    @property
    def without_blocks(self) -> "LayerShape":
        """For what takes the input factor as one matrix, however it is structured: bases."""
        return replace(self, input_blocks=())


def forward(shapes: Sequence[LayerShape]) -> float:
    """Every layer once."""
    return sum(shape.product for shape in shapes)


def forward_backward(shapes: list[LayerShape]) -> float:
    """Forward, gradient of the weights, and gradient of the inputs but for the first layer."""
    return sum(shape.product * (2 if shape.first else 3) for shape in shapes)


def label_backward(shapes: list[LayerShape], vectors: int) -> float:
    """Backpropagating that many more vectors to every layer's output."""
    # It ends at the first layer's output, so that layer's weights are not multiplied.
    return vectors * sum(shape.product for shape in shapes if not shape.first)


def symmetric_product(rows: int, d: int) -> float:
    """``rows' rows`` counted whole, though only blocks on one side of the diagonal are multiplied out."""
    return float(rows * d * d)


def triangle(d: int) -> int:
    """Numbers on and below the diagonal."""
    return d * (d + 1) // 2


def cholesky(d: int) -> float:
    """A Cholesky factor; solves with it are counted where they are applied."""
    return d**3 / 6


def eigh(d: int) -> float:
    """A symmetric eigendecomposition, by convention five Cholesky inverses of d^3 / 2 each."""
    return 5 * d**3 / 2


def qr(d: int) -> float:
    """A Householder QR decomposition of a [d, d] matrix with its orthogonal factor: 2/3 d^3 for each of both."""
    return 4 * d**3 / 3
