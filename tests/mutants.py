"""Methods with one mistake each, of the kinds seen in published code: every one must be caught."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.linalg import damped_inverses
from kfbench.curvature.statistics import LayerStatistics, Statistics
from kfbench.preconditioners.foof import FOOF
from kfbench.preconditioners.gn_cg import GaussNewtonCG
from kfbench.preconditioners.kfac import KFAC
from kfbench.preconditioners.natural import NaturalGradient


class TransposedBasis(KFAC):
    """Standard damping with the left eigenbasis transposed, as in the FOOF paper's released code."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        for basis in self.bases.values():
            basis["U_B"] = basis["U_B"].T.contiguous()


class TransposedRightBasis(KFAC):
    """The same mistake on the other side."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        for basis in self.bases.values():
            basis["U_A"] = basis["U_A"].T.contiguous()


class SwappedDamping(KFAC):
    """lambda_A and lambda_B change places."""

    def _refresh_inverses(self, damping: float) -> None:
        self.A, self.B = self.B, self.A
        super()._refresh_inverses(damping)
        self.A, self.B = self.B, self.A
        swapped = {}
        for name, A in self.A.means.items():
            B = self.B.means[name]
            pi = (A.trace() / len(A) / (B.trace() / len(B))).sqrt()
            left, _ = damped_inverses({name: B}, {name: pi * damping**0.5})
            right, _ = damped_inverses({name: A}, {name: damping**0.5 / pi})
            swapped[name] = (left[name], right[name])
        self.inverses = swapped


class SwappedFactors(KFAC):
    """Each side is preconditioned by the other side's eigenvalues."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        for basis in self.bases.values():
            basis["denominator"] = basis["denominator"].flip(0, 1)


class MissingBatchSize(FOOF):
    """A is a sum over samples where it should be a mean."""

    def observe(self, statistics: Statistics) -> None:
        super().observe({n: LayerStatistics(s.inputs * len(s.inputs) ** 0.5) for n, s in statistics.items()})


class SummedOutputGradients(KFAC):
    """B is a sum over samples while A is a mean."""

    def observe(self, statistics: Statistics) -> None:
        self.A.add_inputs(statistics)
        for name, s in statistics.items():
            self.B.add(name, s.output_gradients, divisor=s.output_gradients.shape[2])


class MonteCarloTooSmall(KFAC):
    """B is divided by the number of backpropagated vectors."""

    def observe(self, statistics: Statistics) -> None:
        self.A.add_inputs(statistics)
        for name, s in statistics.items():
            k, n, p, _ = s.output_gradients.shape
            self.B.add(name, s.output_gradients, divisor=k * n * p * 2)


class StaleFactor(FOOF):
    """The second and all later refreshes are forgotten."""

    def refresh(self, damping: float) -> None:
        if not self.inverses:
            super().refresh(damping)


class EagerRefresh(FOOF):
    """Every observation refreshes, whatever the schedule says."""

    def refresh(self, damping: float) -> None:
        self._damping = damping
        super().refresh(damping)

    def observe(self, statistics: Statistics) -> None:
        super().observe(statistics)
        if hasattr(self, "_damping"):
            super().refresh(self._damping)


class NoOp(FOOF):
    """The plain gradient: an override that is never reached."""

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        return {name: G.dense() for name, G in gradients.items()}


class UncorrectedAverage(FOOF):
    """The average starts at the identity and is never corrected for it."""

    def observe(self, statistics: Statistics) -> None:
        for name, s in statistics.items():
            if name not in self.A.means:
                d = s.inputs.shape[-1]
                self.A.means[name] = torch.eye(d, dtype=s.inputs.dtype)
                self.A._weights[name] = 1.0
        super().observe(statistics)


class ForgottenBias(FOOF):
    """The column of ones is left out of the factor."""

    def observe(self, statistics: Statistics) -> None:
        cut = {}
        for name, s in statistics.items():
            inputs = s.inputs.clone()
            inputs[..., -1] = 0
            cut[name] = LayerStatistics(inputs)
        super().observe(cut)


class WrongSide(FOOF):
    """The damped inverse multiplies once more than it should."""

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        once = super().apply(gradients)
        return {name: self.inverses[name](direction) for name, direction in once.items()}


class ForgetfulState(FOOF):
    """state_dict leaves the averages' weights out."""

    def state_dict(self) -> dict:
        state = super().state_dict()
        return state | {"A": {"means": state["A"]["means"], "weights": {}}}


