"""KFRA's output factor, handed down a chain of fully connected layers (Botev, Ritter & Barber 2017, Algorithm 1).

With H_n the Hessian of sample n's loss with respect to the last layer's output and ``phi_n = f'(h_n)`` the slopes of
what follows a layer, ``B_L = 1/N sum_n H_n`` and ``B_{l-1} = (W_l' B_l W_l) o (1/N sum_n phi_n phi_n')``: the mean of
eq 29 without its D, each factor averaged alone. Exact for N = 1. Nothing of d^2 numbers is formed for a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from kfbench.curvature.backward import Call, below, first_met
from kfbench.layers.contract import Layer, full
from kfbench.layers.linear_layer import LinearLayer
from kfbench.layers.moments import MomentOfRows, full_precision

_CHAIN = (
    "the recursion takes a chain of fully connected layers, each used once on one vector a sample, with elementwise "
    "functions between them"
)
# How far what a random vector becomes may lie from its product with the slopes, relative to the norms of both.
_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4}
_LOOSE_ROUNDING = 0.03  # half precisions


@dataclass(frozen=True)
class Link:
    """How one layer of a chain leads on, in one batch; of all but the last ``onward`` names the next layer.

    ``weight`` [d_out, d_in]: the layer's own, without its bias. ``slopes`` [N, d_out]: the derivative of the next
    layer's input, or of the model's output, with respect to this layer's output. ``hessian`` [d_out, d_out]: the sum of
    H_n, of the last layer alone.
    """

    onward: str | None
    weight: Tensor
    slopes: Float[Tensor, "N d_out"]
    hessian: Tensor | None

    @classmethod
    def joined(cls, parts: Sequence[Link | None]) -> Link | None:
        """Of micro-batches; None where one of them has none. ValueError where they took different ways."""
        links = [part for part in parts if part is not None]
        if len(links) < len(parts):
            return None
        first, hessians = links[0], [link.hessian for link in links if link.hessian is not None]
        if any(link.onward != first.onward for link in links):
            raise ValueError(f"{_CHAIN}; its micro-batches took different ways through the layers")
        slopes = torch.cat([link.slopes for link in links])
        return cls(first.onward, first.weight, slopes, torch.stack(hessians).sum(0) if hessians else None)

    @property
    def tensors(self) -> list[Tensor]:
        """Those that come from the batch."""
        return [self.slopes] if self.hessian is None else [self.slopes, self.hessian]


def recursion(links: Mapping[str, Link | None]) -> dict[str, Float[Tensor, "d_out d_out"]]:
    """B of every layer, the last one first; ValueError where some micro-batch did not use a layer."""
    chain: dict[str, Link] = {}
    for name, link in links.items():
        if link is None:
            raise ValueError(f"{_CHAIN}; some micro-batches did not use layer {name!r}")
        chain[name] = link
    before = {link.onward: name for name, link in chain.items()}
    found: dict[str, Tensor] = {}
    current = before.get(None)
    while current is not None:
        link = chain[current]
        if link.hessian is not None:
            found[current] = link.hessian / len(link.slopes)
        else:
            assert link.onward is not None, "only the last layer has a Hessian"
            found[current] = _handed_on(found[link.onward], chain[link.onward].weight, link.slopes)
        current = before.get(current)
    return found


def _handed_on(B: Tensor, W: Tensor, slopes: Tensor) -> Tensor:
    """``(W' B W) o (1/N sum_n phi_n phi_n')``."""
    moment = MomentOfRows(slopes).add_to(None, 0.0, 1 / len(slopes))
    with full_precision(W.device):
        return (W.T @ (B @ W)).mul_(moment)


@dataclass(frozen=True)
class _Segment:
    """What leads from one layer's output to the next layer's input, or to the model's output (``onward`` None)."""

    name: str
    layer: Layer
    call: Call
    onward: str | None
    end: GradientEdge
    like: Tensor  # of the shape and precision of what stands there

    def pulled_back(self, vector: Tensor) -> Float[Tensor, "N d_out"]:
        """``J' vector``, J the Jacobian of the segment; zero where nothing arrives."""
        g = self._arriving(vector)
        if g is None:
            return full(vector.new_zeros(self.call.samples, self.layer.d_out))
        return full(self.layer.gradient_rows(g)).flatten(1)

    def _arriving(self, vector: Tensor) -> Tensor | None:
        (g,) = torch.autograd.grad([self.end], [self.call.edge], [vector], retain_graph=True, allow_unused=True)
        return g

    @property
    def rounding(self) -> float:
        """That of the lower precision at its ends: under autocast an output may be float32, and its layer's not."""
        g = self._arriving(torch.zeros_like(self.like))
        ends = [self.like.dtype] if g is None else [self.like.dtype, g.dtype]
        return max(_ROUNDING.get(dtype, _LOOSE_ROUNDING) for dtype in ends)

    def slopes(self) -> Float[Tensor, "N d_out"]:
        """The diagonal of J, which is all of it: f'(h)."""
        return self.pulled_back(torch.ones_like(self.like))

    @property
    def description(self) -> str:
        """For a sentence."""
        return f"layer {self.name!r} to {'the output' if self.onward is None else f'layer {self.onward!r}'}"


