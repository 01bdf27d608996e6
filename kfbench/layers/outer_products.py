"""Sums of outer products of rows, of which only one side of the diagonal is multiplied out."""

from jaxtyping import Float
from torch import Tensor

# Below this width one product for the whole symmetric matrix is faster than its blocks.
_SYMMETRIC_BLOCK = 512

# What callers go on with below the diagonal: blocks of this width on it are whole.
SMALL_BLOCK = 128


def add_outer_products(matrix: Float[Tensor, "d d"], rows: Float[Tensor, "R d"], keep: float, scale: float) -> None:
    """``matrix <- keep * matrix + scale * rows' rows``, in place, for a symmetric matrix.

    Only the blocks on and below the diagonal are multiplied out, the rest is mirrored.
    """
    add_outer_products_below(matrix, rows, keep, scale, _SYMMETRIC_BLOCK)
    _mirror(matrix, _SYMMETRIC_BLOCK)


def add_outer_products_below(
    matrix: Float[Tensor, "d d"], rows: Float[Tensor, "R d"], keep: float, scale: float, block: int = SMALL_BLOCK
) -> None:
    """The same, but what stands above the diagonal blocks is left as it is."""
    d = len(matrix)
    if d <= block:
        # Where keep is 0, old values are not even read, so that nothing not finite survives in them.
        matrix.addmm_(rows.T, rows, beta=keep, alpha=scale)
        return
    half = d // 2
    left, right = rows[:, :half], rows[:, half:]
    add_outer_products_below(matrix[:half, :half], left, keep, scale, block)
    add_outer_products_below(matrix[half:, half:], right, keep, scale, block)
    matrix[half:, :half].addmm_(right.T, left, beta=keep, alpha=scale)


def _mirror(matrix: Tensor, block: int) -> None:
    if len(matrix) > block:
        half = len(matrix) // 2
        matrix[:half, half:].copy_(matrix[half:, :half].T)
        _mirror(matrix[:half, :half], block)
        _mirror(matrix[half:, half:], block)
