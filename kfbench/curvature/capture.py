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
    """``with capture(layers) as captured:`` around a training forward; the hooks end with the block.

    ``unwritten``: layers whose outputs are known not to be changed in place; it learns of those that are not.
    """

    def __init__(
        self, layers: dict[str, Layer], plain: list[nn.Parameter] | None = None, unwritten: set[str] | None = None
    ) -> None:
        self.captured = Captured(dict(layers), plain or [], set() if unwritten is None else unwritten)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Captured:
        for layer in self.captured.layers.values():
            hook = self._make_hook(layer)
            # A model may give the layer its input by keyword.
            self._handles.append(layer.module.register_forward_hook(hook, with_kwargs=True))
        return self.captured

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _make_hook(self, layer: Layer) -> Callable[..., Tensor | None]:
        calls, name, width = self.captured.calls, layer.name, layer.d_out * layer.groups

        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
            if not output.requires_grad:  # evaluation, or under no_grad
                self.captured.without_graph.add(name)
                return None
            replaced = None
            if output._is_view():
                # An in-place operation on a view would rewrite its edge. A copy costs time, so one is made until the
                # first losses show that there is no such operation.
                if name not in self.captured.unwritten:
                    output = replaced = output.clone()
                self.captured.outputs.append((name, output, output._version))
            x = args[0] if args else kwargs["input"]
            # A layer used twice has two. Detaching keeps memory and version counter, so a later change is noticed.
            samples, positions = output.shape[0], output.numel() // max(1, output.shape[0] * width)
            came_from = get_gradient_edge(x) if x.requires_grad else None
            call = Call(x.detach(), x._version, samples, get_gradient_edge(output), positions, came_from)
            calls.setdefault(name, []).append(call)
            return replaced  # None leaves what the layer returned

        return hook
