"""One seed of `train`: the loop around its updates, what is recorded of it, and how it goes on after a crash."""

import math
import statistics
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kfbench.config.identity import refuse_other, trajectory
from kfbench.config.schema import Config
from kfbench.errors import KfbenchError, UsageError, described
from kfbench.results.records import ENDED, EPOCH_COLUMNS, SCHEMA_VERSION, UPDATE_COLUMNS
from kfbench.training.block import Block
from kfbench.training.checkpoint import check_whole, first_unreadable
from kfbench.training.interruption import Interruption
from kfbench.training.observer import Observer
from kfbench.training.seed_records import SeedRecords, Unwritten
from kfbench.updates.spent import Clocks, peak_memory_bytes, reset_peak_memory
from kfbench.updates.trainee import Trainee

# Losses stay on the device for this many updates, then one transfer reads them all. Of as many the median tells whether
# a run has left for good; of fewer where each is an epoch.
BLOCK, FEWER = 50, 20
# A killed run loses at most about this many seconds.
CHECKPOINT_SECONDS = 30.0


class SeedRun:
    """One seed: the loop around ``Trainee.update``, its records and its checkpoints."""

    def __init__(
        self,
        trainee: Trainee,
        config: Config,
        folder: Path,
        observer: Observer,
        stop: Interruption,
        keep_weights: bool = True,
        checkpoint_seconds: float | None = None,
    ) -> None:
        self.trainee, self.folder, self.observer, self.stop = trainee, folder, observer, stop
        self.keep_weights, self.checkpoint_seconds = keep_weights, checkpoint_seconds
        self.ranks = trainee.ranks
        self.records = SeedRecords(folder) if self.ranks.is_first else Unwritten()
        self.run_config = config.run
        self.identity = {"method": config.methods[0].label, "seed": trainee.seed}
        self.trajectory = trajectory(config)
        self.clocks = Clocks(trainee.device)
        self.epochs: list[dict[str, Any]] = []
        self.block = Block(BLOCK, trainee.device)
        # Not those of one block: an epoch's end, after a single update even, cuts it short.
        self.recent = deque[float](maxlen=BLOCK if trainee.per_epoch > 1 else FEWER)
        self.status, self.reason = "done", ""
        self._can_be_saved = False

    def run(self, resume: bool) -> dict[str, Any]:
        """Train to the end, or to what ends it; returns the seed's summary.

        Whatever a method or model raises becomes a status; only a failing disk, wrong usage and Ctrl-C raise:
        CheckpointError where there are checkpoints, and from none it can go on.
        """
        reset_peak_memory(self.trainee.device)
        checkpoint = self._continued() if resume else None
        # Cut back to the checkpoint, as its updates since then are made again.
        keep = checkpoint["bytes"] if checkpoint else [None, None]
        columns = (*UPDATE_COLUMNS, *self.trainee.rule.columns)
        self.records.begin(columns, (*EPOCH_COLUMNS, *self.trainee.further_columns), keep)
        self.observer.started(self.trainee.seed, self.trainee.step, self.trainee.total, self.trainee.per_epoch)
        try:
            if checkpoint is None:
                self._begin()
            else:
                self.clocks.start()  # only now: what loading took belongs to no account
            if self.status == "done":
                self._loop()
        except (FloatingPointError, torch.linalg.LinAlgError) as error:  # so fail factors that are no longer finite
            self._stop_early("diverged", error)
        except (OSError, KfbenchError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a user's method or model may fail in any way, by sys.exit too
            self.ranks.end(error)
            self._stop_early("failed", error)
        finally:
            self.records.close()
        summary = self._summary()
        self.records.summarise(summary)
        if self.status in ENDED:
            self.records.clear(self.keep_weights)
        self.observer.finished(summary)
        return summary

    def _begin(self) -> None:
        self.clocks.start()
        self.trainee.warm_up()
        self.clocks.lap_warmup()
        self._evaluate()

    def _loop(self) -> None:
        trainee, last_checkpoint = self.trainee, time.monotonic()
        for x, y in trainee.batches():
            if trainee.step >= trainee.total:
                break
            self._update(x, y)
            self.stop.look()
            boundary = trainee.step % trainee.per_epoch == 0 or trainee.step == trainee.total
            # By the number of the update: a continued run then looks where the whole one does.
            if boundary or trainee.step % BLOCK == 0 or self.stop.requested:
                # The clock of updates stops in the flush, so evaluations and checkpoints come after it.
                if not self._flush():
                    return
                if boundary:
                    self._evaluate()
                if self.status != "done":
                    return
                if self.stop.requested and trainee.step < trainee.total:  # after the last update it is done
                    self._checkpoint()
                    self.status = "interrupted"
                    return
                # Only here: the block is empty, so that the CSVs hold all updates that the checkpoint does.
                if time.monotonic() - last_checkpoint > (self.checkpoint_seconds or CHECKPOINT_SECONDS):
                    self._checkpoint()
                    last_checkpoint = time.monotonic()
        if self.keep_weights:
            self._checkpoint(ended=True)

    def _update(self, x: Tensor, y: Tensor) -> None:
        # Before the update: its lr is the one that is used, and one that fails has its row.
        loss = self.block.begin(self._row())
        self.trainee.update(x, y, loss)
        self.block.rows[-1] |= self.trainee.rule.figures()
        if not self._can_be_saved:  # not before: an optimizer has no state until it steps
            self._check_state()
            self._can_be_saved = True

    def _row(self) -> dict[str, Any]:
        """What is known of the coming update."""
        trainee = self.trainee
        return {
            **self.identity,
            "update": trainee.step,
            "epoch": math.floor(trainee.epoch),
            "samples": trainee.samples,
            "lr": trainee.lr,
            "damping": trainee.damping,
        }

    def _flush(self) -> bool:
        """Read the losses of the block and append its rows; False where one is not finite."""
        self.clocks.lap_updates()
        whole = self.block.read()
        values = [row["loss"] for row in whole]
        bad = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
        rows = whole if bad is None else whole[: bad + 1]  # with the bad one, which says what happened
        rows[-1] |= self.clocks.so_far()
        self.records.append_updates(rows)
        self.observer.flushed(rows[-1])
        self.recent.extend(values)
        self.clocks.lap_elsewhere()
        if bad is not None:
            self.status, self.reason = "diverged", f"the loss of update {rows[-1]['update']} is {rows[-1]['loss']}"
        elif not self.stop.requested:  # the whole run is not looked at here
            self._stop_if_diverging()
        return self.status == "done"

    def _stop_if_diverging(self) -> None:
        """The median of many updates tells a run that has left for good from one that came back after a bad one."""
        factor, many = self.run_config.divergence_factor, len(self.recent)
        if factor is None or many < (self.recent.maxlen or 0):
            return
        if (typical := statistics.median(self.recent)) > factor * self.epochs[0]["train_loss"]:
            before = f"the median loss of the {many} updates before {self.trainee.step} is {typical:.4g}"
            self.status, self.reason = "diverged", f"{before}, more than {factor:g} times that of the untrained network"

    def _stop_early(self, status: str, error: BaseException) -> None:
        """Keep the updates whose loss is known, and say why there are no more."""
        finished = sum(row["update"] < self.trainee.step for row in self.block.rows)
        # The step failed after its loss was recorded: if that is not finite, it is the row that tells why.
        known = finished < len(self.block.rows) and not math.isfinite(float(self.block.losses[finished]))
        del self.block.rows[finished + known :]
        if not self.block.rows or self._flush():
            self.status, self.reason = status, described(error)
        self.observer.failed(error)

    def _evaluate(self) -> None:
        trainee = self.trainee
        epoch = int(trainee.epoch) if trainee.epoch.is_integer() else trainee.epoch  # 3, not 3.0
        row = {**self.identity, "update": trainee.step, "epoch": epoch, **trainee.evaluate()}
        self.clocks.lap_elsewhere()  # so that this evaluation is in its own row
        row |= self.clocks.so_far()
        self.epochs.append(row)
        self.records.append_epochs([row])
        self.observer.evaluated(row)
        self.clocks.lap_elsewhere()
        loss = self.epochs[-1]["train_loss"]
        if trainee.step and not math.isfinite(loss):
            self.status, self.reason = "diverged", f"the training loss after update {trainee.step} is {loss}"

    def _checkpoint(self, ended: bool = False) -> None:
        """Save everything that a continuation needs; at the end the trained weights, without what was for more."""
        state = self.trainee.ended_state_dict() if ended else self.trainee.state_dict()
        if (what := first_unreadable(state)) is not None:  # not there after the first update
            raise TypeError(f"{what}, so that the state cannot be saved; expected tensors and plain values")
        content = {
            "trajectory": self.trajectory,
            "seed": self.trainee.seed,
            "trainee": state,
            "epochs": self.epochs,
            "recent": list(self.recent),
            "clocks": self.clocks.state_dict(),
        }
        self.records.save(content)
        self.clocks.lap_elsewhere()

    def _check_state(self) -> None:
        """UsageError where a checkpoint could not be read again: said after the first update, not after a kill."""
        trainee = self.trainee
        # Not that of the trainee, which copies everything.
        state = {
            "optimizer": trainee.optimizer.state_dict(),
            "method": trainee.preconditioning.turn.method.state_dict(),
        }
        if (what := first_unreadable(state | {"model": trainee.model.state_dict()})) is not None:
            expected = "expected tensors and plain values in state_dict"
            raise UsageError(f"{self.identity['method']}: its state cannot be saved: {what}; {expected}")

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint; TornError, or whatever a user's method raises, where that cannot be."""
        check_whole(checkpoint, self.folder, self.trainee.seed, self.trainee.total)
        refuse_other(checkpoint["trajectory"], self.trajectory, self.folder)
        self._go_on(checkpoint)

    def _continued(self) -> dict[str, Any] | None:
        """The checkpoint from which all processes go on, which the first of them has read."""
        checkpoint = self.ranks.from_first(lambda: self.records.load(self._restore))
        if checkpoint is not None and not self.ranks.is_first:
            self._go_on(checkpoint)
        return checkpoint

    def _go_on(self, checkpoint: dict[str, Any]) -> None:
        self.trainee.load_state_dict(checkpoint["trainee"])
        self.epochs = checkpoint["epochs"]
        self.recent.extend(checkpoint["recent"])
        self.clocks.load_state_dict(checkpoint["clocks"])

    def _state_memory(self) -> int | None:
        try:
            return self.trainee.state_memory_bytes()
        except (OSError, KfbenchError, KeyboardInterrupt):
            raise
        except BaseException as error:  # what a user's method keeps is for it to say
            if self.status == "done":
                self.status, self.reason = "failed", described(error)
            return None

    def _summary(self) -> dict[str, Any]:
        state_memory = self._state_memory()  # first: it may change the status
        rows = [row for row in self.epochs if math.isfinite(row["train_loss"])]
        best = min(rows, key=lambda row: row["train_loss"], default=None)
        final = self.epochs[-1] if self.epochs else None
        ended = self.status == "done" and final is not None
        updates = self.trainee.step
        # A diverged run ends at infinity, for every comparison; others that have not ended have no final loss yet.
        unfinished = math.inf if self.status == "diverged" else None
        return {
            "schema_version": SCHEMA_VERSION,
            **self.identity,
            "status": self.status,
            "reason": self.reason or None,
            "final_train_loss": final["train_loss"] if ended and final else unfinished,
            "best_train_loss": best["train_loss"] if best else None,
            "best_update": best["update"] if best else None,
            "test_accuracy": final["test_accuracy"] if ended and final else None,
            **{name: final[name] if ended and final else None for name in self.trainee.further_columns},
            "updates": updates,
            **self.clocks.state_dict(),
            "seconds_per_update": self.clocks.seconds_updates / updates if updates else None,
            "peak_memory_bytes": peak_memory_bytes(self.trainee.device),
            "state_memory_bytes": state_memory,
            "damping_retries": self.trainee.damping_retries,
            "clipped_updates": self.trainee.rule.acted,
            **self.trainee.rule.summary(),
            **self._target(),
            **self.ranks.described(),
        }

    def _target(self) -> dict[str, Any]:
        """When train_loss first reached --target-loss at the end of an epoch; missing if it never did."""
        target = self.run_config.target_loss
        if target is None:
            return {}
        hit = next((row for row in self.epochs if row["train_loss"] <= target), None)
        return {
            "target_loss": target,
            "target_update": hit["update"] if hit else None,
            "target_seconds_updates": hit["seconds_updates"] if hit else None,
        }
