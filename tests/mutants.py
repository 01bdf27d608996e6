"""Methods with one mistake each, of the kinds seen in published code: every one must be caught."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from kfbench.curvature.averages import FactorAverages
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.linalg import damped_inverses, damped_power
from kfbench.curvature.recursion import Link, recursion
from kfbench.curvature.statistics import LayerStatistics, Statistics
from kfbench.layers.convolution_layer import ConvolutionLayer
from kfbench.layers.embedding_layer import Counts, EmbeddingLayer
from kfbench.layers.estimate import Estimate
from kfbench.layers.moments import Form, MeasuredMoment, Moment, MomentOfPairs, MomentOfRows
from kfbench.layers.shifts import Shifts
from kfbench.preconditioners.ekfac import EKFAC
from kfbench.preconditioners.ekfac_ra import EKFACRA
from kfbench.preconditioners.foof import FOOF
from kfbench.preconditioners.foof_centred import CentredFOOF
from kfbench.preconditioners.foof_kfac_damping import FOOFWithKFACDamping
from kfbench.preconditioners.foof_per_sample import PerSampleFOOF
from kfbench.preconditioners.from_gradients.gradient_factors import GradientFactors, RunningMean
from kfbench.preconditioners.from_gradients.muon import Muon
from kfbench.preconditioners.from_gradients.shampoo import Shampoo
from kfbench.preconditioners.from_gradients.soap import SOAP
from kfbench.preconditioners.gn_cg import GaussNewtonCG
from kfbench.preconditioners.kfac import KFAC
from kfbench.preconditioners.kfac_tridiagonal import Coupling, TridiagonalKFAC
from kfbench.preconditioners.kflr import KFLR
from kfbench.preconditioners.kfra import KFRA
from kfbench.preconditioners.natural import NaturalGradient


class TransposedBasis(KFAC):
    """Standard damping with the left eigenbasis transposed, as in the FOOF paper's released code."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        self.bases = {name: replace(basis, U_B=basis.U_B.T) for name, basis in self.bases.items()}


class TransposedRightBasis(KFAC):
    """The same mistake on the other side."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        self.bases = {name: replace(basis, U_A=basis.U_A.T) for name, basis in self.bases.items()}


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
        self.denominators = {name: denominator.flip(0, 1) for name, denominator in self.denominators.items()}


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


class MissingPositions(KFAC):
    """B is summed over positions where it should be a mean."""

    def observe(self, statistics: Statistics) -> None:
        self.A.add_inputs(statistics)
        for name, s in statistics.items():
            self.B.add(name, s.output_gradients, divisor=s.output_gradients.shape[1])


class SwappedPositions(EKFAC):
    """Rows of inputs and of output gradients go through positions in opposite orders."""

    def observe(self, statistics: Statistics) -> None:
        super().observe(
            {
                n: LayerStatistics(s.inputs.flip(1), s.output_gradients, s.has_bias)  # factors stay as they are
                for n, s in statistics.items()
            }
        )


class UncoupledChain(TridiagonalKFAC):
    """K-FAC: the layers do not know each other."""

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        return self.kfac.apply(gradients)


class ForgottenWayBack(TridiagonalKFAC):
    """No layer is told what the one before it has taken."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        self.couplings = {name: _AlwaysAlone(**vars(coupling)) for name, coupling in self.couplings.items()}


class _AlwaysAlone(Coupling):
    def following(self, S: Tensor) -> Tensor:
        return torch.zeros(len(self.W_B), len(self.W_A), dtype=S.dtype)


class WayBackBeforeTheDivision(TridiagonalKFAC):
    """The one behind is told what has not been divided by 1 - s_B s_A' yet."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        self.couplings = {name: _ToldEarly(**vars(coupling)) for name, coupling in self.couplings.items()}


class _ToldEarly(Coupling):
    def following(self, S: Tensor) -> Tensor:
        return super().following(S * self.denominator)


class UndampedCorrelations(TridiagonalKFAC):
    """s_A and s_B are those of the factors before damping."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        for name, following in pairwise(self.kfac.A.means):
            s = []
            for own, across in ((self.kfac.B, self.across_B), (self.kfac.A, self.across_A)):
                # The eigenvectors hardly matter here: what is wrong is how large the eigenvalues are.
                root = torch.linalg.pinv(own.means[name], rtol=1e-6)
                X = across.means[name]
                product = root @ X @ torch.linalg.pinv(own.means[following], rtol=1e-6) @ X.T
                s.append(torch.linalg.eigvals(product).real.sort().values.clamp(0, 0.9))
            self.couplings[name] = replace(self.couplings[name], denominator=1 - torch.outer(*s))


