"""What an update must cost by its multiply-adds, and where its measured time goes."""

import time
from collections.abc import Callable
from typing import Any

import torch

from kfbench.curvature import counts
from kfbench.curvature.capture import capture
from kfbench.curvature.counts import LayerShape
from kfbench.curvature.layers import find_layers
from kfbench.updates.batches import Batch
from kfbench.updates.build import vectors_of
from kfbench.updates.clock import synchronise
from kfbench.updates.timed import TraineeContestant
from kfbench.updates.trainee import Trainee

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
    schedule = preconditioning.schedule
    observed, refreshed = schedule.S / schedule.T, 1 / schedule.T
    points = preconditioning.points_of_a_refresh(len(batch[0]))
    vectors = vectors_of(preconditioning.method.fisher, trainee.data.outputs)
    counted = _counts(preconditioning.method, shapes, vectors, points)
    if counted is None:
        return None
    seen = shapes
    if preconditioning.has_own_points:
        observed, seen = refreshed, [shape.with_points(points) for shape in shapes]
        tasks["forward and backward"] += refreshed * sum(shape.product for shape in seen)
    if preconditioning.has_own_points or preconditioning.method.fisher in ("sampled", "full"):
        tasks["label backward"] = observed * counts.label_backward(seen, vectors)
    tasks["statistics"] = observed * counted["statistics"]
    tasks["inverse"] = refreshed * counted["refresh"]
    to_same_batch = refreshed if preconditioning.order == "same" else 0.0
    apart = counted["apply"]
    tasks["apply"] = apart + to_same_batch * (counted.get("apply to the same batch", apart) - apart)
    if trainee.clipping:
        tasks["step"] = sum(shape.product for shape in shapes)  # gradient and direction, multiplied
    return tasks


def _counts(method: Any, shapes: list[LayerShape], vectors: int, points: int) -> dict[str, float] | None:
    """The method's own counts over all layers; None where it has none."""
    if of_network := getattr(method, "multiply_adds_network", None):
        return of_network(shapes, vectors, points)
    if (of_layer := getattr(method, "multiply_adds", None)) is None:
        return None
    per_layer = [of_layer(shape, vectors) for shape in shapes]
    return {task: sum(layer[task] for layer in per_layer) for task in ("statistics", "refresh", "apply")}


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
