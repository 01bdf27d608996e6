"""What is trained, by what: one seed's model, optimizer and preconditioning, and one update of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kfbench.config.schema import Config
from kfbench.problems.datasets import Dataset
from kfbench.problems.sequences.characters import bits_per_character
from kfbench.results.records import BITS_COLUMNS
from kfbench.step_rules.building import build_late_momentum, build_rule, build_scheduler
from kfbench.step_rules.closure import ClosureCalls
from kfbench.step_rules.contract import Proposed, Taken, Vector
from kfbench.step_rules.rest import moved
from kfbench.updates.batches import (
    LABELS,
    Batch,
    fisher_batches,
    growing_batches,
    stream_seed,
    training_batches,
    warmup_batches,
)
from kfbench.updates.build import (
    build_likelihood,
    build_method,
    build_network,
    check_amp,
    check_chain,
    check_turn,
    on_device,
    training_forward,
)
from kfbench.updates.evaluation import Repeated, Seen, at_weights_to_judge, on_both_sets, running_average
from kfbench.updates.ranks.sharing import ALONE, Ranks, Several
from kfbench.updates.schedule import total_updates
from kfbench.updates.spent import tensor_bytes
from kfbench.updates.turn import Turn, Watch

_JUDGED = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
Inner = Callable[[Vector | None], Tensor]  # gradient'vector []


class Trainee:
    """One seed of one method. Equal configuration and seed give bit-equal updates."""

    def __init__(self, config: Config, data: Dataset, seed: int, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.run, self.method, self.data, self.seed, self.device = config.run, config.methods[0], data, seed, device
        self.eval_samples = config.problem.eval_samples
        self.total, self.per_epoch = total_updates(config.run, len(data.train_inputs))
        self.likelihood = build_likelihood(config.problem)
        self.model = build_network(config.problem, config.run, data, device, seed)
        self.optimizer, self.preconditioning, self.weight_decay = build_method(
            self.method, self.model, stream_seed(seed, LABELS), self.likelihood, self._fisher_batches
        )
        made_for = self.method, self.optimizer
        self.scheduler = build_scheduler(*made_for, self.total, self.per_epoch, self.run.quick)
        self.rule = build_rule(self.method, self.model, self.total, device, self.lr)
        check_amp(self.run, device, self.rule, self.method.opt)
        self._forward = training_forward(self.run, device)
        self.preconditioning.turn.l2 = self.rule.l2
        check_turn(self.method, self.preconditioning.turn, self.run, data)
        check_chain(self.method, self.preconditioning, data)
        self.late_momentum = build_late_momentum(*made_for, self.per_epoch)
        self._around: Watch = lambda task: nullcontext()
        self.average = running_average(self.model, self.method.options.get("average"))
        averaged = () if self.average is None else tuple(f"averaged_{name}" for name in _JUDGED)
        self.further_columns = (*averaged, *(BITS_COLUMNS if data.positions else ()))  # of epochs.csv
        if self.method.options.get("tau1") is not None:
            self.preconditioning.turn.observe_apart(self._part)
        self.ranks = ranks
        if isinstance(ranks, Several):
            self.preconditioning.over_processes(ranks)
        self.step = self.samples = 0
        self._current: Batch | None = None  # of the coming step
        self._seen: Seen | None = None  # the batch of the coming step, for rules that look at it

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

    def batches(self) -> Iterator[Batch]:
        """The training batches from the coming update on, without end."""
        if self.run.batch_growth is not None:
            return growing_batches(self.data, self.run.batch_size, self.run.batch_growth, self.seed, self.step)
        return training_batches(self.data, self.run.batch_size, self.seed, self.step)

    def warm_up(self) -> None:
        """Fill the statistics of a preconditioned method before its first update."""
        count = self.method.options.get("warmup_batches", 0)
        batches = warmup_batches(self.data, self.run.batch_size, self.seed, count)
        with self.ranks.training_forward():
            self.preconditioning.warm_up(self.ranks.each(batches))

    def _part(self) -> list[Batch]:
        """The first ``tau1`` of the batch, for statistics."""
        assert self._current is not None
        x, y = self._current
        count = max(1, round(self.method.options["tau1"] * len(x)))
        return self.micro_batches(x[:count], y[:count])

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
        if isinstance(self.rule, ClosureCalls):
            return self._step_by_closure(self.rule, x, y, record)
        loss = self.backward(x, y)
        if record is not None:
            record.copy_(loss)
        self.take_step(len(x))
        return loss

    def _step_by_closure(self, calls: ClosureCalls, x: Tensor, y: Tensor, record: Tensor | None) -> Tensor:
        """One step that evaluates the batch as often as it wants to, always with the masks of the first time."""
        calls.begin()
        batch = Repeated(self.model, self.device, partial(self.backward, x, y), calls.count, record)
        self._move(len(x), batch.closure)
        if batch.loss is None:
            raise RuntimeError(f"{type(self.optimizer).__name__} never called the closure that its step takes")
        return batch.loss

    def backward(self, x: Tensor, y: Tensor) -> Tensor:
        """Forward and backward of one batch, by micro-batches; its mean loss."""
        self.preconditioning.begin()
        self._current = x, y
        parts = self.micro_batches(x, y)
        # Before the forward, which draws its masks.
        self._seen = Seen(self.model, self.likelihood, parts) if self.rule.looks_at_batch else None
        total: Tensor | None = None
        with self.ranks.by_itself():
            for xs, ys in self.ranks.shares(parts):
                with self.preconditioning.capture(), self.ranks.training_forward():
                    output = self._forward(self.model, xs)
                losses = self.likelihood.loss(output, ys)
                part = self.ranks.part(losses, len(x))  # not len(xs): the parts add up to the mean over the batch
                self.preconditioning.take_in(losses, output, part)
                total = part.detach() if total is None else total + part.detach()
        assert total is not None  # a batch has one part at least, and each process a share of it
        total = self.ranks.sums([total])[0]
        if self._seen is not None:
            self._seen.loss = total
        return total

    def take_step(self, samples: int) -> None:
        """Turn gradients into directions, where there is a method, and let the optimizer step."""
        self.form_direction()
        self._move(samples)

    def form_direction(self) -> None:
        """Leave in every ``.grad`` what the optimizer is to step along."""
        candidates = self.rule.candidates(self.damping, self.step) if self.damping is not None else ()
        self.preconditioning.finish(self._redirect, candidates, self._rate)

    def _redirect(self, direction: Vector, inner: Inner) -> Vector | None:
        with self._around("step"):
            return self.rule.redirect(self._proposed(direction, inner))

    def _rate(self, direction: Vector, inner: Inner) -> Tensor:
        with self._around("step"):
            return self.rule.judge(self._proposed(direction, inner))

    def _proposed(self, direction: Vector, inner: Inner) -> Proposed:
        seen, part = self._seen, self.method.options.get("tau2") or 1.0
        fisher = None if seen is None else partial(seen.fisher, part=part)
        return Proposed(direction, inner, self.lr, self.step, fisher)

    def _move(self, samples: int, closure: Callable[[], Any] | None = None) -> None:
        if self.late_momentum is not None:
            self.late_momentum.set(self.step)
        self._decay_weights()  # before the step and before lr falls: decoupled, with the lr of this very step
        with self._around("step"):
            self.optimizer.step() if closure is None else self.optimizer.step(closure)
        if self.scheduler is not None:
            self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        damping = self.rule.damping(Taken(self.damping, self.step, None if self._seen is None else self._seen.losses))
        self._current = self._seen = None
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
            for lr, trained in moved(self.optimizer):  # frozen ones keep their values
                torch._foreach_mul_(trained, 1 - lr * self.weight_decay)

    def evaluate(self) -> dict[str, float | None]:
        """Losses and accuracies on training and test set, or on their first ``eval_samples``."""
        with at_weights_to_judge(self.optimizer):
            figures = [*on_both_sets(self.model, self.likelihood, self.data, self.eval_samples, self.ranks)]
        if self.average is not None:
            # Before any update there is nothing to average.
            model = self.average.module if self.step else self.model
            figures += on_both_sets(model, self.likelihood, self.data, self.eval_samples, self.ranks)
        judged = dict(zip((*_JUDGED, *self.further_columns), figures, strict=False))  # bits follow from these
        return judged | bits_per_character(judged, self.data.positions)

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        if self.run.batch_growth is not None:
            return self.samples / len(self.data.train_inputs)
        return self.step / self.per_epoch

    def state_memory_bytes(self) -> int:
        """Bytes that optimizer and method keep between updates, beyond the parameters."""
        return tensor_bytes([self.optimizer.state_dict(), self.preconditioning.turn.method.state_dict()])

    def state_dict(self) -> dict[str, Any]:
        """Everything from which ``load_state_dict`` continues bit for bit."""
        return self._progress() | {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.last_epoch if self.scheduler else None,
            "preconditioning": self.preconditioning.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "random": torch.get_rng_state(),
            "random_device": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def ended_state_dict(self) -> dict[str, Any]:
        """What is left of a run that needs no continuation: the trained model, at the weights that were judged."""
        with at_weights_to_judge(self.optimizer):
            # Copies: the optimizer may put others in their place.
            weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        return {**self._progress(), "model": weights}

    def _progress(self) -> dict[str, Any]:
        return {"step": self.step, "samples": self.samples, **self.rule.state_dict()}

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
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.preconditioning.load_state_dict(on_device(state["preconditioning"], self.device))
        # Last, after whatever a user's method draws while it is built or loaded.
        torch.set_rng_state(state["random"].cpu())
        if state["random_device"] is not None:
            torch.cuda.set_rng_state(state["random_device"].cpu(), self.device)
