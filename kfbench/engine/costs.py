"""What an update must cost by its multiply-adds, and where its measured time goes."""

import time
from collections.abc import Callable
from typing import Any

import torch

from kfbench.curvature import counts
from kfbench.curvature.capture import capture
from kfbench.curvature.counts import LayerShape
from kfbench.curvature.layers import find_layers
from kfbench.engine.batches import Batch
from kfbench.engine.clock import synchronise
from kfbench.engine.contestants import TraineeContestant
from kfbench.engine.trainee import Trainee

# The tasks of Martens & Grosse 2015, appendix G, in the order of an update.
TASKS = ("forward and backward", "label backward", "statistics", "inverse", "apply", "step")


def layer_shapes(trainee: Trainee, batch: Batch) -> list[LayerShape]:
    """The shapes of the layers that can be captured, in the order in which they are called."""
    layers, _ = find_layers(trainee.model)
    with capture(layers) as captured:
        trainee.model(batch[0])
    shapes: list[LayerShape] = []
    for name in captured.calls:
        samples, positions, d_in = captured.inputs(name).shape
        shapes.append(LayerShape(samples * positions, layers[name].d_out, d_in, not shapes, positions))
    return shapes


def predicted_tasks(trainee: Trainee, batch: Batch) -> dict[str, float] | None:
    """Multiply-adds per update by task, amortised over T and S; None where the method does not count."""
    shapes = layer_shapes(trainee, batch)
    tasks = dict.fromkeys(TASKS, 0.0)
    tasks["forward and backward"] = counts.forward_backward(shapes)
    preconditioning = trainee.preconditioning
    if preconditioning is None:
        return tasks
    method: Any = preconditioning.method
    count: Callable[[LayerShape, int], dict[str, float]] | None = getattr(method, "multiply_adds", None)
    if count is None:
        return None
    vectors = {"none": 0, "empirical": 1, "sampled": 1, "full": trainee.data.outputs}[method.fisher]
    per_layer = [count(shape, vectors) for shape in shapes]
    observed, refreshed = preconditioning.schedule.S / preconditioning.schedule.T, 1 / preconditioning.schedule.T
    backward = counts.label_backward(shapes, vectors) if method.fisher in ("sampled", "full") else 0.0
    tasks["label backward"] = observed * backward
    tasks["statistics"] = observed * sum(layer["statistics"] for layer in per_layer)
    tasks["inverse"] = refreshed * sum(layer["refresh"] for layer in per_layer)
    tasks["apply"] = sum(layer["apply"] for layer in per_layer)
    if trainee.clipping:
        tasks["step"] = sum(shape.product for shape in shapes)  # gradient and direction, multiplied
    return tasks


class _Stopwatch:
    """Wraps functions so that their time is added up, synchronised around each call."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(TASKS, 0.0)
        self._device = device

    def around(self, task: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[task] += self._now() - began

        return timed

    def _now(self) -> float:
        synchronise(self._device)
        return time.perf_counter()


def measured_tasks(contestant: TraineeContestant) -> dict[str, float]:
    """Seconds per update by task over one period: a pass of its own, since looking costs time.

    Forward and backward is what remains of the whole; with the empirical Fisher the only backward
    counts as label backward.
    """
    trainee, watch = contestant.trainee, _Stopwatch(contestant.trainee.device)
    wrapped: list[tuple[Any, str, str]] = [(trainee.optimizer, "step", "step")]
    if trainee.preconditioning is not None:
        method = trainee.preconditioning.method
        wrapped += [
            (trainee.preconditioning, "_observed", "label backward"),
            (method, "observe", "statistics"),
            (method, "refresh", "inverse"),
            (method, "apply", "apply"),
            (trainee.preconditioning, "_scale", "step"),
        ]
    contestant.prepare()
    for owner, name, task in wrapped:
        setattr(owner, name, watch.around(task, getattr(owner, name)))
    try:
        whole = contestant.run(contestant.period)
    finally:
        for owner, name, _ in wrapped:
            delattr(owner, name)  # the class's own comes back
    watch.seconds["forward and backward"] = whole - sum(watch.seconds.values())
    return {task: seconds / contestant.period for task, seconds in watch.seconds.items()}
