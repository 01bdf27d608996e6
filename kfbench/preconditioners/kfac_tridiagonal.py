"""K-FAC with a block-tridiagonal inverse over a chain of layers (Martens & Grosse 2015, section 3.3, appendix I).

Gradients of neighbouring layers are taken for correlated, those of others for independent given the layers between.
Take the damped factors ``A_l + lambda_A I = R R'``, ``B_l + lambda_B I`` of heuristic K-FAC (their E.3) and undamped
ones across two layers l and n = l + 1, ``A_l,n = 1/N sum a_l a_n'``, ``B_l,n = 1/N sum g_l g_n'``. Let

    M = R_l^-1 A_l,n R_n'^-1,   M M' = E s_A E',   K_A = R_l'^-1 E,   W_A = (A_n + lambda_A I)^-1 A_l,n' K_A

and likewise for B. With S of every layer but the last the directions are, k = l - 1 being the layer before (if any),

    S_l = (K_B' G_l K_A - W_B' G_n W_A) / (1 - s_B s_A')       K_B, K_A, W_B, W_A, s_B, s_A of layer l
    Delta_l = K_B S_l K_A' - W_B S_k W_A'                      the latter two W of layer k

where the last layer has K-FAC's ``(B + lambda_B I)^-1 G (A + lambda_A I)^-1`` in place of ``K_B S_l K_A'``: a single
layer is K-FAC. In the paper's symbols W is ``Psi' K``: what it multiplies one after another is one matrix here. Its
symmetric square roots are Cholesky factors R here: any root gives the same inverse, and these spare every second
eigendecomposition.

The roots of s are canonical correlations (Hotelling 1936) of damped variables, so that 1 - s_B s_A' is positive, if
only the factors across layers are of the same samples, labels and weights as those of the layers.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kfbench.curvature.approximations import KroneckerProduct
from kfbench.curvature.averages import FactorAverages, Inverse
from kfbench.curvature.counts import LayerShape, eigh
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.linalg import DampedInverse, eigenbasis
from kfbench.curvature.statistics import LayerStatistics, Statistics
from kfbench.layers.moments import MomentOfPairs
from kfbench.preconditioners.kfac import KFAC

# An eigendecomposition errs by a few roundings of the largest eigenvalue, here at most 1: what is nearer to 1 is noise.
_ROUNDINGS = 16


@dataclass(frozen=True)
class Coupling:
    """A layer [d_out, d_in] and the next one [e_out, e_in] of a chain: what the direction needs of both."""

    K_B: Float[Tensor, "d_out d_out"]
    K_A: Float[Tensor, "d_in d_in"]
    W_B: Float[Tensor, "e_out d_out"]
    W_A: Float[Tensor, "e_in d_in"]
    denominator: Float[Tensor, "d_out d_in"]

    def rotated(self, own: LayerGradient, following: LayerGradient) -> Float[Tensor, "d_out d_in"]:
        """S."""
        S = own.transform(lambda g: g @ self.K_B, lambda a: a @ self.K_A)
        return S.sub_(following.transform(lambda g: g @ self.W_B, lambda a: a @ self.W_A)).div_(self.denominator)

    def own(self, S: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out d_in"]:
        """``K_B S K_A'``."""
        return self.K_B @ S @ self.K_A.T

    def following(self, S: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "e_out e_in"]:
        """``W_B S W_A'``."""
        return self.W_B @ S @ self.W_A.T


