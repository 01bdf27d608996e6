"""KFRA, Kronecker-factored recursive approximation: B handed from layer to layer (Botev, Ritter & Barber 2017).

``B_{l-1} = (W_l' B_l W_l) o (1/N sum_n phi_n phi_n')`` from ``B_L = 1/N sum_n H_n``, see ``curvature/recursion.py``:
on each observed batch, with the weights of that batch. B and A are then averaged, damped and inverted as K-FAC's:
appendix B.1, eq 36-38 with the trace norm, is its heuristic damping. Deviations from Algorithm 1 as printed, its
slips: k is sqrt(gamma + eta), and B stands left of the gradient, A right of it.
"""

from itertools import pairwise

from kfbench.curvature.counts import LayerShape, symmetric_product
from kfbench.curvature.recursion import recursion
from kfbench.curvature.statistics import Statistics
from kfbench.layers.moments import MeasuredMoment
from kfbench.preconditioners.kfac import KFAC


class KFRA(KFAC):
    """``(B + lambda_B I)^-1 G (A + lambda_A I)^-1`` with B of the recursion: chains of fully connected layers alone."""

    orders = ("same", "independent")

    def __init__(self, ema: float = 0.95) -> None:
        super().__init__(ema)
        self.fisher = "recursion"

    def observe(self, statistics: Statistics) -> None:
        """Average in A and the recursion's B of every layer."""
        self.A.add_inputs(statistics)
        for name, B in recursion({name: layer.link for name, layer in statistics.items()}).items():
            self.B.add_moment(name, MeasuredMoment(B), 1)

    def multiply_adds_network(self, shapes: list[LayerShape], vectors: int, points: int) -> dict[str, float]:
        """A, second moments of slopes (the last layer's: of outputs), two products a weight; the rest is K-FAC's."""
        own = [self.multiply_adds(shape, 0) for shape in shapes]
        counted = {task: sum(layer[task] for layer in own) for task in own[0]}
        counted["statistics"] += sum(symmetric_product(shape.rows, shape.d_out) for shape in shapes)
        for before, shape in pairwise(shapes):
            counted["statistics"] += shape.d_out * before.d_out * (shape.d_out + before.d_out)
        return counted
