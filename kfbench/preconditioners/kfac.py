"""K-FAC: block-diagonal, Kronecker-factored Fisher (Martens & Grosse 2015; KFC: Grosse & Martens 2016).

The factors are A and B of ``curvature/statistics.py``; the layer's block of the Fisher is
approximated by ``B (x) A`` (row-major vec). How lambda enters is the damping kind:

- heuristic: ``(B + lambda_B I)^-1 G (A + lambda_A I)^-1`` with ``lambda_A lambda_B = lambda`` and
  ``lambda_A / lambda_B = (tr A / d_in) / (tr B / d_out)`` (Martens & Grosse E.3; Benzing 2022, eq 2);
  lambda is the square of Martens & Grosse's gamma.
- standard: ``(B (x) A + lambda I)^-1 vec G``, through eigenbases of both factors.
- standard-as-released: what Benzing's released code computes in its place, with two bases
  transposed. Not a method: kept to re-test the claim that rests on it (its Figure 3A). It depends
  on the signs of eigenvectors, which are LAPACK's choice, so it is not portable across machines.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from kfbench.curvature.approximations import KroneckerProduct
from kfbench.curvature.averages import FactorAverages, Inverse, inverse_from_state, joint_eigenbases
from kfbench.curvature.counts import LayerShape, cholesky, eigh, triangle
from kfbench.curvature.eigenbasis import KroneckerEigenbasis
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.linalg import factored_damping, warn_of_small_damping
from kfbench.curvature.statistics import Statistics
from kfbench.layers.estimate import Estimate
from kfbench.preconditioners.contract import FISHERS, Sharing

DAMPING_KINDS = ("heuristic", "standard", "standard-as-released")


class KFAC:
    """K-FAC with the Fisher of sampled labels, of all labels (full), or of the true ones (empirical)."""

    orders = ("independent", "same")
    apply_remembers = False
    moments_only = True
    approximation_of_refresh = True

    def __init__(
        self,
        ema: float = 0.95,
        damping_kind: str = "heuristic",
        fisher: str = "sampled",
        stat_samples: int | None = None,
        sharing: str | None = None,
        spatial: str | None = None,
        input_groups: int | None = None,
    ) -> None:
        if damping_kind not in DAMPING_KINDS:
            raise ValueError(f"damping_kind must be one of {', '.join(DAMPING_KINDS)}, got {damping_kind!r}")
        if fisher not in FISHERS:
            raise ValueError(f"fisher must be one of {', '.join(FISHERS)}, got {fisher!r}")
        self.fisher, self.damping_kind = fisher, damping_kind
        self.estimate = Estimate.of(stat_samples, sharing, spatial, input_groups)
        self.A, self.B = FactorAverages(ema, self.estimate), FactorAverages(ema, self.estimate)
        self.damping_retries = 0
        self._warned = False  # of a damping that is below rounding
        # After a refresh either the inverses are filled or the bases, by damping kind.
        self.inverses: dict[str, tuple[Inverse, Inverse]] = {}
        self.bases: dict[str, KroneckerEigenbasis] = {}
        self.denominators: dict[str, Tensor] = {}  # s_B s_A' + lambda, of the bases

    def observe(self, statistics: Statistics) -> None:
        """Average in both factors of every layer."""
        self.A.add_inputs(statistics)
        self.B.add_output_gradients(statistics)

    def refresh(self, damping: float) -> None:
        """Inverses of the damped factors, or eigenbases of the factors."""
        # Freed first, so that no two generations are held at once.
        self.inverses, self.bases, self.denominators = {}, {}, {}
        if self.damping_kind == "heuristic":
            self._refresh_inverses(damping)
        else:
            self.bases = joint_eigenbases(self.B, self.A)
            self.denominators = {n: basis.eigenvalues().add_(damping) for n, basis in self.bases.items()}
            if not self._warned:
                largest = {n: basis.s_B.max() * basis.s_A.max() for n, basis in self.bases.items()}
                self._warned = warn_of_small_damping(damping, largest)

    def heuristic_damping(self, damping: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(lambda_A, lambda_B) of every layer, scalars, from the averages as they are now."""
        # Traces stay tensors: as numbers they would cost a synchronisation a layer.
        lambda_A, lambda_B = {}, {}
        A, B = self.A.means, self.B.means
        for name in A:
            traces = A.trace(name), A.width(name), B.trace(name), B.width(name)
            lambda_A[name], lambda_B[name] = factored_damping(damping, *traces)
        return lambda_A, lambda_B

    def _refresh_inverses(self, damping: float) -> None:
        lambda_A, lambda_B = self.heuristic_damping(damping)
        left, retried_B = self.B.damped_inverses(lambda_B)
        right, retried_A = self.A.damped_inverses(lambda_A)
        self.inverses = {name: (left[name], right[name]) for name in right}
        self.damping_retries += len(retried_A) + len(retried_B)

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """Directions [d_out, d_in]."""
        if self.damping_kind == "heuristic":
            return {name: G.transform(*self.inverses[name]) for name, G in gradients.items()}
        rotate = _as_released if self.damping_kind == "standard-as-released" else _standard
        return {name: rotate(G, self.bases[name], self.denominators[name]) for name, G in gradients.items()}

    def approximation(self, layer: str) -> KroneckerProduct | None:
        """``B (x) A`` as the averages are now; they go on after the refresh that it is in force from."""
        if layer not in self.A.means:
            return None
        return KroneckerProduct(self.B.means[layer].clone(), self.A.means[layer].clone())

    def multiply_adds(self, shape: LayerShape, vectors: int) -> dict[str, float]:
        """Both factors; their Cholesky factors or eigenbases; both sides, and for a basis the rotation back."""
        d_out, d_in = shape.d_out, shape.d_in
        heuristic = self.damping_kind == "heuristic"
        rotation_back = 0 if heuristic else d_out * d_in * (d_out + d_in)
        return {
            "statistics": shape.input_factor + shape.output_factor(vectors),
            "refresh": shape.input_cholesky + cholesky(d_out) if heuristic else eigh(d_in) + eigh(d_out),
            "apply": (shape if heuristic else shape.without_blocks).right_side + shape.left_side + rotation_back,
        }

    def over_processes(self, sharing: Sharing) -> None:
        """Cholesky factors or eigenbases of both factors are divided."""
        if sharing.placement is not None:
            self.A.place(sharing.placement)
            self.B.place(sharing.placement)

    def numbers_sent(self, shape: LayerShape) -> dict[str, int]:
        """Those of both Cholesky factors, or of both bases and their eigenvalues."""
        heuristic = self.damping_kind == "heuristic"
        return {"handed on": shape.input_triangles + triangle(shape.d_out) + 1 if heuristic else shape.both_bases}

    def forget(self, names: Collection[str]) -> None:
        """Layers that are others now start anew."""
        self.A.forget(names)
        self.B.forget(names)
        for kept in (self.inverses, self.bases, self.denominators):
            for name in names:
                kept.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """Averages, inverses or bases, and the count of retries."""
        inverses = {n: [left.state_dict(), right.state_dict()] for n, (left, right) in self.inverses.items()}
        bases = {name: basis.state_dict() for name, basis in self.bases.items()}
        state = {"A": self.A.state_dict(), "B": self.B.state_dict(), "inverses": inverses, "bases": bases}
        return state | {"denominators": self.denominators, "damping_retries": self.damping_retries}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        self.A.load_state_dict(state["A"])
        self.B.load_state_dict(state["B"])
        self.inverses = {
            name: (inverse_from_state(left), inverse_from_state(right))
            for name, (left, right) in state["inverses"].items()
        }
        self.bases = {name: KroneckerEigenbasis(**basis) for name, basis in state["bases"].items()}
        self.denominators = dict(state["denominators"])
        self.damping_retries = state["damping_retries"]


def _standard(G: LayerGradient, basis: KroneckerEigenbasis, denominator: Tensor) -> Tensor:
    """``U_B [ (U_B' G U_A) / denominator ] U_A'``."""
    return basis.rotate_back(basis.rotate(G) / denominator)


def _as_released(G: LayerGradient, basis: KroneckerEigenbasis, denominator: Tensor) -> Tensor:
    """``U_B' [ (U_B G U_A) / denominator ] U_A'``: the two left factors are transposed, as released."""
    return _standard(G, replace(basis, U_B=basis.U_B.T), denominator)
