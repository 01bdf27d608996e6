"""The trainee that is followed, its loop and its CSVs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kfbench.config.schema import Config, Method
from kfbench.problems.datasets import Dataset
from kfbench.results.records import CsvLog
from kfbench.similarity.looks import Looks
from kfbench.similarity.means import PROGRESS_COLUMNS, SIMILARITY_COLUMNS, SPECTRUM_COLUMNS, SimilaritySummary
from kfbench.similarity.panel import Panel
from kfbench.training.interruption import Interruption
from kfbench.training.observer import Observer
from kfbench.training.seed_run import SeedRun
from kfbench.updates.batches import warmup_batches
from kfbench.updates.plain_update import PlainUpdate
from kfbench.updates.preconditioning import Preconditioning, Rate, Redirect
from kfbench.updates.trainee import Trainee


def followed_method(config: Config) -> Method:
    """The one that trains."""
    return next(method for method in config.methods if method.label == config.similarity.follow)


def followed_config(config: Config) -> Config:
    """As if it were trained alone."""
    return config.with_methods([followed_method(config)])


class ShownGradient(PlainUpdate):
    """The update of an optimizer whose forwards are captured for methods that are only asked."""

    def __init__(self, model: nn.Module, leader: Preconditioning) -> None:
        super().__init__(model)
        self._leader = leader

    def capture(self) -> AbstractContextManager[Any]:
        """The context for one training forward, captured for the others."""
        return self._leader.capture()

    def take_in(self, losses: Tensor, output: Tensor, part: Tensor) -> None:
        """Theirs first: the optimizer's backward frees the graph."""
        self._leader.accumulate(losses, output, keep_graph=True)
        super().take_in(losses, output, part)

    def finish(self, redirect: Redirect, candidates: Sequence[float] = (), rate: Rate | None = None) -> None:
        """The optimizer's direction, then their turns, which write nothing."""
        super().finish(redirect, candidates, rate)
        self._leader.finish_unwritten()


class FollowedTrainee(Trainee):
    """A trainee whose every update is shown to the other methods before the weights move.

    Its losses are, bit for bit, those of a ``Trainee`` of the followed method alone.
    """

    def __init__(self, config: Config, data: Dataset, seed: int, device: torch.device) -> None:
        super().__init__(followed_config(config), data, seed, device)
        self.panel = Panel(config.methods, self)
        # A torch optimizer captures nothing, so one of the others captures for all.
        if isinstance(self.preconditioning, PlainUpdate):
            self.preconditioning = ShownGradient(self.model, self.panel.leader)
        self.looks = Looks(config.similarity, self.panel)

    def warm_up(self) -> None:
        """Fill the statistics of all methods from the same batches, each from as many as it wants."""
        counts = self.panel.warm_up_counts()
        # As many as the longest warm-up wants; each turn stops at its own count.
        batches = warmup_batches(self.data, self.run.batch_size, self.seed, max(counts))
        self.panel.leader.warm_up(batches, counts)
        if self.looks.spectrum is not None:
            self.looks.spectrum.warmed_up()

    def backward(self, x: Tensor, y: Tensor) -> Tensor:
        """Forward and backward of one batch, and what a look must know from before them."""
        self.looks.before_forward(x, y)
        loss = super().backward(x, y)
        self._batch = (x, y, loss)
        return loss

    def form_direction(self) -> None:
        """The direction of the followed method, and of all others: before the weights move."""
        self.looks.before_turns()
        super().form_direction()
        self.looks.after_turns(*self._batch)


class Logs:
    """The CSV files of all seeds together."""

    def __init__(self, directory: Path, config: Config) -> None:
        settings = config.similarity
        wanted = {
            "similarity.csv": (True, SIMILARITY_COLUMNS),
            "progress.csv": (settings.progress, PROGRESS_COLUMNS),
            "spectrum.csv": (bool(settings.spectrum), SPECTRUM_COLUMNS),
        }
        self._logs = {name: CsvLog(directory / name, columns) for name, (is_on, columns) in wanted.items() if is_on}

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Whole lines."""
        if rows:
            self._logs[name].append(rows)

    def close(self) -> None:
        """No more rows."""
        for log in self._logs.values():
            log.close()


class FollowedRun(SeedRun):
    """The loop of one seed; what was looked at is written whenever its losses are. It is not continued."""

    def __init__(
        self,
        trainee: FollowedTrainee,
        config: Config,
        folder: Path,
        observer: Observer,
        stop: Interruption,
        logs: Logs,
        means: SimilaritySummary,
    ) -> None:
        super().__init__(trainee, followed_config(config), folder, observer, stop, keep_weights=False)
        self._looks, self._logs, self._means = trainee.looks, logs, means

    def _flush(self) -> bool:
        # Before the losses, since with one that is not finite the run ends.
        similarity_rows, progress_rows, spectrum_rows = self._looks.drain()
        for name, rows in (
            ("similarity.csv", similarity_rows),
            ("progress.csv", progress_rows),
            ("spectrum.csv", spectrum_rows),
        ):
            self._logs.append(name, rows)
        self._means.add_cosines(similarity_rows)
        self._means.add_progress(progress_rows)
        if self._looks.spectrum is not None:
            self._means.add_spectrum(spectrum_rows, self._looks.spectrum.periods)
        return super()._flush()

    def _checkpoint(self, ended: bool = False) -> None:
        """Nothing to continue from."""

    def _check_state(self) -> None:
        """Nothing is saved of it."""