class OwnDampingForTheNext(TridiagonalKFAC):
    """The next layer's factors are taken without damping where they stand between two across."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        for name, following in pairwise(self.kfac.A.means):
            A, X = self.kfac.A.means[following], self.across_A.means[name]
            W_A = torch.linalg.solve(A + 1e-3 * torch.eye(len(A), dtype=A.dtype), X.T) @ self.couplings[name].K_A
            self.couplings[name] = replace(self.couplings[name], W_A=W_A)


class OtherSamplesAcross(TridiagonalKFAC):
    """The factors across two layers pair one sample's rows with another's."""

    def observe(self, statistics: Statistics) -> None:
        self.kfac.observe(statistics)
        for (name, own), (_, other) in pairwise(statistics.items()):
            a, g = other.inputs.roll(1, 0), other.output_gradients.roll(1, 1)
            self.across_A.add_moment(name, MomentOfPairs(own.inputs, a), own.samples)
            self.across_B.add_moment(name, MomentOfPairs(own.output_gradients, g), own.samples)


class OtherLabelsAcross(TridiagonalKFAC):
    """The output gradients of two layers are of different draws of labels: every second one of the other sign."""

    def observe(self, statistics: Statistics) -> None:
        super().observe(statistics)
        for (name, own), (_, other) in pairwise(statistics.items()):
            g = other.output_gradients.clone()
            g[:, ::2] *= -1
            self.across_B.forget([name])
            self.across_B.add_moment(name, MomentOfPairs(own.output_gradients, g), own.samples)


class NewestAcross(TridiagonalKFAC):
    """Factors across two layers are of the newest batch, while those of the layers are averages."""

    def observe(self, statistics: Statistics) -> None:
        for across in (self.across_A, self.across_B):
            across.forget(list(across.means))
        super().observe(statistics)


class StaleCouplings(TridiagonalKFAC):
    """What couples layers stays that of the first refresh."""

    def refresh(self, damping: float) -> None:
        first = self.couplings
        super().refresh(damping)
        self.couplings = first or self.couplings


class ForgetfulChain(TridiagonalKFAC):
    """The averages across layers are not part of the state."""

    def load_state_dict(self, state: dict) -> None:
        empty = FactorAverages(0.95).state_dict()
        super().load_state_dict(state | {"across_A": empty, "across_B": empty})


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


class PrintedSides(KFLR):
    """Each factor on the other side, as Algorithm 1 is printed; what does not fit there is left as it was."""

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        return {name: self._swapped(name, G.dense()) for name, G in gradients.items()}

    def _swapped(self, name: str, G: Tensor) -> Tensor:
        left, right = (inverse(torch.eye(d).to(G)) for inverse, d in zip(self.inverses[name], G.shape, strict=True))
        d, G = min(G.shape), G.clone()
        G[:d, :d] = right[:d, :d] @ G[:d, :d] @ left[:d, :d]
        return G


class DampingOfTheWrongRoot(KFLR):
    """k = sqrt(gamma) + eta, as Algorithm 1 is printed, with lambda = gamma + eta in equal parts."""

    def refresh(self, damping: float) -> None:
        super().refresh(((damping / 2) ** 0.5 + damping / 2) ** 2)


class WholeDampingOnBoth(KFLR):
    """lambda itself on both sides, not its root."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping**2)


class SummedHessians(KFLR):
    """B is not divided by N."""

    def observe(self, statistics: Statistics) -> None:
        self.A.add_inputs(statistics)
        for name, s in statistics.items():
            self.B.add_moment(name, s.output_moment(), 1)


class ColumnsTooLong(KFLR):
    """The random combinations are not divided by sqrt(k)."""

    def observe(self, statistics: Statistics) -> None:
        self.A.add_inputs(statistics)
        for name, s in statistics.items():
            longer = MeasuredMoment(s.output_moment().add_to(None, 0.0, self.fisher_columns))
            self.B.add_moment(name, longer, s.counted_rows(self.estimate))


