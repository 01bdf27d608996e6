"""Which layers are preconditioned, verified against autograd at every new kind of forward; the rest stay plain."""

import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kfbench.curvature.captured import Captured
from kfbench.curvature.chain import chain
from kfbench.curvature.gradient import LayerGradient
from kfbench.layers.contract import Layer
from kfbench.layers.finding import batch_mixing, find_layers

# How far a captured gradient may lie from autograd's, relative to the norm of the same sums of absolute values: what
# rounding allows however much the sums cancel, as behind batch norm, where their result is tiny.
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}
_LOOSE_ROUNDING = 4e-3  # half precisions, and TF32, which accelerators may use for convolutions alone

_CHUNK = 2**22  # numbers in the rows that are looked at together
_NAMED = 3  # modules that a warning names for one reason

_HIDDEN = "its forward was not called through the module"
_WITHOUT_GRAPH = "its forward ran without a graph"

# One kind of forward of a layer: how often it is called, how often each of its parameters is used in the graph.
_Kind = tuple[int, ...]


class Coverage:
    """The layers whose captured gradient is autograd's; all methods of one captured forward share it.

    ``left_out`` maps the names of all other modules with parameters to the reason. ``per_sample``: a
    method takes rows for gradients of single samples, so whatever mixes them is worth a warning. ``chain``: a method
    knows chains of layers alone, so that anything else is a ValueError.
    """

    def __init__(self, model: nn.Module, per_sample: bool = False, chain: bool = False) -> None:
        self.model, self.per_sample, self.chain = model, per_sample, chain
        self.layers, self.left_out = find_layers(model)
        self._trainable, self._parts = self._fingerprint(), _parts(self.layers)
        self._verified: dict[str, set[_Kind]] = {}
        self._plain: list[nn.Parameter] | None = None  # as long as the layers are these
        self.unwritten: set[str] = set()  # layers whose outputs were not changed in place
        self._named: set[str] = set()
        self._warned_of_mixing = False
        self.recursion = False  # whether some method hands its Fisher from layer to layer
        if not self.layers:
            raise ValueError(f"no layer of the model can be preconditioned: {_listed(self.left_out)}")

    def _fingerprint(self) -> tuple[tuple[int, bool], ...]:
        return tuple((id(p), p.requires_grad) for p in self.model.parameters())

    def plain_parameters(self) -> list[nn.Parameter]:
        """Those of no captured layer."""
        if self._plain is None:  # a walk over all modules, which each update would take several times
            self._plain = self.uncovered()
        return [p for p in self._plain if p.requires_grad]

    def uncovered(self) -> list[nn.Parameter]:
        """Parameters of no captured layer as the model is now, frozen ones included."""
        covered = {id(p) for layer in self.layers.values() for p in layer.parameters}
        return [p for p in self.model.parameters() if id(p) not in covered]

    def keep(self, names: Collection[str]) -> None:
        """As an interrupted run had verified it."""
        for name in self.layers.keys() - set(names):
            self.left_out[name] = "it was left out before"
        self.layers, self._plain = {name: self.layers[name] for name in names}, None

    def look_again(self) -> set[str]:
        """Find the layers anew where parameters were frozen, thawed or replaced; returns those that came or changed."""
        now = self._fingerprint()
        if now == self._trainable:
            return set()
        before, self._trainable, self._plain = self._parts, now, None
        found, self.left_out = find_layers(self.model)
        # What was found out about a layer still holds where it is the same one.
        known, self.layers = self.layers.keys(), found
        self._parts = _parts(found)
        replaced = sorted(name for name in known if name in found and before[name] != self._parts[name])
        changed = {*replaced, *(found.keys() ^ known)}
        self.unwritten -= changed
        for name in changed:
            self._verified.pop(name, None)
        if replaced:
            warnings.warn(f"layers {', '.join(replaced)} changed, so their curvature starts anew", stacklevel=4)
        return changed

    def start_anew(self) -> None:
        """Believe nothing that was verified: the losses of what comes may hold more."""
        self._verified.clear()

    def verify(self, captured: Captured, losses: Tensor, output: Tensor) -> None:
        """Leave out every layer whose captured gradient is not autograd's; warn of those not named before.

        This finds, whatever the reason, weights that are also used past the layer's own forward
        (tied weights, penalties inside the loss, modules that bypass hooks) and batches that do
        not lie along the first dimension. It costs a backward pass, and is done where a layer is called, or its
        parameters are used in the graph, in a way that was not seen before; what tells is cheap. ValueError where a
        chain of layers is wanted and there is none.
        """
        uses, doubtful = captured.reach(losses), []
        for name, layer in self.layers.items():
            calls = captured.calls.get(name, [])
            kind = (len(calls), *(uses[id(p)] for p in layer.parameters))
            whole = all(call.input.shape[0] == len(losses) and _is_usual(layer, call) for call in calls)
            # A layer that takes no part in this batch at all is skipped, not wrong.
            took_part = any(kind) or name in captured.without_graph
            if took_part and not (whole and kind in self._verified.get(name, ())):
                doubtful.append((name, kind))
        if doubtful:
            self._verify(captured, losses, doubtful, uses)
            if self.recursion:
                captured.check_chain(output)
        elif not self._named:
            self._warn()
        # A layer that is skipped is nothing to verify, but leaves no chain.
        if self.chain and (doubtful or not all(captured.used(name) for name in self.layers)):
            chain(captured, losses, self.layers)

    def _verify(
        self, captured: Captured, losses: Tensor, doubtful: list[tuple[str, _Kind]], uses: Mapping[int, int]
    ) -> None:
        wrong = _why_wrong([self.layers[name] for name, _ in doubtful], captured, losses, uses)
        # A parameter is either captured or plain: groups of one module are left out together.
        modules = {id(self.layers[name].module): why for name, why in wrong.items()}
        wrong |= {name: modules[id(m)] for name, _ in doubtful if id(m := self.layers[name].module) in modules}
        for name, kind in doubtful:
            if name in wrong:
                self.left_out[name] = wrong[name]
                del self.layers[name]
                self._plain = None
                captured.exclude(name)
            else:
                self._verified.setdefault(name, set()).add(kind)
        # Parameters of layers left out just now are plain ones from this very update on.
        captured.plain[:] = self.plain_parameters()
        if self.per_sample and not self._warned_of_mixing:
            self._warn_of_mixing(captured, losses)
        self._warn()
        if not self.layers and all(why == _HIDDEN for why in wrong.values()):
            raise ValueError(
                f"no layer is left to precondition: {_listed(self.left_out)}; a model that torch.compile has run "
                "before the first capture hides its layers"
            )

    def _warn(self) -> None:
        unnamed = {name: why for name, why in self.left_out.items() if name not in self._named}
        self._named.update(unnamed)
        if unnamed:
            warnings.warn(f"not preconditioned, plain gradient instead: {_listed(unnamed)}", stacklevel=6)

    def _warn_of_mixing(self, captured: Captured, losses: Tensor) -> None:
        """Name what no row behind is the gradient of a single sample: BatchNorm, or whatever couples samples."""
        self._warned_of_mixing = True
        consequence = (
            "so no row is the gradient of a single sample and the Fisher of this method is not the model's; put them "
            "into evaluation mode, or use another normalisation"
        )
        if mixing := batch_mixing(self.model):
            warnings.warn(f"{', '.join(map(repr, mixing))} normalise by the batch, {consequence}", stacklevel=6)
        elif coupled := _coupled(captured, losses):
            warnings.warn(
                f"the loss of the first sample depends on rows of others in {', '.join(map(repr, coupled))}, so no row "
                "is the gradient of a single sample and the Fisher of this method is not the model's; let samples lie "
                "along the first dimension, and no loss or layer look at several of them",
                stacklevel=6,
            )


