"""Capture: layer inputs and output-gradient edges of one training forward, and what follows from them.

The model is the user's own and stays as it is: hooks live only inside the ``with`` block. What is
kept of an output is its edge in the graph, never the tensor: after an in-place activation,
differentiating to the tensor would be silently wrong.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils.hooks import RemovableHandle

from kfbench.curvature.backward import Call
from kfbench.curvature.captured import Captured
from kfbench.layers.contract import Layer


class capture:
    """``with capture(layers) as captured:`` around a training forward; the hooks end with the block."""

    def __init__(self, layers: dict[str, Layer], plain: list[nn.Parameter] | None = None) -> None:
        self.captured = Captured(dict(layers), plain or [])
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Captured:
        for layer in self.captured.layers.values():
            hook = self._make_hook(layer.name, layer.d_out * layer.groups)
            # A model may give the layer its input by keyword.
            self._handles.append(layer.module.register_forward_hook(hook, with_kwargs=True))
        return self.captured

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _make_hook(self, name: str, width: int) -> Callable[..., Tensor | None]:
        calls = self.captured.calls

        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
            if not output.requires_grad:  # evaluation, or under no_grad
                self.captured.without_graph.add(name)
                return None
            replaced = None
            if output._is_view():  # an in-place operation on a view would rewrite its edge
                output = replaced = output.clone()
            x = args[0] if args else kwargs["input"]
            # A layer used twice has two. Detaching keeps memory and version counter, so a later change is noticed.
            samples, positions = output.shape[0], output.numel() // max(1, output.shape[0] * width)
            came_from = get_gradient_edge(x) if x.requires_grad else None
            call = Call(x.detach(), x._version, samples, get_gradient_edge(output), positions, came_from)
            calls.setdefault(name, []).append(call)
            return replaced  # None leaves what the layer returned

        return hook