class _MutantLinks(KFRA):
    """Whatever leads from layer to layer is changed before the recursion."""

    def observe(self, statistics: Statistics) -> None:
        self.A.add_inputs(statistics)
        for name, B in recursion(self.changed({name: s.link for name, s in statistics.items()})).items():
            self.B.add_moment(name, MeasuredMoment(B), 1)

    def changed(self, links: dict[str, Link]) -> dict[str, Link]:
        raise NotImplementedError


class SlopesOfAnotherLayer(_MutantLinks):
    """phi is that of the layer before, as far as there is one of that width."""

    def changed(self, links: dict[str, Link]) -> dict[str, Link]:
        found, before = {}, None
        for name, link in links.items():
            slopes = link.slopes.clone()
            if before is not None:
                d = min(before.shape[1], slopes.shape[1])
                slopes[:, :d] = before[:, :d]
            else:
                slopes = slopes.roll(1, dims=1)
            found[name], before = replace(link, slopes=slopes), link.slopes
        return found


class MeanSlopes(_MutantLinks):
    """The outer product of mean slopes in place of the mean outer product."""

    def changed(self, links: dict[str, Link]) -> dict[str, Link]:
        return {n: replace(k, slopes=k.slopes.mean(0).expand_as(k.slopes).contiguous()) for n, k in links.items()}


class SummedSlopes(_MutantLinks):
    """phi' phi is not divided by N."""

    def changed(self, links: dict[str, Link]) -> dict[str, Link]:
        N = {name: len(link.slopes) for name, link in links.items()}
        return {n: k if k.onward is None else replace(k, slopes=k.slopes * N[n] ** 0.5) for n, k in links.items()}


class SummedLastHessians(_MutantLinks):
    """B of the last layer is not divided by N, and so none is."""

    def changed(self, links: dict[str, Link]) -> dict[str, Link]:
        return {
            name: link if link.hessian is None else replace(link, hessian=link.hessian * len(link.slopes))
            for name, link in links.items()
        }


class RecursionOfMicroBatches(KFRA):
    """Each micro-batch has a recursion of its own, whose B are averaged."""

    def observe(self, statistics: Statistics) -> None:
        self.A.add_inputs(statistics)
        parts = list(zip(*(getattr(s, "_parts", [s]) for s in statistics.values()), strict=True))
        sums = dict.fromkeys(statistics, 0)
        for part in parts:
            for name, B in recursion({n: s.link for n, s in zip(statistics, part, strict=True)}).items():
                sums[name] = sums[name] + B * part[0].samples
        for name, total in sums.items():
            self.B.add_moment(name, MeasuredMoment(total), statistics[name].samples)


class TransposedScales(EKFAC):
    """Scales measured in the transposed basis, as one published EKFAC does."""

    def _measured_scales(self, statistics: Statistics) -> dict[str, Tensor]:
        right, transposed = self.bases, {n: replace(basis, U_A=basis.U_A.T) for n, basis in self.bases.items()}
        self.bases = transposed
        scales = super()._measured_scales(statistics)
        self.bases = right
        return scales


class StaleScales(EKFAC):
    """Scales of the old basis stay when the basis changes."""

    def refresh(self, damping: float) -> None:
        old = self.scales
        super().refresh(damping)
        self.scales = old or self.scales


class EarlierScales(EKFAC):
    """With true labels, scales from the last observed batch, not from the gradient's own rows."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.needs_rows = False


class UnobservedScales(EKFAC):
    """With sampled labels, scales measured at refreshes alone."""

    def observe(self, statistics: Statistics) -> None:
        bases, self.bases = self.bases, {}
        super().observe(statistics)
        self.bases = bases


class SummedScales(EKFAC):
    """Scales without 1/N."""

    def _rotated(self, name: str, G: LayerGradient) -> Tensor:
        rotated = super()._rotated(name, G)
        self.scales[name] *= G.samples
        return rotated


class ScalesOfTheMean(EKFAC):
    """The square of the mean gradient in place of the mean of squares."""

    def _rotated(self, name: str, G: LayerGradient) -> Tensor:
        rotated = super()._rotated(name, G)
        self.scales[name] = rotated.square()
        return rotated


class ScalesOfPositions(EKFAC):
    """Every position counts as a sample: squares are summed over them, not sums squared."""

    def _rotated(self, name: str, G: LayerGradient) -> Tensor:
        rotated, basis = super()._rotated(name, G), self.bases[name]
        g, a = G.output_gradients @ basis.U_B, G.inputs @ basis.U_A
        self.scales[name] = g.square().T @ a.square() / G.samples
        return rotated


class UncorrectedEigenvalues(EKFAC):
    """Its scales are never used: K-FAC with standard damping."""

    def _rotated(self, name: str, G: LayerGradient) -> Tensor:
        rotated = super()._rotated(name, G)
        self.scales[name] = self.bases[name].eigenvalues()
        return rotated


class NeverRotatedBack(EKFAC):
    """The direction stays in the eigenbasis."""

    def _direction(self, name: str, G: LayerGradient) -> Tensor:
        return self._rotated(name, G) / (self.scales[name] + self.damping[name])


class SwappedFactorDamping(EKFAC):
    """Appendix C with lambda_A beside s_A and lambda_B beside s_B."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        for name, basis in self.bases.items():
            pi = (basis.s_A.mean() / basis.s_B.mean()).sqrt()
            shift = pi * basis.s_A + (basis.s_B / pi)[:, None]
            self.damping[name] = damping + damping**0.5 * shift


