"""Cosines between directions, layer by layer and over the whole network, in one of two inner products."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# One matrix [d_out, d_in] for every layer.
Matrices = Mapping[str, Tensor]


class FOOFInnerProduct:
    """``<u, v> = sum_l tr(u_l (A_l + lambda I) v_l')``, A and lambda those of a FOOF (Benzing 2022, section 3)."""

    def __init__(self, A: Matrices, damping: float) -> None:
        self.A, self.damping = A, damping

    def times(self, u: Matrices) -> dict[str, Tensor]:
        """``u_l (A_l + lambda I)``."""
        # beta adds lambda u in the pass that makes u A.
        return {name: torch.addmm(matrix, matrix, self.A[name], beta=self.damping) for name, matrix in u.items()}


def cosines(
    directions: Mapping[str, Matrices],
    pairs: Sequence[tuple[str, str]],
    inner_product: FOOFInnerProduct | None = None,
) -> Tensor:
    """[pairs, layers + 1], float64: the cosine in every layer, and last over the whole network.

    The Euclidean inner product where none is given. Not a number where a direction is zero.
    """
    times = inner_product.times if inner_product else dict
    # Once for each direction, however many pairs it is in.
    weighted = {label: times(directions[label]) for label in dict.fromkeys(x for pair in pairs for x in pair)}

    def inner(a: str, b: str) -> Tensor:
        # In float64: a sum over a whole layer would lose digits in float32.
        parts = [
            torch.dot(weighted[a][name].flatten().double(), v.flatten().double()) for name, v in directions[b].items()
        ]
        # Inner products of layers add up to that of the network; cosines would not.
        return torch.stack([*parts, torch.stack(parts).sum()])

    norms = {label: inner(label, label).sqrt() for label in weighted}
    return torch.stack([inner(a, b) / (norms[a] * norms[b]) for a, b in pairs])