def _listed(reasons: dict[str, str]) -> str:
    """One clause a reason, each with the first modules that it holds for."""
    modules: dict[str, list[str]] = {}
    for name, why in reasons.items():
        modules.setdefault(why, []).append(name or "the model itself")
    return "; ".join(f"{_first(names)} ({why})" for why, names in modules.items()) or "it has no parameters"


def _first(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:_NAMED])} and {more} more"


def _parts(layers: Mapping[str, Layer]) -> dict[str, list[int]]:
    """What each layer is made of now (by id): a bias that is frozen later leaves its rows."""
    return {name: [id(layer.module), *map(id, layer.parameters)] for name, layer in layers.items()}


def _is_usual(layer: Layer, call: Any) -> bool:
    """Whether there are as many positions as the input lets expect: a transposed convolution takes an output size."""
    return layer.positions(tuple(call.input.shape)) == call.positions


def _why_wrong(layers: list[Layer], captured: Captured, losses: Tensor, uses: Mapping[int, int]) -> dict[str, str]:
    """The reason for each of these layers whose rows do not give its gradient; one backward pass for all."""
    reasons = {}
    for layer in layers:
        calls = captured.calls.get(layer.name)
        if not calls:
            reasons[layer.name] = _WITHOUT_GRAPH if layer.name in captured.without_graph else _HIDDEN
        elif any(call.input.shape[0] != len(losses) for call in calls):
            reasons[layer.name] = "its batch does not lie along the first dimension"
        elif not all(_is_usual(layer, call) for call in calls):
            reasons[layer.name] = "its output is of another size than its options say"
    doubtful = [layer for layer in layers if layer.name not in reasons]
    if not doubtful:
        return reasons
    parameters = [p for layer in doubtful for p in layer.parameters]
    edges: list[Any] = [call.edge for layer in doubtful for call in captured.calls[layer.name]]
    # The update itself still needs the graph.
    gradients = list(torch.autograd.grad(losses.sum(), [*parameters, *edges], retain_graph=True, allow_unused=True))
    of_parameters, of_calls = gradients[: len(parameters)], gradients[len(parameters) :]
    for layer in doubtful:
        expected = [torch.zeros_like(p) if (g := of_parameters.pop(0)) is None else g for p in layer.parameters]
        pairs = [(call.input, of_calls.pop(0)) for call in captured.calls[layer.name]]
        used = [(x, g) for x, g in pairs if g is not None]
        outside = any(uses[id(p)] > len(pairs) for p in layer.parameters)
        # Used more often than it is called: then nothing is put down to low precision.
        if not _agree(layer, used, layer.matrix(expected), len(losses), strict=outside):
            reason = "its weight is used outside the layer too" if outside else "a hook changes its gradient"
            reasons[layer.name] = reason
    return reasons


