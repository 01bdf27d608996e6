"""How well each method's curvature stands for the Fisher of a layer, along a trajectory, between its refreshes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kfbench.curvature.approximations import (
    Approximation,
    KroneckerProduct,
    SampleFisher,
    ScaledEigenbasis,
    relative_error,
    spectrum_distance,
)
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import LayerStatistics, Statistics
from kfbench.errors import UsageError
from kfbench.preconditioners.ekfac import EKFAC
from kfbench.preconditioners.gn_cg import GaussNewtonCG
from kfbench.preconditioners.kfac import KFAC
from kfbench.preconditioners.natural import NaturalGradient
from kfbench.similarity.panel import Panel
from kfbench.updates.batches import SPECTRUM_LABELS, stream_seed
from kfbench.updates.build import vectors_of
from kfbench.updates.preconditioning import Preconditioning
from kfbench.updates.schedule import Amortisation

# A Gram matrix of so many rows takes 128 MB, and its eigenvalues some ten seconds at every look.
MAX_ROWS = 4000


class RowKeeper:
    """Meets the contract of a method, but only keeps the newest rows of one kind of labels."""

    orders = ("same",)
    apply_remembers = False
    per_sample = True

    def __init__(self, fisher: str) -> None:
        self.fisher = fisher
        self.statistics: Statistics = {}

    def observe(self, statistics: Statistics) -> None:
        """Keep them."""
        self.statistics = statistics

    def refresh(self, damping: float) -> None:
        """Nothing."""

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """Never asked."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Nothing: it lives for one run."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


class _AtLooks(Amortisation):
    """Observes the first of every T updates."""

    def observes(self, step: int) -> bool:
        return step % self.T == 0


class _Tracked:
    """One method: its curvature in force, and since when."""

    def __init__(self, preconditioning: Preconditioning, layers: Sequence[str]) -> None:
        self.preconditioning, self.layers = preconditioning, layers
        self._seen = 0
        self.first_use = 0  # of the refresh in force: the update whose direction it gave first
        self.age = 0  # updates since then, at the last look
        self._factors: dict[str, KroneckerProduct] = {}
        self.in_force: dict[str, Approximation] = {}

    def notice(self, first_use: int) -> None:
        """After anything that may have refreshed: factors are kept as they were at the last refresh."""
        if self.preconditioning.refreshes == self._seen:
            return
        self._seen, self.first_use = self.preconditioning.refreshes, first_use
        method: Any = self.preconditioning.method
        if isinstance(method, KFAC):
            self._factors = {
                name: KroneckerProduct(method.B.means[name].clone(), method.A.means[name].clone())
                for name in self.layers
                if name in method.A.means
            }

    def applied(self, step: int) -> None:
        """Right after it gave the direction of update ``step``."""
        self.notice(step)
        self.age = step - self.first_use
        method: Any = self.preconditioning.method
        if isinstance(method, KFAC):
            self.in_force = dict(self._factors)
        elif isinstance(method, EKFAC):
            known = [name for name in self.layers if name in method.bases]
            self.in_force = {n: ScaledEigenbasis(method.bases[n], method.scales[n].clone()) for n in known}
        else:
            rows = method.newest.rows.layers
            self.in_force = {name: _fisher_of(rows[name]) for name in self.layers if name in rows}


def _fisher_of(rows: Any) -> SampleFisher:
    return SampleFisher(LayerStatistics(rows.inputs, rows.output_gradients))


