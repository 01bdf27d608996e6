"""How many bytes an update must send, counted from the sizes of layers before anything is measured."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from kfbench.curvature.capture import capture
from kfbench.curvature.counts import LayerShape, triangle
from kfbench.layers.contract import Layer
from kfbench.layers.finding import find_layers
from kfbench.preconditioners.contract import Traits
from kfbench.updates.batches import Batch
from kfbench.updates.isolation import evaluating, forward_isolated
from kfbench.updates.preconditioning import Preconditioning
from kfbench.updates.ranks.sharing import rows_are_fewer
from kfbench.updates.ranks.synchronised import normalising
from kfbench.updates.schedule import Schedule
from kfbench.updates.trainee import Trainee


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process hands over: at every update, beside that where it observes, and where it refreshes.

    What a network moves for them is its own: a ring of p processes 2 (p - 1) / p times what is added up, for each.
    Where layers are captured behind batch normalisation, an update that verifies them takes a backward pass more.
    """

    update: int
    observe: int = 0
    refresh: int = 0

    def per_update(self, schedule: Schedule) -> float:
        """On average over a period."""
        return self.update + (schedule.S * self.observe + self.refresh) / schedule.T


def predicted_traffic(trainee: Trainee, batch: Batch) -> Traffic:
    """From the model's layers, as one forward of two samples shows them; it leaves no trace."""
    size = next(trainee.model.parameters()).element_size()
    # Of what normalises by the whole batch: a forward and a backward pass of each micro-batch.
    norms = len(trainee.micro_batches(*batch)) * sum(2 * m.num_features for m in normalising(trainee.model))
    # Beside gradients goes the loss.
    update = 1 + sum(p.numel() for p in trainee.model.parameters() if p.requires_grad) + 2 * norms
    if not isinstance(trainee.preconditioning, Preconditioning):
        return Traffic(update * size)
    traits = trainee.preconditioning.turn.traits
    # Labels go backward once more.
    labelled = traits.fisher in ("sampled", "full", "columns")
    observe = norms * traits.vectors(math.prod(trainee.data.output_shape)) if labelled else 0
    refresh = 0
    for shape, kept in _layers(trainee.model, batch, traits):
        sent = traits.numbers_sent(shape) if traits.numbers_sent is not None else {}
        update += sent.get("update", 0)
        d_out, d_in = shape.d_out, shape.d_in
        by_rows = trainee.run.micro_batch_size is None and not traits.needs_rows
        if by_rows and rows_are_fewer(len(batch[0]), (d_out, d_in), shape.positions):
            update += len(batch[0]) * (d_out + d_in) - d_out * d_in
        if not traits.of_gradients:
            # The factor of inputs in its compact form, where it has one; of symmetric matrices one half.
            outputs = traits.fisher != "none"
            observe += kept + outputs * triangle(shape.d_out) + sent.get("observe", 0)
        refresh += sent.get("refresh", 0)
        if trainee.ranks.placement is not None:
            refresh += sent.get("handed on", 0)
    return Traffic(update * size, observe * size, refresh * size)


def _layers(model: nn.Module, batch: Batch, traits: Traits) -> list[tuple[LayerShape, int]]:
    """Every layer's shape, and how many numbers its input factor is kept in."""
    layers: Mapping[str, Layer] = find_layers(model)[0]
    # By running averages, since others may not be asked.
    with evaluating(model), forward_isolated(model), torch.enable_grad(), capture(dict(layers)) as captured:
        model(batch[0][:2])
    found = []
    for name, calls in captured.calls.items():
        layer, x = layers[name], calls[0].input
        positions = sum(call.positions for call in calls)
        usual = positions == 1 and not layer.always_of_form  # formed from rows
        form = None if usual else layer.form(tuple(x.shape[1:]), layer.has_bias, traits.estimate)
        kept = triangle(layer.d_in) if form is None else form.measure(x[:1]).numel()
        blocks = () if form is None else form.input_blocks
        found.append((LayerShape(len(x), layer.d_out, layer.d_in, positions=positions, input_blocks=blocks), kept))
    return found