def _agree(layer: Layer, used: list[tuple[Tensor, Tensor]], expected: Tensor, samples: int, strict: bool) -> bool:
    """Whether the rows of these calls, (input, output gradient), sum to the expected gradient, but for rounding."""
    if not used:
        return not bool(expected.any())
    low = any(g.dtype in (torch.bfloat16, torch.float16) for _, g in used)
    wide = torch.float64 if expected.dtype == torch.float64 else torch.float32
    difference, magnitude = -expected.to(wide) / samples, torch.zeros_like(expected, dtype=wide)
    for x, g in used:
        # Few samples at a time, since patches of a whole batch would fill the memory.
        step = max(1, _CHUNK * len(x) // max(1, g.numel() // layer.d_out * layer.d_in))
        for x_part, g_part in zip(x.split(step), g.split(step), strict=True):
            rows = layer.gradient_rows(g_part).to(wide).flatten(0, 1), layer.input_rows(x_part).to(wide).flatten(0, 1)
            difference += LayerGradient(*rows, samples).dense()
            magnitude += LayerGradient(rows[0].abs(), rows[1].abs(), samples).dense()
    exact = not low and (expected.device.type == "cpu" or wide == torch.float64)
    tolerance = _ROUNDING[wide] if exact or strict else _LOOSE_ROUNDING
    # Synchronises, which only a forward that is verified pays for.
    error, bound = float(difference.norm()), tolerance * float(magnitude.norm())
    return error <= bound or not math.isfinite(error)  # a corrupt batch tells nothing of its layers


def _coupled(captured: Captured, losses: Tensor) -> list[str]:
    """The layers in which the first sample's loss has a gradient with respect to other samples' rows."""
    if len(losses) < 2:
        return []
    edges: list[Any] = [call.edge for calls in captured.calls.values() for call in calls]
    gradients = list(torch.autograd.grad(losses[0], edges, retain_graph=True, allow_unused=True))
    by_layer = {name: [gradients.pop(0) for _ in calls] for name, calls in captured.calls.items()}
    return [name for name, own in by_layer.items() if any(g is not None and bool(g[1:].any()) for g in own)]
