"""What is looked at along a followed trajectory, and when; the rows that come of it."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kfbench.config.command_blocks import Similarity
from kfbench.similarity.cosines import FOOFInnerProduct, cosines
from kfbench.similarity.loss_decrease import LossDecrease, rescaled
from kfbench.similarity.means import WHOLE
from kfbench.similarity.panel import Panel
from kfbench.similarity.spectrum import Spectrum
from kfbench.updates.evaluation import SameMasks, Seen

Rows = list[dict[str, Any]]

# As many looks as a curve needs, where --every is not given.
_LOOKS = 50


def default_every(total: int, periods: Sequence[int]) -> int:
    """Updates between about 50 looks; no factor is shared with any T, so that looks meet all of its phases."""
    every = max(1, total // _LOOKS)
    while any(math.gcd(every, T) > 1 for T in periods):
        every += 1
    return every


class Looks:
    """All looks of one seed. Numbers stay on the device until ``drain``."""

    def __init__(self, settings: Similarity, panel: Panel) -> None:
        self.settings, self.panel, self.trainee = settings, panel, panel.trainee
        periods = [turn.schedule.T for turn in panel.turns.values()]
        self.every = settings.every or default_every(self.trainee.total, periods)
        labels = [each.label for each in panel.asked]
        self.pairs = [p for p in itertools.combinations(labels, 2) if settings.against in (None, *p)]
        self.foof = next((each for each in panel.asked if each.method.opt == "foof"), None)
        held_out = settings.spectrum_points == "held-out"
        self.spectrum = Spectrum(panel, settings.spectrum, self.every, held_out) if settings.spectrum else None
        if "foof" in settings.metric:
            panel.listen(self._keep_factors)
        if self.spectrum is None:  # which counts updates since a refresh by T
            panel.rest_between_looks(self.every)
        self._masks: SameMasks | None = None
        self._seen: Seen | None = None
        self._A: dict[str, Tensor] = {}
        self._pending: list[tuple[int, float, Any, Rows, Rows]] = []

    @property
    def looking(self) -> bool:
        """Whether the coming update is looked at."""
        step = self.trainee.step
        return step % self.every == 0 and step >= (self.settings.first or 0)

    def _keep_factors(self, label: str) -> None:
        """A of the FOOF as it is when its direction is taken: what comes later in the order changes it in place."""
        if self.foof is not None and label == self.foof.label:
            assert self.foof.turn is not None
            method: Any = self.foof.turn.method
            self._A = {name: A.clone() for name, A in method.A.means.items() if name in self.panel.layers}

    def before_forward(self, x: Tensor, y: Tensor) -> None:
        """Before the training forward of an update."""
        # Here, since the forward is about to draw the dropout that a step's loss must be measured under.
        model, likelihood, looking = self.trainee.model, self.trainee.likelihood, self.looking
        self._masks = SameMasks(model, self.trainee.device) if looking and self.settings.progress else None
        asks_batch = looking and any(each.rule.looks_at_batch for each in self.panel.asked)
        self._seen = Seen(model, likelihood, self.trainee.micro_batches(x, y)) if asks_batch else None

    def before_turns(self) -> None:
        """Before the methods take their turns."""
        self.panel.prepare(self.looking)
        if self.spectrum is not None:
            self.spectrum.before_turns()

    def after_turns(self, x: Tensor, y: Tensor, loss: Tensor) -> None:
        """When all have given their directions and the weights have not moved."""
        self.panel.complete(self._seen)
        self._seen = None
        if self.spectrum is not None:
            self.spectrum.after_turns()
        # Refreshes are noticed at every update; all that follows costs time and is for looks alone.
        if not self.looking:
            return
        before = float(loss)  # synchronises, at looks only
        by_metric = {metric: self._cosines(metric) for metric in self.settings.metric}
        progress = self._progress(x, y, before) if self.settings.progress else []
        spectrum = self.spectrum.rows() if self.spectrum is not None else []
        self._pending.append((self.trainee.step, before, (list(self.panel.layers), by_metric), progress, spectrum))

    def _cosines(self, metric: str) -> Tensor:
        inner_product = None
        if metric == "foof":
            assert self.foof is not None and self.foof.turn is not None
            inner_product = FOOFInnerProduct(self._A, self.foof.turn.damping)
        directions = {each.label: self.panel.matrices(each.label) for each in self.panel.asked}
        with torch.no_grad():
            return cosines(directions, self.pairs, inner_product)

    def _progress(self, x: Tensor, y: Tensor, before: float) -> Rows:
        trainee, followed = self.trainee, self.panel.followed
        assert self._masks is not None
        parts = trainee.micro_batches(x, y)
        decrease = LossDecrease(trainee.model, trainee.likelihood, parts, before, self._masks)
        # An optimizer without a learning rate moves as one with 1 would.
        own, own_lr = self.panel.directions[followed.label], trainee.lr or 1.0
        rows = []
        for each in self.panel.asked:
            direction = self.panel.directions[each.label]
            lr = own_lr if each is followed else each.lr(trainee) or 1.0
            if self.settings.progress_lr == "search":
                value, lr = decrease.search(direction, lr)
            else:
                value = decrease.of(direction, lr)
            rows.append({"method": each.label, "kind": "as-is", "lr": lr, "progress": value})
            # With the followed norms and lr, methods differ by where they point, not by how far they go.
            value = decrease.of(rescaled(direction, own, self.panel.layers), own_lr)
            rows.append({"method": each.label, "kind": "rescaled", "lr": own_lr, "progress": value})
        return rows

    def drain(self) -> tuple[Rows, Rows, Rows]:
        """Rows of similarity.csv, progress.csv and spectrum.csv since the last time; none of a loss not finite."""
        similarity: Rows = []
        progress: Rows = []
        spectrum: Rows = []
        for update, loss, (layers, by_metric), of_progress, of_spectrum in self._pending:
            # A share of no finite loss is no progress, and its directions are of weights that have diverged.
            if not math.isfinite(loss):
                continue
            place = {"seed": self.trainee.seed, "update": update}
            for metric, values in by_metric.items():
                similarity += [place | row for row in self._cosine_rows(layers, metric, values)]
            progress += [place | row for row in of_progress]
            spectrum += [place | {k: _plain(v) for k, v in row.items()} for row in of_spectrum]
        self._pending = []
        return similarity, progress, spectrum

    def _cosine_rows(self, layers: list[str], metric: str, values: Tensor) -> Rows:
        return [
            {"layer": layer, "method_a": a, "method_b": b, "metric": metric, "cosine": cosine}
            for (a, b), by_layer in zip(self.pairs, values.tolist(), strict=True)
            for layer, cosine in zip([*layers, WHOLE], by_layer, strict=True)
        ]


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, Tensor) else value
