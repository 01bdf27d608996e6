"""The direction of a torch optimizer that is only asked: the step that a copy of it would take."""

import copy

import torch
from torch import nn

from kfbench.config.schema import Method
from kfbench.errors import UsageError, described
from kfbench.problems.likelihoods import Likelihood
from kfbench.updates.answers import Direction
from kfbench.updates.build import build_method


class Shadow:
    """A torch optimizer over a copy of the weights, fed with gradients of another trajectory.

    Its state (Adam's moments, momentum) is that of an optimizer which has seen these gradients from the
    first update on. Before every step its weights are those of the trajectory, so that its step is what it
    would do there. Weight decay that is ours and learning-rate schedules are not part of it.
    """

    def __init__(self, method: Method, model: nn.Module, likelihood: Likelihood) -> None:
        self._label, self._followed = method.label, list(model.parameters())
        copied = copy.deepcopy(model)
        self._copies = list(copied.parameters())
        # An optimizer draws no labels, so any seed will do.
        self._optimizer, _, _ = build_method(method, copied, 0, likelihood, lambda refresh: ())

    @torch.no_grad()
    def step(self, gradient: Direction) -> Direction:
        """The step against this gradient, over its learning rate (over 1 where there is none)."""
        for mine, followed in zip(self._copies, self._followed, strict=True):
            given = gradient.get(followed)
            mine.copy_(followed)
            # A copy, since an optimizer may change its gradients in place.
            mine.grad = None if given is None else given.clone()
        lr = self._optimizer.param_groups[0].get("lr")
        try:
            self._optimizer.step()
        except Exception as error:  # a user's optimizer may fail in any way
            raise UsageError(
                f"method {self._label!r} failed when it was asked for a step: {described(error)}"
            ) from error
        return {
            followed: None if mine.grad is None else (followed - mine) / (1.0 if lr is None else float(lr))
            for mine, followed in zip(self._copies, self._followed, strict=True)
        }