class Spectrum:
    """Errors of every method that has an approximation of the Fisher, in the named layers, at every look.

    The exact Fisher is that of the current batch, with labels of the method's kind: those that some method
    observes in the same forward, or drawn by a generator of its own. UsageError for layers that there are not,
    for methods without such an approximation, and for more rows than a Gram matrix is made for.
    """

    def __init__(self, panel: Panel, layers: Sequence[str], every: int) -> None:
        self.panel, self.layers = panel, layers
        trainee = panel.trainee
        for name in layers:
            if name not in panel.layers:
                raise UsageError(f"--spectrum {name}: no such layer is captured; there are {', '.join(panel.layers)}")
        self.tracked = {
            label: _Tracked(preconditioning, layers)
            for label, preconditioning in panel.preconditioned.items()
            if isinstance(preconditioning.method, _WITH_APPROXIMATION)
        }
        if not self.tracked:
            labels = ", ".join(each.label for each in panel.asked)
            raise UsageError(f"--spectrum needs a kfac, ekfac, natural or gn-cg among the methods, got {labels}")
        self.keepers: dict[str, RowKeeper] = {}
        self._first_use: dict[str, int] = {}
        for tracked in self.tracked.values():
            fisher = tracked.preconditioning.method.fisher
            points = trainee.run.batch_size
            if not isinstance(tracked.preconditioning.method, KFAC | EKFAC):  # whose curvature is rows as well
                points = max(points, tracked.preconditioning.points_of_a_refresh(points))
            _check_rows(points * vectors_of(fisher, trainee.data.outputs), fisher)
            if fisher not in self.keepers:
                self._add_keeper(fisher, every)
        panel.listeners = (*panel.listeners, self._listen)

    @property
    def periods(self) -> dict[str, int]:
        """T of every method."""
        return {label: tracked.preconditioning.schedule.T for label, tracked in self.tracked.items()}

    def _add_keeper(self, fisher: str, every: int) -> None:
        trainee, keeper = self.panel.trainee, RowKeeper(fisher)
        method: Any = keeper
        seed = stream_seed(trainee.seed, SPECTRUM_LABELS)
        observer = Preconditioning(trainee.model, method, damping=0.0, T=1, likelihood=trainee.likelihood, seed=seed)
        observer.schedule = _AtLooks(every, 1)
        self.keepers[fisher] = keeper
        self.panel.add_observer(observer)

    def warmed_up(self) -> None:
        """After the warm-up."""
        for tracked in self.tracked.values():
            tracked.notice(0)

    def before_turns(self) -> None:
        """Before the turns of an update: which methods will refresh before they apply."""
        step = self.panel.trainee.step
        self._first_use = {
            label: step + (not tracked.preconditioning.observes_first) for label, tracked in self.tracked.items()
        }

    def after_turns(self) -> None:
        """After them: whoever refreshed."""
        for label, tracked in self.tracked.items():
            tracked.notice(self._first_use[label])

    def _listen(self, label: str) -> None:
        if label in self.tracked:
            self.tracked[label].applied(self.panel.trainee.step)

    @torch.no_grad()
    def rows(self) -> list[dict[str, Any]]:
        """Of one look: layer, method, updates_since_refresh, and two tensors [], error and distance."""
        found = []
        for name in self.layers:
            fishers = {f: SampleFisher(k.statistics[name]) for f, k in self.keepers.items() if name in k.statistics}
            for label, tracked in self.tracked.items():
                fisher = fishers.get(tracked.preconditioning.method.fisher)
                approximation = tracked.in_force.get(name)
                if fisher is None or approximation is None:  # found not to be captured after all; a warning said so
                    continue
                found.append(
                    {
                        "layer": name,
                        "method": label,
                        "updates_since_refresh": tracked.age,
                        "frobenius_error": relative_error(fisher, approximation),
                        "spectrum_distance": spectrum_distance(fisher, approximation),
                    }
                )
        return found


_WITH_APPROXIMATION = (KFAC, EKFAC, NaturalGradient, GaussNewtonCG)


def _check_rows(rows: int, fisher: str) -> None:
    if rows > MAX_ROWS:
        raise UsageError(
            f"--spectrum: the Fisher has {rows} rows with labels {fisher!r}, whose Gram matrix takes "
            f"{8e-9 * rows**2:.1f} GB; at most {MAX_ROWS} rows are accepted: use a smaller batch_size or "
            "fisher_data, or fisher 'sampled'"
        )