class UnweightedFactorDamping(EKFAC):
    """Appendix C without its lambda itself."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        self.damping = {name: shift - damping for name, shift in self.damping.items()}


class RunningAverageWithoutN(EKFACRA):
    """Squared means that are not scaled to second moments."""

    def _rotated(self, name: str, G: LayerGradient) -> Tensor:
        return super()._rotated(name, LayerGradient.from_dense(G.dense(), 1))


class RunningAverageKept(EKFACRA):
    """The average of the old basis goes on in the new one."""

    def refresh(self, damping: float) -> None:
        old = self.scales
        super().refresh(damping)
        self.scales = old or self.scales


class RunningAverageLate(EKFACRA):
    """The average takes in a gradient only after it was used."""

    def _rotated(self, name: str, G: LayerGradient) -> Tensor:
        before = self.scales[name].clone()
        rotated = super()._rotated(name, G)
        self._after, self.scales[name] = self.scales[name], before
        return rotated


class MultipliedByLambdaB(FOOFWithKFACDamping):
    """lambda_B multiplies where it should divide."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        self.lambda_B = {name: 1 / lambda_B for name, lambda_B in self.lambda_B.items()}


class PlainFOOFDamping(FOOFWithKFACDamping):
    """lambda itself on A, not K-FAC's part of it."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        right, _ = damped_inverses(self.kfac.A.means, dict.fromkeys(self.kfac.A.means, damping))
        self.kfac.inverses = {name: (left, right[name]) for name, (left, _) in self.kfac.inverses.items()}


class NormOfTheNetwork(FOOFWithKFACDamping):
    """One norm for all layers."""

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        own = {name: G.transform(right=self.kfac.inverses[name][1]) for name, G in gradients.items()}
        norms = [sum(d.square().sum() for d in found.values()).sqrt() for found in (self.kfac.apply(gradients), own)]
        return {name: direction * norms[0] / norms[1] for name, direction in own.items()}


class CentredBiasToo(CentredFOOF):
    """The gradient is not centred and the bias's column passes as it is: centring forgets the bias."""

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        return {name: self._forgetting(name, G.dense()) for name, G in gradients.items()}

    def _forgetting(self, name: str, G: Tensor) -> Tensor:
        if not self.biased[name]:
            return self.inverses[name](G)
        return torch.cat([self.inverses[name](G[:, :-1]), G[:, -1:]], dim=1)


class NotCentred(CentredFOOF):
    """A layer without a bias keeps its mean: plain FOOF."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        for name, biased in self.biased.items():
            if not biased:
                M = self.A.means[name][:-1, :-1]
                self.inverses.update(damped_inverses({name: M}, {name: damping})[0])


class NewestCentre(CentredFOOF):
    """The mean of the newest batch beside averaged second moments."""

    def observe(self, statistics: Statistics) -> None:
        super().observe(statistics)
        for name, s in statistics.items():
            d = s.inputs.shape[2] - s.has_bias
            mean = s.inputs.sum(1).mean(0)[:d]
            self.A.means[name][-1, :d] = mean
            self.A.means[name][:d, -1] = mean


class WholeBatchDamping(PerSampleFOOF):
    """The factor of the whole batch in place of each sample's own: FOOF."""

    def _direction(self, G: LayerGradient) -> Tensor:
        A = G.inputs.T @ G.inputs / G.samples
        return G.transform(right=damped_inverses({"": A}, {"": self.damping})[0][""])