def links_of(
    layers: Mapping[str, Layer],
    calls: Mapping[str, Sequence[Call]],
    output: Tensor,
    fisher_sum: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Link]:
    """Of every layer that was used; needs the graph. ValueError names what is no chain.

    ``fisher_sum(output, scale)`` is ``sum_n D_n F_n D_n`` for D_n = diag(scale_n).
    """
    links: dict[str, Link] = {}
    for segment in _segments(layers, calls, output):
        weight = segment.layer.weight_matrix(full(segment.layer.module.weight.detach()))
        slopes = segment.slopes()
        last = segment.onward is None
        hessian = fisher_sum(full(output.detach()).flatten(1), slopes) if last else None
        links[segment.name] = Link(segment.onward, weight, slopes, hessian)
    return links


def check_chain(layers: Mapping[str, Layer], calls: Mapping[str, Sequence[Call]], output: Tensor) -> None:
    """ValueError, one sentence, where the recursion would not be of this model; one synchronisation in all.

    A map is elementwise exactly where its Jacobian is diagonal, so that J' v = v o J' 1 for any v; for a random v
    nothing else passes. A generator of its own draws it, so that dropout goes on as it would have.
    """
    segments, differences = list(_segments(layers, calls, output)), []
    for segment in segments:
        like = segment.like
        generator = torch.Generator(like.device).manual_seed(0)
        v = torch.randn(like.shape, generator=generator, device=like.device).to(like.dtype)
        got, wanted = segment.pulled_back(v), segment.slopes() * full(v).flatten(1)
        differences.append((got - wanted).norm() > segment.rounding * (got.norm() + wanted.norm()))
    for segment, differs in zip(segments, torch.stack(differences).tolist(), strict=True):
        if differs:
            raise _not_elementwise(segment)


def _segments(layers: Mapping[str, Layer], calls: Mapping[str, Sequence[Call]], output: Tensor) -> Iterator[_Segment]:
    """Each layer with what follows it, in the order of the forward; ValueError for all but their Jacobians."""
    for name, own in calls.items():
        module = type(layers[name].module).__name__
        if not isinstance(layers[name], LinearLayer):
            raise ValueError(f"{_CHAIN}; layer {name!r} is a {module}")
        if len(own) != 1 or own[0].positions != 1:
            how = f"used {len(own)} times" if len(own) != 1 else f"used on {own[0].positions} vectors a sample"
            raise ValueError(f"{_CHAIN}; layer {name!r} ({module}) is {how}")
    names = list(calls)
    places = {own[0].edge.node: name for name, own in calls.items()}
    for name, onward in zip(names, [*names[1:], None], strict=True):
        call, following = calls[name][0], None if onward is None else calls[onward][0]
        end, like = (
            (get_gradient_edge(output), output) if following is None else (following.input_edge, following.input)
        )
        segment = _Segment(name, layers[name], call, onward, end or call.edge, like)
        reached = set() if end is None else first_met([end.node], places)
        if reached != {name}:
            fed = " and ".join(map(repr, sorted(reached))) or "no layer"
            what = "the output" if onward is None else f"layer {onward!r} ({type(layers[onward].module).__name__})"
            raise ValueError(f"{_CHAIN}; {what} is fed by {fed}, not by {name!r} alone")
        if like.numel() != call.samples * layers[name].d_out:
            raise _not_elementwise(segment)
        yield segment


def _not_elementwise(segment: _Segment) -> ValueError:
    nodes, node, names = [segment.end.node], segment.end.node, []
    while nodes:
        node = nodes.pop()
        if node != segment.call.edge.node and not node.name().endswith("AccumulateGrad"):
            names.append(node.name().rstrip("0123456789").removesuffix("Backward"))
            nodes += below(node)
    what = ", ".join(dict.fromkeys(reversed(names))) or "nothing"
    return ValueError(f"{_CHAIN}; what leads from {segment.description} ({what}) is not elementwise")