class LambdaOfASum(NaturalGradient):
    """lambda is added to ``U U'`` as if F were a sum over points."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping / self.newest.refresh().points)
        self.damping = damping


class SummedFisher(NaturalGradient):
    """F is a sum over points where it should be a mean."""

    def observe(self, statistics: Statistics) -> None:
        super().observe(
            {n: LayerStatistics(s.inputs, s.output_gradients * len(s.inputs) ** 0.5) for n, s in statistics.items()}
        )


class StaleFisher(NaturalGradient):
    """Every refresh after the first uses the points before the newest."""

    def observe(self, statistics: Statistics) -> None:
        super().observe(getattr(self, "_before", statistics))
        self._before = statistics


class StaleSystem(NaturalGradient):
    """New rows meet the factor of older ones."""

    def refresh(self, damping: float) -> None:
        old = self.inverses
        super().refresh(damping)
        for block, inverse in old.items():
            if inverse._cholesky.shape == self.inverses[block]._cholesky.shape:
                self.inverses[block] = inverse


class TransposedRows(NaturalGradient):
    """The solution is read with points and vectors swapped."""

    def _solve_gram(self, u: Mapping[str, Tensor]) -> dict[str, Tensor]:
        n = self.newest.rows.points
        return {block: w.view(-1, n).T.flatten() for block, w in super()._solve_gram(u).items()}


class UncoupledLayers(NaturalGradient):
    """One Gram matrix a layer stands for the whole network."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options | {"block_diagonal": True})


class CoupledLayers(NaturalGradient):
    """One Gram matrix of the whole network stands for every layer's own."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options | {"block_diagonal": False})


class NaturalForgetsItsDamping(NaturalGradient):
    """The direction is not divided by lambda."""

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        return {name: direction * self.damping for name, direction in super().apply(gradients).items()}


class ForgottenDamping(NaturalGradient):
    """state_dict leaves out by what the direction is divided."""

    def state_dict(self) -> dict:
        return super().state_dict() | {"damping": 1.0}


class UndampedGaussNewton(GaussNewtonCG):
    """lambda never reaches the solve."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        self.damping = 0.0


class UnconvergedGaussNewton(GaussNewtonCG):
    """It stops far too early."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options | {"tolerance": 1e-3})


class StaleGaussNewton(GaussNewtonCG):
    """Rows are never renewed."""

    def observe(self, statistics: Statistics) -> None:
        if self.damping == 0:
            super().observe(statistics)


class RowsTakenEarly(GaussNewtonCG):
    """Rows are in force when they are observed, not when they are refreshed."""

    def observe(self, statistics: Statistics) -> None:
        super().observe(statistics)
        self.newest.refresh()


class GaussNewtonForgetsItsStart(GaussNewtonCG):
    """state_dict leaves out where the next solve begins, so a continued run differs in its last bits."""

    def state_dict(self) -> dict:
        return super().state_dict() | {"solutions": {}}


# mutant -> the row of cases.METHODS that it pretends to be.
MUTANTS: dict[type, str] = {
    TransposedBasis: "kfac-standard-full",
    TransposedRightBasis: "kfac-standard-full",
    SwappedDamping: "kfac-heuristic-full",
    SwappedFactors: "kfac-standard-sampled",
    MissingBatchSize: "foof",
    SummedOutputGradients: "kfac-heuristic-sampled",
    MonteCarloTooSmall: "kfac-heuristic-sampled",
    StaleFactor: "foof",
    EagerRefresh: "foof",
    NoOp: "foof",
    UncorrectedAverage: "foof",
    ForgottenBias: "foof",
    WrongSide: "foof",
    ForgetfulState: "foof",
    LambdaOfASum: "natural-sampled",
    SummedFisher: "natural-full",
    StaleFisher: "natural-sampled",
    StaleSystem: "natural-empirical",
    TransposedRows: "natural-full",
    UncoupledLayers: "natural-full",
    CoupledLayers: "natural-sampled-block",
    NaturalForgetsItsDamping: "natural-empirical-block",
    ForgottenDamping: "natural-sampled",
    UndampedGaussNewton: "gn-cg",
    UnconvergedGaussNewton: "gn-cg-block",
    StaleGaussNewton: "gn-cg",
    RowsTakenEarly: "gn-cg",
    GaussNewtonForgetsItsStart: "gn-cg",
}