class PositionsAlone(PerSampleFOOF):
    """Each position is damped alone, not each sample."""

    def _direction(self, G: LayerGradient) -> Tensor:
        weighted = G.inputs / (G.inputs.square().sum(1, keepdim=True) + self.damping)
        return LayerGradient(G.output_gradients, weighted, G.samples).dense()


class SummedSamples(PerSampleFOOF):
    """The samples' updates are summed, not averaged."""

    def _direction(self, G: LayerGradient) -> Tensor:
        return super()._direction(G) * G.samples


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


class FactorsOfTheOtherSide(Shampoo):
    """The root of R multiplies from where L should: through its own gradient, so that shapes fit."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        self.left = {name: damped_power(M, damping, -2 * self.exponent) for name, M in self.factors.left.items()}
        self.right = {name: torch.eye(len(M), dtype=M.dtype) for name, M in self.factors.right.items()}


class ExponentOfOneSide(Shampoo):
    """1/2 on both sides where it should be 1/4."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        for roots in (self.left, self.right):
            roots |= {name: root @ root for name, root in roots.items()}


class DampingAfterTheRoot(Shampoo):
    """lambda is added to the root, not to the factor."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        for roots, factors in ((self.left, self.factors.left), (self.right, self.factors.right)):
            for name, M in factors.items():
                root = damped_power(M, 0.0, self.exponent)
                roots[name] = torch.linalg.inv(root + damping * torch.eye(len(M), dtype=M.dtype))


class PerSampleFactors(Shampoo):
    """Factors of N times the outer product."""

    def observe(self, gradients: Mapping[str, LayerGradient]) -> None:
        super().observe({n: LayerGradient.from_dense(G.dense() * G.samples**0.5, 1) for n, G in gradients.items()})


class UncorrectedFactors(Shampoo):
    """The average begins at zero, and is not divided by its weight."""

    def observe(self, gradients: Mapping[str, LayerGradient]) -> None:
        for name in gradients:
            self.factors._weights.setdefault(name, 1.0)
        super().observe(gradients)


class FreshRoots(Shampoo):
    """Roots are of factors as they are, not as they were at the refresh."""

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        self.refresh(0.3)  # the properties' own
        return super().apply(gradients)


class ForgetfulShampoo(Shampoo):
    """state_dict leaves out the factors."""

    def state_dict(self) -> dict:
        return super().state_dict() | {"factors": GradientFactors(0.5).state_dict()}


class LengthOfTheDirection(Shampoo):
    """The graft's length is divided by the gradient's."""

    def _direction(self, name: str, G: LayerGradient) -> Tensor:
        return super()._direction(name, G) / G.dense().norm()


class GraftWithoutCorrection(Shampoo):
    """Adam's second moment is not corrected for its beginning at zero."""

    def _direction(self, name: str, G: LayerGradient) -> Tensor:
        direction = super()._direction(name, G)
        return direction / self.V.weights[name].sqrt()


class NeverRotatedIn(SOAP):
    """The momentum is divided as it is, where only the gradient was rotated."""

    def _direction(self, name: str, G: LayerGradient) -> Tensor:
        super()._direction(name, G)
        return self.M.means[name] / (self.V.means[name].sqrt() + self.damping)


class TransposedRotation(SOAP):
    """Q_L in place of its transpose."""

    def refresh(self, damping: float) -> None:
        super().refresh(damping)
        self.Q_L = {name: Q.T.contiguous() for name, Q in self.Q_L.items()}


class FirstBasisForGood(SOAP):
    """The basis is never renewed."""

    def refresh(self, damping: float) -> None:
        kept = dict(self.Q_L), dict(self.Q_R)
        super().refresh(damping)
        for bases, old in zip((self.Q_L, self.Q_R), kept, strict=True):
            bases |= old


class EpsilonInTheRoot(SOAP):
    """sqrt(V + epsilon)."""

    def _direction(self, name: str, G: LayerGradient) -> Tensor:
        damping, self.damping = self.damping, 0.0
        self.V.add(name, torch.zeros_like(G.dense()))
        Q_L, Q_R = self.Q_L[name], self.Q_R[name]
        V, M = (Q_L.T @ G.dense() @ Q_R).square(), self.M.add(name, G.dense())
        self.damping = damping
        return Q_L @ ((Q_L.T @ M @ Q_R) / (V + damping).sqrt()) @ Q_R.T