class TridiagonalKFAC:
    """K-FAC whose inverse couples each layer of a chain with its neighbours; see the module's text.

    Raises FloatingPointError at a refresh where two layers are correlated to 1 in floating point.
    """

    orders: tuple[str, ...] = ("independent", "same")
    chain = True
    apply_remembers = False
    approximation_of_refresh = True

    def __init__(self, ema: float = 0.95, fisher: str = "sampled") -> None:
        self.fisher = fisher
        self.kfac = KFAC(ema, "heuristic", fisher)
        # By the first of two layers: A_l,n [d_in, e_in] and B_l,n [d_out, e_out].
        self.across_A, self.across_B = FactorAverages(ema), FactorAverages(ema)
        self.couplings: dict[str, Coupling] = {}

    @property
    def damping_retries(self) -> int:
        """How many factors needed more damping than asked for."""
        return self.kfac.damping_retries

    def observe(self, statistics: Statistics) -> None:
        """Average in both factors of every layer, and both across every two neighbours, from the same rows."""
        self.kfac.observe(statistics)
        for (name, own), (_, following) in pairwise(statistics.items()):
            self.across_A.add_moment(name, MomentOfPairs(own.inputs, following.inputs), own.samples)
            self.across_B.add_moment(name, MomentOfPairs(_gradients(own), _gradients(following)), own.samples)

    def refresh(self, damping: float) -> None:
        """K-FAC's inverses, and what couples each layer with the next."""
        self.couplings = {}  # freed first, so that no two generations are held at once
        self.kfac.refresh(damping)
        largest: dict[str, Tensor] = {}
        for (name, (left, right)), (_, (next_left, next_right)) in pairwise(self.kfac.inverses.items()):
            s_B, K_B, W_B = correlations(left, next_left, self.across_B.means[name])
            s_A, K_A, W_A = correlations(right, next_right, self.across_A.means[name])
            self.couplings[name] = Coupling(K_B, K_A, W_B, W_A, 1 - torch.outer(s_B, s_A))
            largest[name] = s_B.max() * s_A.max()
        _check_correlations(largest, damping)

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """Directions [d_out, d_in]."""
        directions, names = {}, list(self.kfac.inverses)
        from_before: Tensor | None = None
        for name, following in zip(names, [*names[1:], None], strict=True):
            if following is None:
                own, to_next = gradients[name].transform(*self.kfac.inverses[name]), None
            else:
                coupling = self.couplings[name]
                S = coupling.rotated(gradients[name], gradients[following])
                own, to_next = coupling.own(S), coupling.following(S)
            directions[name] = own if from_before is None else own.sub_(from_before)
            from_before = to_next
        return directions

    def approximation(self, layer: str) -> KroneckerProduct | None:
        """``B (x) A``: the diagonal blocks of the matrix that is inverted are K-FAC's."""
        return self.kfac.approximation(layer)

    def multiply_adds_network(self, shapes: list[LayerShape], vectors: int, points: int) -> dict[str, float]:
        """K-FAC's, and of every two neighbours the factors across, their ``correlations``, what K and W multiply."""
        counts = dict.fromkeys(("statistics", "refresh", "apply"), 0.0)
        for shape in shapes:
            for task, count in self.kfac.multiply_adds(shape, vectors).items():
                counts[task] += count
        for own, following in pairwise(shapes):
            d_out, d_in, e_out, e_in = own.d_out, own.d_in, following.d_out, following.d_in
            counts["statistics"] += own.rows * (d_in * e_in + vectors * d_out * e_out)
            counts["refresh"] += _correlations_count(d_in, e_in) + _correlations_count(d_out, e_out)
            # K's sides are as many products as the inverses' that ``kfac`` counts; W's come beside them.
            by_rows = own.rows * (e_out * d_out + e_in * d_in + d_out * d_in)
            counts["apply"] += min(by_rows, d_out * e_out * e_in + d_out * e_in * d_in)
            counts["apply"] += d_out * d_in * (d_out + d_in) + e_out * d_in * (d_out + e_in)
        return counts

    def forget(self, names: Collection[str]) -> None:
        """All start anew: factors across two layers must be as old as both."""
        self.kfac.forget(list(self.kfac.A.means))
        for averages in (self.across_A, self.across_B):
            averages.forget(list(averages.means))
        self.couplings = {}

    def state_dict(self) -> dict[str, Any]:
        """K-FAC's state, the averages across layers, the couplings."""
        couplings = {name: dict(vars(coupling)) for name, coupling in self.couplings.items()}
        across = {"across_A": self.across_A.state_dict(), "across_B": self.across_B.state_dict()}
        return {"kfac": self.kfac.state_dict(), **across, "couplings": couplings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        self.kfac.load_state_dict(state["kfac"])
        self.across_A.load_state_dict(state["across_A"])
        self.across_B.load_state_dict(state["across_B"])
        self.couplings = {name: Coupling(**coupling) for name, coupling in state["couplings"].items()}


def correlations(
    own: Inverse, following: Inverse, across: Float[Tensor, "d e"]
) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"], Float[Tensor, "e d"]]:
    """(s, K, W) of one kind of factor, see the module's text: everything cubic is here."""
    assert isinstance(own, DampedInverse) and isinstance(following, DampedInverse), "layers of a chain have no blocks"
    M = own.halfway(following.halfway(across).T).T
    s, E = eigenbasis(M @ M.T)
    # K' = E' R_l^-1, and W' = E' M R_n^-1.
    return s, own.rest(E.T).T, following.rest(E.T @ M).T


def _correlations_count(d: int, e: int) -> float:
    """Two triangular solves and two products of the factor across, the eigendecomposition, a solve for each of K, W."""
    return eigh(d) + d * e * (e / 2 + d / 2 + d + d + e / 2) + d**3 / 2


def _check_correlations(largest: Mapping[str, Tensor], damping: float) -> None:
    """FloatingPointError where 1 - s_B s_A is not known to be positive; one synchronisation with the device."""
    if not largest:
        return
    values = torch.stack(list(largest.values()))
    limit = 1 - _ROUNDINGS * torch.finfo(values.dtype).eps
    for name, value in zip(largest, values.tolist(), strict=True):
        if not value <= limit:  # nor where it is no number
            raise FloatingPointError(
                f"layer {name!r} and the next are correlated to {value:.9g}, which damping {damping:g} must keep below "
                "1 by more than rounding: raise --damping or use --dtype float64"
            )


def _gradients(layer: LayerStatistics) -> Float[Tensor, "K N P d_out"]:
    g = layer.output_gradients
    assert g is not None, "the method's fisher is never 'none'"
    return g
