"""What is trained, by what: one seed's model, optimizer and preconditioning, and one update of it."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from kfbench.config.schema import Config
from kfbench.problems.datasets import Dataset
from kfbench.step_rules.contract import Proposed, Taken
from kfbench.step_rules.learning_rate import learning_rate_factor
from kfbench.step_rules.momentum import LateMomentum
from kfbench.updates.batches import LABELS, Batch, fisher_batches, stream_seed, training_batches, warmup_batches
from kfbench.updates.build import (
    build_likelihood,
    build_method,
    build_network,
    build_rule,
    check_learning_rate,
    check_turn,
    total_updates,
)
from kfbench.updates.evaluation import at_weights_to_judge, evaluate
from kfbench.updates.memory import tensor_bytes
from kfbench.updates.turn import Turn, Watch


class Trainee:
    """One seed of one method. Equal configuration and seed give bit-equal updates."""

    def __init__(self, config: Config, data: Dataset, seed: int, device: torch.device) -> None:
        self.run, self.method, self.data, self.seed, self.device = config.run, config.methods[0], data, seed, device
        self.eval_samples = config.problem.eval_samples
        self.total, self.per_epoch = total_updates(config.run, len(data.train_inputs))
        self.likelihood = build_likelihood(config.problem)
        self.model = build_network(config.problem, config.run, data, device, seed)
        self.optimizer, self.preconditioning, self.weight_decay = build_method(
            self.method, self.model, stream_seed(seed, LABELS), self.likelihood, self._fisher_batches
        )
        check_turn(self.method, self.preconditioning, self.run, data)
        self.scheduler = self._make_scheduler()
        self.rule = build_rule(self.method, self.total, device, self.lr)
        self.late_momentum = self._make_late_momentum()
        self._around: Watch = lambda task: nullcontext()
        self.step = self.samples = 0

    def _make_scheduler(self) -> LambdaLR | None:
        options = self.method.options
        schedule, decay, epochs = options["lr_schedule"], options["lr_decay"], options["lr_step_epochs"]
        if schedule == "constant":
            return None
        check_learning_rate(self.method, self.lr, "lr_schedule")
        period = None if epochs is None else epochs * self.per_epoch
        return LambdaLR(self.optimizer, lambda step: learning_rate_factor(schedule, decay, step, self.total, period))

    def _make_late_momentum(self) -> LateMomentum | None:
        options = self.method.options
        if options.get("momentum_after_epoch") is None:
            return None
        return LateMomentum(self.optimizer, options["momentum"], options["momentum_after_epoch"] * self.per_epoch)

    @property
    def lr(self) -> float | None:
        """The learning rate of the coming update; None for an optimizer that has none."""
        lr = self.optimizer.param_groups[0].get("lr")
        return None if lr is None else float(lr)

    @property
    def damping(self) -> float | None:
        """lambda, where the method has one."""
        return self.preconditioning.damping

    @property
    def damping_retries(self) -> int:
        """How many factors needed more damping than asked for."""
        return self.preconditioning.turn.damping_retries

    def warn_if_hardly_refreshed(self) -> None:
        """Fewer than two refreshes in the whole run say little about a method."""
        T = self.preconditioning.T
        if T is not None and not self.run.quick and self.total // T < 2:
            warnings.warn(
                f"{self.total} updates give fewer than two refreshes at T = {T}: the method is hardly at work; "
                f"train longer or lower --T",
                stacklevel=2,
            )

    def batches(self) -> Iterator[Batch]:
        """The training batches from the coming update on, without end."""
        return training_batches(self.data, self.run.batch_size, self.seed, self.step)

    def warm_up(self) -> None:
        """Fill the statistics of a preconditioned method before its first update."""
        count = self.method.options.get("warmup_batches", 0)
        self.preconditioning.warm_up(warmup_batches(self.data, self.run.batch_size, self.seed, count))

    def _fisher_batches(self, refresh: int) -> Iterator[Batch]:
        return self.points_for(self.preconditioning.turn, refresh)

    def points_for(self, turn: Turn, refresh: int) -> Iterator[Batch]:
        """The points of a method's own for one refresh, in chunks of a (micro-)batch."""
        points = turn.points_of_a_refresh(self.run.batch_size)
        chunk = self.run.micro_batch_size or self.run.batch_size
        return fisher_batches(self.data, points, chunk, self.seed, refresh)

    def update(self, x: Tensor, y: Tensor, record: Tensor | None = None) -> Tensor:
        """One optimizer step on one batch; the mean loss before it, still on the device.

        ``record`` [] takes that loss too, before the step, so that it is known even if the step fails.
        """
        loss = self.backward(x, y)
        if record is not None:
            record.copy_(loss)
        self.take_step(len(x))
        return loss

    def backward(self, x: Tensor, y: Tensor) -> Tensor:
        """Forward and backward of one batch, by micro-batches; its mean loss."""
        self.preconditioning.begin()
        total = torch.zeros((), device=self.device)
        for xs, ys in self.micro_batches(x, y):
            with self.preconditioning.capture():
                output = self.model(xs)
            losses = self.likelihood.loss(output, ys)
            part = losses.sum() / len(x)  # not len(xs): the parts add up to the mean over the batch
            self.preconditioning.take_in(losses, output, part)
            total = total + part.detach()
        return total

    def take_step(self, samples: int) -> None:
        """Turn gradients into directions, where there is a method, and let the optimizer step."""
        self.form_direction()
        self._move(samples)

    def form_direction(self) -> None:
        """Leave in every ``.grad`` what the optimizer is to step along."""
        self.preconditioning.finish(self._scale)

    def _scale(self, product: Callable[[], Tensor]) -> Tensor | None:
        with self._around("step"):
            return self.rule.scale(Proposed(product, self.lr, self.step))

    def _move(self, samples: int) -> None:
        if self.late_momentum is not None:
            self.late_momentum.set(self.step)
        self._decay_weights()  # before the step and before lr falls: decoupled, with the lr of this very step
        with self._around("step"):
            self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        damping = self.rule.damping(Taken(self.damping, self.step))
        # Only now, as it follows from the step that was taken; it counts from the next refresh on.
        if damping is not None and damping != self.damping:
            self.preconditioning.turn.redamp(damping)
        self.step += 1
        self.samples += samples

    @contextmanager
    def watch(self, around: Watch) -> Iterator[None]:
        """Within the block every task of an update but forward and backward is done inside ``around(its name)``."""
        usual, self._around = self._around, around
        try:
            with self.preconditioning.watch(around):
                yield
        finally:
            self._around = usual

    def micro_batches(self, x: Tensor, y: Tensor) -> list[Batch]:
        """One update's batch in the parts that go through the model one by one."""
        size = self.run.micro_batch_size
        return [(x, y)] if size is None else list(zip(x.split(size), y.split(size), strict=True))

    @torch.no_grad()
    def _decay_weights(self) -> None:
        if self.weight_decay:
            for group in self.optimizer.param_groups:
                trained = [p for p in group["params"] if p.grad is not None]  # frozen ones keep their values
                torch._foreach_mul_(trained, 1 - group["lr"] * self.weight_decay)

    def evaluate(self) -> dict[str, float | None]:
        """Losses and accuracies on training and test set, or on their first ``eval_samples``."""
        k, data = self.eval_samples, self.data
        with at_weights_to_judge(self.optimizer):
            train = evaluate(self.model, self.likelihood, data.train_inputs[:k], data.train_targets[:k])
            test = evaluate(self.model, self.likelihood, data.test_inputs[:k], data.test_targets[:k])
        names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
        return dict(zip(names, (*train, *test), strict=True))

    def state_memory_bytes(self) -> int:
        """Bytes that optimizer and method keep between updates, beyond the parameters."""
        return tensor_bytes([self.optimizer.state_dict(), self.preconditioning.turn.method.state_dict()])

    def state_dict(self) -> dict[str, Any]:
        """Everything from which ``load_state_dict`` continues bit for bit."""
        cuda = self.device.type == "cuda"
        return self.ended_state_dict() | {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.last_epoch if self.scheduler else None,
            "preconditioning": self.preconditioning.state_dict(),
            "random": torch.get_rng_state(),
            "random_device": torch.cuda.get_rng_state(self.device) if cuda else None,
        }

    def ended_state_dict(self) -> dict[str, Any]:
        """What is left of a run that needs no continuation: the trained model."""
        return {"step": self.step, "samples": self.samples, "model": self.model.state_dict(), **self.rule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``, and of ``ended_state_dict``."""
        self.step, self.samples = state["step"], state["samples"]
        self.model.load_state_dict(state["model"])
        self.rule.load_state_dict(state)
        if "optimizer" not in state:  # an ended run: its weights alone are kept
            return
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.last_epoch = state["scheduler"]  # lr itself has come with the optimizer's groups
        self.preconditioning.load_state_dict(_to_device(state["preconditioning"], self.device))
        # Last, after whatever a user's method draws while it is built or loaded.
        torch.set_rng_state(state["random"].cpu())
        if state["random_device"] is not None:
            torch.cuda.set_rng_state(state["random_device"].cpu(), self.device)


def _to_device(state: Any, device: torch.device) -> Any:
    """Nested tensors on the device; where they are there already, the same ones."""
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: _to_device(value, device) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_to_device(value, device) for value in state]
    return state
