"""What an update must cost by its multiply-adds, and where its measured time goes."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from kfbench.curvature import counts
from kfbench.curvature.capture import capture
from kfbench.curvature.counts import LayerShape
from kfbench.layers.estimate import EXACT, Estimate
from kfbench.layers.finding import find_layers
from kfbench.preconditioners.contract import Traits
from kfbench.step_rules.closure import ClosureCalls
from kfbench.updates.batches import Batch
from kfbench.updates.spent import synchronise
from kfbench.updates.timed import TraineeContestant
from kfbench.updates.trainee import Trainee

# The tasks of Martens & Grosse 2015, appendix G, in the order of an update.
TASKS = ("forward and backward", "label backward", "statistics", "inverse", "apply", "step")

# Products of two tensors of samples; a backward pass has two for each.
_OF_ACTIVATIONS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)


def layer_shapes(trainee: Trainee, batch: Batch, estimate: Estimate = EXACT) -> list[LayerShape]:
    """The shapes of the layers that can be captured, in the order in which they are called."""
    layers, _ = find_layers(trainee.model)
    with capture(layers) as captured:
        trainee.model(batch[0])
    shapes: list[LayerShape] = []
    for name, calls in captured.calls.items():
        layer, positions = layers[name], sum(call.positions for call in calls)
        form = layer.form(tuple(calls[0].input.shape[1:]), layer.has_bias, estimate)
        factor = None if form is None else len(calls) * form.multiply_adds(1)
        blocks = () if form is None else form.input_blocks
        rows = len(batch[0]) * positions
        counted = estimate.count(len(batch[0]))
        observed = None if estimate == EXACT else counted * (1 if estimate.sharing == "reduce" else positions)
        shape = LayerShape(rows, layer.d_out, layer.d_in, not shapes, positions, factor, blocks, observed)
        shapes.append(replace(shape, looked_up=layer.looks_up))
    return shapes


def products_of_activations(trainee: Trainee, batch: Batch) -> float:
    """Multiply-adds of a forward pass in which no weight has part: those of attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        trainee.model(batch[0])
    operations = counter.get_flop_counts()["Global"]
    return sum(flops for operation, flops in operations.items() if operation in _OF_ACTIVATIONS) / 2


def predicted_tasks(trainee: Trainee, batch: Batch) -> dict[str, float] | None:
    """Multiply-adds per update by task, amortised over T and S; None where the method does not count."""
    if isinstance(trainee.rule, ClosureCalls):  # known only once it has taken its steps
        return None
    turn = trainee.preconditioning.turn
    shapes = layer_shapes(trainee, batch, turn.traits.estimate)
    observed, refreshed = turn.schedule.S / turn.schedule.T, 1 / turn.schedule.T
    points = turn.points_of_a_refresh(len(batch[0]))
    vectors = turn.traits.vectors(math.prod(trainee.data.output_shape))
    counted = _counts(turn.traits, shapes, vectors, points)
    if counted is None:
        return None
    tasks = dict.fromkeys(TASKS, 0.0)
    seen, points_seen = shapes, len(batch[0])
    between = products_of_activations(trainee, batch) / points_seen  # of one sample
    tasks["forward and backward"] = counts.forward_backward(shapes) + 3 * between * points_seen
    # Its own points go forward once more, but backward for their labels alone.
    # So does a part of the batch that is observed apart.
    if part := trainee.method.options.get("tau1"):
        points_seen = max(1, round(part * len(batch[0])))
        seen = [shape.with_points(points_seen) for shape in shapes]
        tasks["forward and backward"] += observed * (counts.forward(seen) + between * points_seen)
        counted |= {"statistics": (_counts(turn.traits, seen, vectors, points) or counted)["statistics"]}
    if turn.has_own_points:
        observed, points_seen = refreshed, points
        seen = [shape.with_points(points) for shape in shapes]
        tasks["forward and backward"] += refreshed * (counts.forward(seen) + between * points)
    if turn.has_own_points or turn.traits.fisher in ("sampled", "full"):
        backward = counts.label_backward(seen, vectors) + vectors * 2 * between * points_seen
        tasks["label backward"] = observed * backward
    tasks["statistics"] = observed * counted["statistics"]
    tasks["inverse"] = refreshed * counted["refresh"]
    # Only the update that refreshes applies to the batch it has just observed.
    to_same_batch = refreshed if turn.order == "same" else 0.0
    apart = counted["apply"]
    tasks["apply"] = apart + to_same_batch * (counted.get("apply to the same batch", apart) - apart)
    rule, tries = trainee.rule, trainee.rule.candidates_an_update
    if trainee.preconditioning.T is not None:
        tasks["inverse"] += tries * counted["refresh"]
        tasks["apply"] += tries * counted["apply"]
        tasks["step"] += rule.inner_products * counts.forward(shapes)
    part = trainee.method.options.get("tau2") or 1.0
    tasks["step"] += rule.multiply_adds(shapes, part, between * len(batch[0]))
    return tasks


def _counts(traits: Traits, shapes: list[LayerShape], vectors: int, points: int) -> dict[str, float] | None:
    """The method's own counts over all layers; None where it has none."""
    if traits.multiply_adds_network is not None:
        return traits.multiply_adds_network(shapes, vectors, points)
    if traits.multiply_adds is None:
        return None
    per_layer = [traits.multiply_adds(shape, vectors) for shape in shapes]
    return {task: sum(layer[task] for layer in per_layer) for task in ("statistics", "refresh", "apply")}


def measured_tasks(contestant: TraineeContestant) -> dict[str, float]:
    """Seconds per update by task over one period: a pass of its own, since looking costs time.

    Forward and backward is what remains of the whole; with the empirical Fisher the only backward
    counts as label backward.
    """
    seconds, device = dict.fromkeys(TASKS, 0.0), contestant.trainee.device

    @contextmanager
    def timed(task: str) -> Iterator[None]:
        synchronise(device)
        began = time.perf_counter()
        try:
            yield
        finally:
            synchronise(device)
            seconds[task] += time.perf_counter() - began

    contestant.prepare()
    with contestant.trainee.watch(timed):
        whole = contestant.run(contestant.period)
    seconds["forward and backward"] = whole - sum(seconds.values())
    return {task: spent / contestant.period for task, spent in seconds.items()}