class UncorrectedMomentum(SOAP):
    """M is not divided by 1 - beta1^t."""

    def _direction(self, name: str, G: LayerGradient) -> Tensor:
        return super()._direction(name, G) * self.M.weights[name]


class SOAPForgetsItsMomentum(SOAP):
    """state_dict leaves out M."""

    def state_dict(self) -> dict:
        return super().state_dict() | {"M": RunningMean(0.5, "beta1").state_dict()}


class WideSideToo(SOAP):
    """max_dim is not looked at."""

    def observe(self, gradients: Mapping[str, LayerGradient]) -> None:
        limit, self.factors.max_dim = self.factors.max_dim, None
        super().observe(gradients)
        self.factors.max_dim = limit


class MomentumAlone(Muon):
    """Nesterov's step is left out."""

    def _direction(self, name: str, G: LayerGradient) -> Tensor:
        self.nesterov = False
        direction = super()._direction(name, G)
        self.nesterov = True
        return direction


class FourSteps(Muon):
    """The last Newton-Schulz step is another one."""

    def _direction(self, name: str, G: LayerGradient) -> Tensor:
        X = super()._direction(name, G)
        return 1.5 * X - 0.5 * X @ X.T @ X


class ScaleOfTheOtherAxis(Muon):
    """sqrt(max(1, d_in / d_out))."""

    def _direction(self, name: str, G: LayerGradient) -> Tensor:
        d_out, d_in = G.shape
        scales = max(1, d_in / d_out) ** 0.5 / max(1, d_out / d_in) ** 0.5
        return super()._direction(name, G) * scales


class CorrectedNesterov(Muon):
    """The bias of the momentum is corrected before Nesterov's step."""

    def _direction(self, name: str, G: LayerGradient) -> Tensor:
        self.M.weights[name] = torch.ones_like(self.M.weights[name])
        return super()._direction(name, G)


class OrthogonalGradient(Muon):
    """The gradient is orthogonalised, and momentum left out."""

    def _direction(self, name: str, G: LayerGradient) -> Tensor:
        self.M.means[name] = G.dense()
        return super()._direction(name, G)


class SwappedAxes(ConvolutionLayer):
    """Output gradients go through positions column by column."""

    def gradient_rows(self, g: Tensor) -> Tensor:
        return super().gradient_rows(g.transpose(2, 3))


