"""What is trained, by what: one seed's model, optimizer and preconditioning, and one update of it."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from kfbench.config.schema import Config
from kfbench.errors import UsageError
from kfbench.problems.datasets import Dataset
from kfbench.step_rules.clipping import scale_gradients, squared_norm
from kfbench.step_rules.learning_rate import learning_rate_factor
from kfbench.updates.batches import LABELS, Batch, fisher_batches, stream_seed, training_batches, warmup_batches
from kfbench.updates.build import (
    build_clipping,
    build_likelihood,
    build_method,
    build_network,
    check_method,
    total_updates,
)
from kfbench.updates.evaluation import evaluate
from kfbench.updates.memory import tensor_bytes
from kfbench.updates.preconditioning import Preconditioning


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
        if self.preconditioning is not None:
            check_method(self.method, self.preconditioning, self.run, data)
        self.scheduler = self._make_scheduler()
        self.clipping = build_clipping(self.method, self.total, device)
        if self.clipping is not None:
            self._check_learning_rate("clip_norm", self.clipping.c)
        self.step = self.samples = 0

    def _make_scheduler(self) -> LambdaLR | None:
        options = self.method.options
        schedule, decay, epochs = options["lr_schedule"], options["lr_decay"], options["lr_step_epochs"]
        if schedule == "constant":
            return None
        self._check_learning_rate("lr_schedule", schedule)
        period = None if epochs is None else epochs * self.per_epoch
        return LambdaLR(self.optimizer, lambda step: learning_rate_factor(schedule, decay, step, self.total, period))

    def _check_learning_rate(self, option: str, value: Any) -> None:
        if self.lr is None:
            raise UsageError(f"method {self.method.opt!r} has no learning rate for {option} {value!r} to change")

    @property
    def lr(self) -> float | None:
        """The learning rate of the coming update; None for an optimizer that has none."""
        lr = self.optimizer.param_groups[0].get("lr")
        return None if lr is None else float(lr)

    @property
    def damping(self) -> float | None:
        """lambda, where the method has one."""
        return self.preconditioning.damping if self.preconditioning else None

    @property
    def damping_retries(self) -> int:
        """How many factors needed more damping than asked for."""
        return self.preconditioning.damping_retries if self.preconditioning else 0

    @property
    def clipped_updates(self) -> int | None:
        """In how many updates norm clipping acted; None without it."""
        return int(self.clipping.clipped) if self.clipping else None

    def warn_if_hardly_refreshed(self) -> None:
        """Fewer than two refreshes in the whole run say little about a method."""
        if self.preconditioning is None or self.run.quick:
            return
        T = self.preconditioning.schedule.T
        if self.total // T < 2:
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
        if self.preconditioning:
            count = self.method.options.get("warmup_batches", 0)
            self.preconditioning.warm_up(warmup_batches(self.data, self.run.batch_size, self.seed, count))

    def _fisher_batches(self, refresh: int) -> Iterator[Batch]:
        assert self.preconditioning is not None
        return self.points_for(self.preconditioning, refresh)

    def points_for(self, preconditioning: Preconditioning, refresh: int) -> Iterator[Batch]:
        """The points of a method's own for one refresh, in chunks of a (micro-)batch."""
        points = preconditioning.points_of_a_refresh(self.run.batch_size)
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
        if self.preconditioning is None:
            self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for xs, ys in self.micro_batches(x, y):
            loss = (
                self._backward_plain(xs, ys, len(x)) if self.preconditioning is None else self._capture(xs, ys, len(x))
            )
            total = total + loss
        return total

    def take_step(self, samples: int) -> None:
        """Turn gradients into directions, where there is a method, and let the optimizer step."""
        self.form_direction()
        self._move(samples)

    def form_direction(self) -> None:
        """Leave in every ``.grad`` what the optimizer is to step along."""
        if self.preconditioning is not None:
            self.preconditioning.finish(self._clip_factor if self.clipping else None)
        elif self.clipping:
            self._clip_gradients()

    def _move(self, samples: int) -> None:
        self._decay_weights()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.step += 1
        self.samples += samples

    def _clip_factor(self, product: Tensor) -> Tensor:
        assert self.clipping is not None and self.lr is not None
        return self.clipping.factor(product, self.lr, self.step)

    def _clip_gradients(self) -> None:
        """The plain gradient is its own direction."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        scale_gradients(self.model.parameters(), self._clip_factor(squared_norm(gradients)))

    def _backward_plain(self, x: Tensor, y: Tensor, samples: int) -> Tensor:
        loss = self.likelihood.loss(self.model(x), y).sum() / samples
        loss.backward()
        return loss.detach()

    def _capture(self, x: Tensor, y: Tensor, samples: int) -> Tensor:
        assert self.preconditioning is not None
        with self.preconditioning.capture():
            output = self.model(x)
        losses = self.likelihood.loss(output, y)
        self.preconditioning.accumulate(losses, output)
        return losses.detach().sum() / samples

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
        train = evaluate(self.model, self.likelihood, data.train_inputs[:k], data.train_targets[:k])
        test = evaluate(self.model, self.likelihood, data.test_inputs[:k], data.test_targets[:k])
        names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
        return dict(zip(names, (*train, *test), strict=True))

    def state_memory_bytes(self) -> int:
        """Bytes that optimizer and method keep between updates, beyond the parameters."""
        method = self.preconditioning.method.state_dict() if self.preconditioning else {}
        return tensor_bytes([self.optimizer.state_dict(), method])

    def state_dict(self) -> dict[str, Any]:
        """Everything from which ``load_state_dict`` continues bit for bit."""
        cuda = self.device.type == "cuda"
        return self.ended_state_dict() | {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.last_epoch if self.scheduler else None,
            "preconditioning": self.preconditioning.state_dict() if self.preconditioning else None,
            "random": torch.get_rng_state(),
            "random_device": torch.cuda.get_rng_state(self.device) if cuda else None,
        }

    def ended_state_dict(self) -> dict[str, Any]:
        """What is left of a run that needs no continuation: the trained model."""
        clipped = {"clipped": self.clipping.clipped} if self.clipping else {}
        return {"step": self.step, "samples": self.samples, "model": self.model.state_dict(), **clipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``, and of ``ended_state_dict``."""
        self.step, self.samples = state["step"], state["samples"]
        self.model.load_state_dict(state["model"])
        if self.clipping is not None:
            self.clipping.clipped.copy_(state["clipped"])
        if "optimizer" not in state:
            return
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.last_epoch = state["scheduler"]
        if self.preconditioning is not None:
            self.preconditioning.load_state_dict(_to_device(state["preconditioning"], self.device))
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
