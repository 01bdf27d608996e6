"""Loss and accuracy over many samples, and one update's batch looked at again: forwards that leave no trace."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kfbench.problems.datasets import Dataset
from kfbench.problems.likelihoods import Likelihood
from kfbench.step_rules.contract import Vector
from kfbench.step_rules.tangents import fisher_products, tangents
from kfbench.updates.isolation import evaluating, forward_isolated
from kfbench.updates.ranks.sharing import ALONE, Ranks

# Large enough for efficient products, small enough that activations stay in tens of megabytes: those of convolutions,
# which have weights of more than two dimensions, are images of many channels.
_BATCH, _BATCH_OF_IMAGES, _TOKENS = 2000, 200, 16_384
CHANGES_ITS_INPUT = "changes its input in place, which is the data set: let its first layer make a new tensor"


def evaluate(
    model: nn.Module, likelihood: Likelihood, inputs: Tensor, targets: Tensor, ranks: Ranks = ALONE
) -> tuple[float, float | None]:
    """(mean loss, accuracy or None), in evaluation mode; sums are kept in float64 on the device.

    Each of several processes takes a part of the samples, and all get the same answer.
    ValueError for a model that changes its input in place; the samples stay as they are.
    """
    loss = torch.zeros((), dtype=torch.float64, device=inputs.device)
    correct: Tensor | None = torch.zeros((), dtype=torch.int64, device=inputs.device)
    size, samples = _batch_size(model, inputs), len(inputs)
    rows, counted = ranks.rows(samples)
    inputs, targets = inputs[rows], targets[rows]
    labels = 1  # of a sample
    with torch.no_grad(), evaluating(model):
        for start in range(0, len(inputs), size):
            target = targets[start : start + size]
            batch = inputs[start : start + size].clone()  # not a view: a model may write into what it is given
            before = batch._version
            output = model(batch)
            if batch._version != before:
                raise ValueError(f"the model, a {type(model).__name__}, {CHANGES_ITS_INPUT}")
            loss += likelihood.loss(output, target).sum(dtype=torch.float64)
            right = likelihood.correct(output, target)
            correct = None if right is None or correct is None else correct + right.sum()
            labels = 1 if right is None else right[0].numel()
    loss, *rest = ranks.sums([figure * (counted > 0) for figure in (loss, correct) if figure is not None])
    # Read only now: each of these waits for the device.
    accuracy = rest[0].item() / (samples * labels) if rest else None
    return loss.item() / samples, accuracy


def on_both_sets(
    model: nn.Module, likelihood: Likelihood, data: Dataset, samples: int | None, ranks: Ranks
) -> Iterator[float | None]:
    """Loss and accuracy on the training set, then on the test set, or on their first ``samples``."""
    yield from evaluate(model, likelihood, data.train_inputs[:samples], data.train_targets[:samples], ranks)
    yield from evaluate(model, likelihood, data.test_inputs[:samples], data.test_targets[:samples], ranks)


def _batch_size(model: nn.Module, inputs: Tensor) -> int:
    """Samples of one forward."""
    if not inputs.is_floating_point():  # tokens, each with a row of its own in every layer
        return max(1, _TOKENS // inputs[0].numel())
    return _BATCH_OF_IMAGES if any(p.dim() > 2 for p in model.parameters()) else _BATCH


@runtime_checkable
class _HasModes(Protocol):
    """An optimizer that trains other weights than those it is to be judged by, as schedule-free ones do."""

    def train(self) -> None: ...

    def eval(self) -> None: ...


@contextmanager
def at_weights_to_judge(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within the block the model has the weights that its optimizer defines; then it trains on."""
    if not isinstance(optimizer, _HasModes):
        yield
        return
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()


def running_average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """Of its weights from the first update on, exponential (Polyak & Juditsky 1992; Martens & Grosse 2015)."""
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


class SameMasks:
    """What the coming forward draws, to be drawn once more: made before it."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model, self._device = model, device
        self._random = torch.get_rng_state()
        self._random_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def again(self) -> Iterator[None]:
        """Forwards within the block meet the masks of the first one, and leave no trace in buffers or random states."""
        with forward_isolated(self._model):
            torch.set_rng_state(self._random)
            if self._random_device is not None:
                torch.cuda.set_rng_state(self._random_device, self._device)
            yield


class Repeated:
    """Loss and gradient of one batch, as often as an optimizer's step asks for them by ``closure``.

    ``evaluate`` leaves the gradients and returns the mean loss []. The first time it leaves its traces in buffers and
    random states, as the forward of any update; later ones meet the same masks and leave none. ``counted`` is called
    every time; ``record`` [] takes the first ``loss``.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        evaluate: Callable[[], Tensor],
        counted: Callable[[], None],
        record: Tensor | None,
    ) -> None:
        self._evaluate, self._counted, self._record = evaluate, counted, record
        self._masks = SameMasks(model, device)
        self.loss: Tensor | None = None

    @torch.enable_grad()
    def closure(self) -> Tensor:
        """The mean loss [] at the weights as they are, a tensor of its own."""
        self._counted()
        if self.loss is not None:
            with self._masks.again():
                return self._evaluate()
        self.loss = self._evaluate()
        if self._record is not None:
            self._record.copy_(self.loss)
        return self.loss.clone()


class Seen:
    """The batch [N, ...] of the coming step, for rules that look at it again: with the masks that it met.

    Made before its forward, whose mean ``loss`` [] is then told.
    """

    def __init__(self, model: nn.Module, likelihood: Likelihood, parts: list[tuple[Tensor, Tensor]]) -> None:
        self.model, self.likelihood, self.parts = model, likelihood, parts
        self.samples = sum(len(x) for x, _ in parts)
        self.loss: Tensor | None = None
        self._masks = SameMasks(model, parts[0][0].device)

    @contextmanager
    def _again(self) -> Iterator[None]:
        with self._masks.again(), torch.no_grad():
            yield

    def fisher(self, vectors: Sequence[Vector], part: float) -> Tensor:
        """``v_i' F v_j`` [V, V], with the exact Fisher of the first ``part`` of the batch."""
        left = count = max(1, round(part * self.samples))
        total = torch.zeros((), device=self.parts[0][0].device)
        with self._again():
            for x, _ in self.parts:
                if left <= 0:
                    break
                output, *moved = tangents(self.model, x[:left], vectors)
                total = total + fisher_products(self.likelihood, output, moved)
                left -= len(x)
        return total / count

    def losses(self) -> tuple[Tensor, Tensor]:
        """Its mean loss [] before the step and as the weights are now."""
        assert self.loss is not None
        after = torch.zeros_like(self.loss)
        with self._again():
            for x, y in self.parts:
                after = after + self.likelihood.loss(self.model(x), y).sum() / self.samples
        return self.loss, after
