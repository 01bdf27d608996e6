"""Sums of outer products of rows, of which only one side of the diagonal is multiplied out."""

import math

import torch
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


def lower_half(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "h"]:
    """What stands on and below the diagonal, row by row, h = d (d + 1) / 2: all of a symmetric or triangular matrix."""
    return matrix.reshape(-1)[_below(len(matrix), matrix)]


def from_lower_half(half: Float[Tensor, "h"], symmetric: bool) -> Float[Tensor, "d d"]:
    """The inverse; zeros above the diagonal, or what is below it once more."""
    d = (math.isqrt(8 * len(half) + 1) - 1) // 2
    matrix = half.new_zeros(d, d)
    matrix.view(-1)[_below(d, half)] = half
    return matrix + matrix.tril(-1).T if symmetric else matrix


def _below(d: int, like: Tensor) -> Tensor:
    rows, columns = torch.tril_indices(d, d, device=like.device)
    return rows * d + columns