class FlippedKernel(ConvolutionLayer):
    """Patches are those of a convolution in the mathematical sense, not of a correlation."""

    def input_rows(self, x: Tensor) -> Tensor:
        rows, taps = super().input_rows(x), math.prod(self.module.kernel_size)
        weights = rows[..., : rows.shape[-1] // taps * taps].unflatten(2, (-1, taps)).flip(3).flatten(2)
        return torch.cat([weights, rows[..., weights.shape[2] :]], dim=2)


class ChannelsLast(ConvolutionLayer):
    """Patches in the order taps, then channels."""

    def input_rows(self, x: Tensor) -> Tensor:
        rows, taps = super().input_rows(x), math.prod(self.module.kernel_size)
        weights = rows[..., : rows.shape[-1] // taps * taps].unflatten(2, (-1, taps)).transpose(2, 3).flatten(2)
        return torch.cat([weights, rows[..., weights.shape[2] :]], dim=2)


class _MutantShifts(ConvolutionLayer):
    """The gradient is right and every row too; only what is made without rows is not."""

    kind: type[Shifts]

    def shifts(self, image: tuple[int, ...], ones: bool) -> Shifts | None:
        right = super().shifts(image, ones)
        return right and self.kind.of(*right.describe()[1:])


class _Flipped(Shifts):
    def measure(self, x: Tensor) -> Tensor:
        return super().measure(x.flip((2, 3)))


class FlippedShifts(_MutantShifts):
    """The same flip, in the factor alone."""

    kind = _Flipped


class _WithoutStrip(Shifts):
    def measure(self, x: Tensor) -> Tensor:
        kept, numbers = super().measure(x), self.channels**2
        end = (len(self._whole) + len(self.strips)) * numbers
        kept[end - numbers : end] = 0
        return kept


class ForgottenStrip(_MutantShifts):
    """One of the strips that no position reads is counted."""

    kind = _WithoutStrip


class _WithoutCorners(Shifts):
    @cached_property
    def _blocks(self):
        strips, blocks = super()._blocks
        return strips, [(k, other, R, [part for part in parts if part[0] < 0]) for k, other, R, parts in blocks]


class ForgottenCorner(_MutantShifts):
    """Corners are subtracted twice."""

    kind = _WithoutCorners


class _Transposed(Shifts):
    def measure(self, x: Tensor) -> Tensor:
        kept, whole = super().measure(x), len(self._whole) * self.channels**2
        R = kept[:whole].view(-1, self.channels, self.channels)
        return torch.cat([R.transpose(1, 2).flatten(), kept[whole:]])


class TransposedShifts(_MutantShifts):
    """Shifts to the other side."""

    kind = _Transposed


class _EveryTapReadsAll(Shifts):
    def measure(self, x: Tensor) -> Tensor:
        kept = super().measure(x)
        if self.ones:
            kept[-self.channels * self.taps - 1 : -1] = x.sum((0, 2, 3)).repeat_interleave(self.taps)
        return kept


class SumOfTheWholeImage(_MutantShifts):
    """Beside the ones stands what the image holds, not what each tap reads of it."""

    kind = _EveryTapReadsAll


# Mistakes in a layer's rows or in its input factor: caught by a direction on a network of such layers.
MUTANT_LAYERS: list[type[ConvolutionLayer]] = [
    SwappedAxes,
    FlippedKernel,
    ChannelsLast,
    FlippedShifts,
    ForgottenStrip,
    ForgottenCorner,
    TransposedShifts,
    SumOfTheWholeImage,
]


class _ScaledCounts(Counts):
    """Counts with a factor that none of the samples says."""

    kind = "counts of a mutant"
    factor: ClassVar[Callable[[Tensor], float]]

    def measure(self, x: Tensor) -> Tensor:
        return super().measure(x) * type(self).factor(x)


class _SummedCounts(_ScaledCounts):
    factor = len


class _MeanCounts(_ScaledCounts):
    factor = staticmethod(lambda x: 1 / x.shape[1])


class _MutantEmbedding(EmbeddingLayer):
    counts: ClassVar[type[Counts]]

    def form(self, image: tuple[int, ...], ones: bool, estimate: Estimate) -> Form | None:
        right = super().form(image, ones, estimate)
        return right and self.counts(*dataclasses.astuple(right))


class CountsWithoutN(_MutantEmbedding):
    """A token counts as often as it is in the batch, not in a sample."""

    counts = _SummedCounts


class CountsOverPositions(_MutantEmbedding):
    """A mean over positions where A is a sum."""

    counts = _MeanCounts


class PresentTokens(EmbeddingLayer):
    """A token counts once a sample, however often it is there."""

    def input_moment(self, inputs: list[Tensor], ones: bool, estimate: Estimate) -> Moment:
        rows = torch.cat([self.input_rows(x) for x in inputs], dim=1)
        return MeasuredMoment(rows.amax(1).sum(0).diag())


class BagOfTokens(EmbeddingLayer):
    """Under expand what reduce takes, but for its 1/P: the second moment of each sample's counts."""

    def input_moment(self, inputs: list[Tensor], ones: bool, estimate: Estimate) -> Moment:
        return MomentOfRows(torch.cat([self.input_rows(x) for x in inputs], dim=1).sum(1))


# Likewise of embeddings.
MUTANT_EMBEDDINGS: list[type[EmbeddingLayer]] = [CountsWithoutN, CountsOverPositions, PresentTokens, BagOfTokens]

# mutant -> the row of cases.METHODS that it pretends to be.
MUTANTS: dict[type, str] = {
    TransposedBasis: "kfac-standard-full",
    TransposedRightBasis: "kfac-standard-full",
    SwappedDamping: "kfac-heuristic-full",
    SwappedFactors: "kfac-standard-sampled",
    MissingBatchSize: "foof",
    SummedOutputGradients: "kfac-heuristic-sampled",
    MonteCarloTooSmall: "kfac-heuristic-sampled",
    MissingPositions: "kfac-heuristic-sampled",
    SwappedPositions: "ekfac-plain-full",
    StaleFactor: "foof",
    EagerRefresh: "foof",
    UncoupledChain: "kfac-tridiagonal-full",
    ForgottenWayBack: "kfac-tridiagonal-full",
    WayBackBeforeTheDivision: "kfac-tridiagonal-full",
    UndampedCorrelations: "kfac-tridiagonal-full",
    OwnDampingForTheNext: "kfac-tridiagonal-full",
    OtherSamplesAcross: "kfac-tridiagonal-full",
    OtherLabelsAcross: "kfac-tridiagonal-sampled",
    NewestAcross: "kfac-tridiagonal-empirical",
    StaleCouplings: "kfac-tridiagonal-sampled",
    ForgetfulChain: "kfac-tridiagonal-sampled",
    NoOp: "foof",
    UncorrectedAverage: "foof",
    ForgottenBias: "foof",
    WrongSide: "foof",
    ForgetfulState: "foof",
    PrintedSides: "kflr",
    DampingOfTheWrongRoot: "kflr",
    WholeDampingOnBoth: "kflr",
    SummedHessians: "kflr",
    ColumnsTooLong: "kflr-5-columns",
    SlopesOfAnotherLayer: "kfra",
    MeanSlopes: "kfra",
    SummedSlopes: "kfra",
    SummedLastHessians: "kfra",
    RecursionOfMicroBatches: "kfra",
    TransposedScales: "ekfac-plain-full",
    StaleScales: "ekfac-plain-full",
    EarlierScales: "ekfac-plain-empirical",
    UnobservedScales: "ekfac-plain-sampled",
    SummedScales: "ekfac-plain-empirical",
    ScalesOfTheMean: "ekfac-plain-empirical",
    ScalesOfPositions: "ekfac-plain-empirical",
    UncorrectedEigenvalues: "ekfac-plain-empirical",
    NeverRotatedBack: "ekfac-plain-empirical",
    SwappedFactorDamping: "ekfac-factors-pi-empirical",
    UnweightedFactorDamping: "ekfac-factors-empirical",
    RunningAverageWithoutN: "ekfac-ra-empirical",
    RunningAverageKept: "ekfac-ra-empirical",
    RunningAverageLate: "ekfac-ra-sampled",
    MultipliedByLambdaB: "foof-kfac-damping-lambda_B",
    PlainFOOFDamping: "foof-kfac-damping-lambda_B",
    NormOfTheNetwork: "foof-kfac-damping-kfac-norm",
    CentredBiasToo: "foof-centred",
    NotCentred: "foof-centred",
    NewestCentre: "foof-centred",
    WholeBatchDamping: "foof-per-sample",
    PositionsAlone: "foof-per-sample",
    SummedSamples: "foof-per-sample",
    LambdaOfASum: "natural-sampled",
    SummedFisher: "natural-full",
    StaleFisher: "natural-sampled",
    StaleSystem: "natural-empirical",
    TransposedRows: "natural-full",
    UncoupledLayers: "natural-full",
    CoupledLayers: "natural-sampled-block",
    NaturalForgetsItsDamping: "natural-empirical-block",
    ForgottenDamping: "natural-sampled",
    FactorsOfTheOtherSide: "shampoo",
    ExponentOfOneSide: "shampoo",
    DampingAfterTheRoot: "shampoo-squared",
    PerSampleFactors: "shampoo",
    UncorrectedFactors: "shampoo",
    FreshRoots: "shampoo-left",
    ForgetfulShampoo: "shampoo-sum",
    LengthOfTheDirection: "shampoo-graft-sgd",
    GraftWithoutCorrection: "shampoo-graft-adam",
    NeverRotatedIn: "soap",
    TransposedRotation: "soap",
    FirstBasisForGood: "soap",
    EpsilonInTheRoot: "soap",
    UncorrectedMomentum: "soap",
    SOAPForgetsItsMomentum: "soap-power",
    WideSideToo: "soap-narrow",
    MomentumAlone: "muon",
    FourSteps: "muon",
    ScaleOfTheOtherAxis: "muon",
    CorrectedNesterov: "muon",
    OrthogonalGradient: "muon-plain",
    UndampedGaussNewton: "gn-cg",
    UnconvergedGaussNewton: "gn-cg-block",
    StaleGaussNewton: "gn-cg",
    RowsTakenEarly: "gn-cg",
    GaussNewtonForgetsItsStart: "gn-cg",
}
