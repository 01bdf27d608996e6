"""EKFAC: K-FAC's eigenbasis with measured second moments as scales (George et al. 2018, Algorithm 1).

Direction ``U_B [ (U_B' G U_A) / (S + damping) ] U_A'``, ``S = E[(U_B' G_n U_A)^2]`` over the samples of
one batch, ``G_n = sum_p g a'`` their gradients: the diagonal of ``U' F U``, so the best that this basis can
do (Theorem 2).

When S is measured depends on the Fisher:

- empirical (the paper's): at every update, from the rows of the very gradient that is preconditioned,
  in either order; ``order`` then decides about the basis alone.
- sampled, full: on observing steps, from the batch that is observed.

In both it is measured anew in every new basis, on the batch observed last: scales of an older basis
would void the theorem. No scales are averaged here; that is EKFAC-ra (ekfac_ra.py).

Deviations from Algorithm 1: the basis is recomputed at the end of each period of T updates, not at its
beginning; with ``ema`` above 0 the factors are running averages (the paper decomposes those of one batch).
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from kfbench.curvature.approximations import ScaledEigenbasis
from kfbench.curvature.averages import FactorAverages, joint_eigenbases
from kfbench.curvature.counts import LayerShape, eigh
from kfbench.curvature.eigenbasis import KroneckerEigenbasis, second_moments
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.linalg import factored_damping, warn_of_small_damping
from kfbench.curvature.statistics import LayerStatistics, Statistics
from kfbench.layers.estimate import Estimate
from kfbench.preconditioners.contract import FISHERS, Sharing

DAMPING_INITS = ("plain", "factors", "factors-pi")


class EKFAC:
    """Eigenvalue-corrected K-FAC with intra-batch scales."""

    orders = ("same", "independent")
    per_sample = True
    apply_remembers = False

    def __init__(
        self,
        ema: float = 0.95,
        fisher: str = "empirical",
        damping_init: str = "plain",
        stat_samples: int | None = None,
        sharing: str | None = None,
        spatial: str | None = None,
        input_groups: int | None = None,
    ) -> None:
        if fisher not in FISHERS:
            raise ValueError(f"fisher must be one of {', '.join(FISHERS)}, got {fisher!r}")
        if damping_init not in DAMPING_INITS:
            raise ValueError(f"damping_init must be one of {', '.join(DAMPING_INITS)}, got {damping_init!r}")
        self.fisher, self.damping_init = fisher, damping_init
        self.needs_rows = fisher == "empirical"
        self.estimate = Estimate.of(stat_samples, sharing, spatial, input_groups)
        self.A, self.B = FactorAverages(ema, self.estimate), FactorAverages(ema, self.estimate)
        self.bases: dict[str, KroneckerEigenbasis] = {}
        self.scales: dict[str, Tensor] = {}  # S, always in the basis that stands beside it
        self.damping: dict[str, Tensor] = {}  # what is added to S: a scalar, or [d_out, d_in]
        self._warned = False  # of a damping that is below rounding
        self._observed: Statistics | None = None  # until the refresh that follows in the same update
        self._sharing: Sharing | None = None

    def observe(self, statistics: Statistics) -> None:
        """Average in both factors; with labels other than the true ones, measure the scales."""
        self.A.add_inputs(statistics)
        self.B.add_output_gradients(statistics)
        self._observed = statistics
        # Before the first refresh there is no basis to measure in.
        if self.bases and not self.needs_rows:
            self.scales = self._whole(self._measured_scales(statistics))

    def refresh(self, damping: float) -> None:
        """New eigenbases, and the scales in them from the rows observed last; RuntimeError without any."""
        if self._observed is None:
            raise RuntimeError("EKFAC measures its scales on observed rows: observe a batch before each refresh")
        # The bases first: scales hold in the basis they were measured in alone.
        self._refresh_bases(damping)
        self.scales = self._whole(self._measured_scales(self._observed))
        self._observed = None  # a batch's rows are large, and each refresh wants its own

    def _refresh_bases(self, damping: float) -> None:
        # Freed first, so that no two generations are held at once.
        self.bases, self.scales, self.damping = {}, {}, {}
        self.bases = joint_eigenbases(self.B, self.A)
        self.damping = {name: _damping(basis, damping, self.damping_init) for name, basis in self.bases.items()}
        if not self._warned:
            largest = {name: basis.s_B.max() * basis.s_A.max() for name, basis in self.bases.items()}
            self._warned = warn_of_small_damping(damping, largest)

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """Directions [d_out, d_in]; with true labels the scales are measured first, on the gradient's rows."""
        if self.needs_rows and self._sharing is not None:
            self.scales |= self._whole(self._measured_scales({n: _as_statistics(G) for n, G in gradients.items()}))
            return {n: self._rescaled(n, self.bases[n].rotate(G)) for n, G in gradients.items()}
        return {name: self._direction(name, G) for name, G in gradients.items()}

    def _direction(self, name: str, G: LayerGradient) -> Tensor:
        rotated = self._rotated(name, G)
        if self.needs_rows and G.added is not None:  # which is in no row
            rotated += self.bases[name].rotate(LayerGradient.from_dense(G.added, G.samples))
        return self._rescaled(name, rotated)

    def _rescaled(self, name: str, rotated: Tensor) -> Tensor:
        return self.bases[name].rotate_back(rotated.div_(self.scales[name] + self.damping[name]))

    def _whole(self, scales: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of all processes' rows, where there are several."""
        if self._sharing is None:
            return scales
        return dict(zip(scales, self._sharing.means(list(scales.values())), strict=True))

    def _rotated(self, name: str, G: LayerGradient) -> Tensor:
        """``U_B' G U_A``, a new tensor; what is measured on the gradient is measured on the way."""
        basis = self.bases[name]
        if not self.needs_rows:
            return basis.rotate(G)
        if G.positions > 1:
            d_out, d_in = G.shape
            self.scales[name], rotated = basis.rotated_moments(G.parts(d_out * d_in), G.samples)
            return rotated
        g, a = G.per_sample()
        g, a = g @ basis.U_B, a @ basis.U_A
        self.scales[name] = second_moments(g[None], a)
        # The mean of rotated samples is the rotated gradient: the rows are rotated once for both.
        return LayerGradient(g.flatten(0, 1), a.flatten(0, 1), G.samples).dense()

    def _measured_scales(self, statistics: Statistics) -> dict[str, Tensor]:
        """S of every layer from observed rows, in the basis as it is now."""
        scales = {}
        for name, layer in statistics.items():
            basis = self.bases[name]
            if layer.positions > 1:
                numbers = len(basis.U_B) * len(basis.U_A)
                scales[name], _ = basis.rotated_moments(layer.parts(numbers), layer.samples)
                continue
            g = layer.output_gradients
            assert g is not None, "fisher is none of FISHERS"
            scales[name] = second_moments(g @ basis.U_B, layer.inputs @ basis.U_A)
        return scales

    def approximation(self, layer: str) -> ScaledEigenbasis | None:
        """``U diag(S) U'`` as it is now."""
        if layer not in self.bases:
            return None
        # A copy, since EKFAC-ra averages into its scales in place.
        return ScaledEigenbasis(self.bases[layer], self.scales[layer].clone())

    def multiply_adds(self, shape: LayerShape, vectors: int) -> dict[str, float]:
        """Both factors; eigenbases; rotation there and back; where they fall due, the scales."""
        d_out, d_in = shape.d_out, shape.d_in
        counts = without_scales(shape, vectors)
        scales = _scales_count(shape, vectors)
        counts["refresh"] += scales
        if not self.needs_rows:
            counts["statistics"] += scales
        else:  # the rows are rotated on both sides, whichever order were cheaper for the gradient alone
            counts["apply"] = scales + d_out * d_in * (d_out + d_in)
        return counts

    def over_processes(self, sharing: Sharing) -> None:
        """Eigenbases are divided; scales, of which each measures its own rows' mean, are joined."""
        self._sharing = sharing
        if sharing.placement is not None:
            self.A.place(sharing.placement)
            self.B.place(sharing.placement)

    def numbers_sent(self, shape: LayerShape) -> dict[str, int]:
        """Bases, and scales whenever they are measured: at every update with true labels, else with the factors."""
        scales = shape.d_out * shape.d_in
        measured = {"refresh": scales, "update" if self.needs_rows else "observe": scales}
        return {"handed on": shape.both_bases, **measured}

    def forget(self, names: Collection[str]) -> None:
        """Layers that are others now start anew."""
        self.A.forget(names)
        self.B.forget(names)
        self._observed = None
        for kept in (self.bases, self.scales, self.damping):
            for name in names:
                kept.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """Averages, bases, scales and damping; not the observed rows, which no update hands to the next."""
        return {
            "A": self.A.state_dict(),
            "B": self.B.state_dict(),
            "bases": {name: basis.state_dict() for name, basis in self.bases.items()},
            "scales": self.scales,
            "damping": self.damping,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        self.A.load_state_dict(state["A"])
        self.B.load_state_dict(state["B"])
        self.bases = {name: KroneckerEigenbasis(**basis) for name, basis in state["bases"].items()}
        self.scales, self.damping = dict(state["scales"]), dict(state["damping"])
        self._observed = None


def _as_statistics(G: LayerGradient) -> LayerStatistics:
    """The rows of a gradient, which are those of true labels."""
    return LayerStatistics(G.sample_rows(), G.output_gradients.view(1, G.samples, G.positions, -1))


def without_scales(shape: LayerShape, vectors: int) -> dict[str, float]:
    """Multiply-adds of one layer, but for its scales: factors, eigenbases, rotation there and back."""
    d_out, d_in = shape.d_out, shape.d_in
    return {
        "statistics": shape.input_factor + shape.output_factor(vectors),
        "refresh": eigh(d_in) + eigh(d_out),
        "apply": shape.without_blocks.right_side + shape.left_side + d_out * d_in * (d_out + d_in),
    }


def _scales_count(shape: LayerShape, vectors: int) -> float:
    """Each side on the rows of a sample or on its gradient, whichever is chosen, and the gradient itself."""
    d_out, d_in, P = shape.d_out, shape.d_in, shape.positions
    right = d_in**2 * (P if d_out > P else vectors * d_out)
    left = vectors * min(P, d_in) * d_out**2
    return float(shape.rows // P * (right + left) + vectors * shape.product)


def _damping(basis: KroneckerEigenbasis, damping: float, init: str) -> Tensor:
    """What is added to S (appendix C): lambda, or what damping both factors adds to ``s_B s_A'``.

    plain: lambda. factors: ``lambda + lambda_B s_A[j] + lambda_A s_B[i]`` with both the root of lambda, as
    printed. factors-pi: with K-FAC's lambda_A and lambda_B, so that ``S = s_B s_A'`` would give exactly
    K-FAC with heuristic damping.
    """
    s_A, s_B = basis.s_A, basis.s_B
    if init == "plain":
        return s_A.new_tensor(damping)
    lambda_A = lambda_B = s_A.new_tensor(damping).sqrt()
    if init == "factors-pi":
        lambda_A, lambda_B = factored_damping(damping, s_A.sum(), len(s_A), s_B.sum(), len(s_B))
    return damping + lambda_B * s_A + (lambda_A * s_B)[:, None]
