"""Second moments ``sum row row'`` of a layer's rows: what is averaged of one, and how a batch is added to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from kfbench.layers.outer_products import add_outer_products
from kfbench.layers.sample_rows import RowMap


class Form(ABC):
    """A compact way to keep a moment: linear in it, so that it can be averaged. Frozen, of plain values alone."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def d_in(self) -> int:
        """d."""

    @property
    @abstractmethod
    def blocks(self) -> int:
        """How many blocks on the diagonal the matrix is made of."""

    @property
    @abstractmethod
    def input_blocks(self) -> tuple[tuple[int, int], ...]:
        """(width, how often it meets a row) of each."""

    @abstractmethod
    def multiply_adds(self, samples: int) -> float:
        """Of ``measure``."""

    @abstractmethod
    def measure(self, x: Tensor) -> Tensor:
        """What is kept of these images, summed over them."""

    @abstractmethod
    def block(self, kept: Tensor, index: int) -> Tensor:
        """One of them, [d_i, d_i]."""

    @abstractmethod
    def on_blocks(self, rows: Tensor, maps: Sequence[RowMap]) -> Tensor:
        """Rows [R, d] times a matrix of the same structure, of which ``maps`` multiply by one block each."""

    @abstractmethod
    def assemble(self, kept: Tensor) -> Tensor:
        """The matrix [d, d] from what is kept."""

    @abstractmethod
    def trace(self, kept: Tensor) -> Tensor:
        """Its trace [], without it."""

    def diagonal(self, kept: Tensor) -> Tensor | None:
        """[d] the diagonal of a matrix that is nothing else, None of any other: it is inverted entry by entry."""
        return None

    def describe(self) -> list[object]:
        """Plain values from which ``curvature/averages.form_of`` makes it again."""
        return [self.kind, *(getattr(self, field.name) for field in fields(self))]  # type: ignore[arg-type]


@runtime_checkable  # tests check annotations at run time
class Moment(Protocol):
    """The second moment of one batch, not yet computed."""

    @property
    def form(self) -> Form | None:
        """How it is kept; None as the matrix itself."""

    def add_to(self, kept: Tensor | None, keep: float, scale: float) -> Tensor:
        """``keep kept + scale moment``, in place where there is something kept."""


@dataclass(frozen=True)
class MomentOfRows:
    """Of rows that lie in memory."""

    rows: Float[Tensor, "... d"]
    form = None

    def add_to(self, kept: Tensor | None, keep: float, scale: float) -> Tensor:
        """By blocks on one side of the diagonal."""
        rows = self.rows.reshape(-1, self.rows.shape[-1])
        # Zeros that count for nothing: they are kept with weight 0.
        kept = rows.new_zeros(rows.shape[1], rows.shape[1]) if kept is None else kept
        with full_precision(rows.device):
            add_outer_products(kept, rows, keep=keep, scale=scale)
        return kept


@dataclass(frozen=True)
class MomentOfPairs:
    """``sum left right'`` of rows of two layers that belong together, one by one: [d, e]."""

    left: Float[Tensor, "*rows d"]
    right: Float[Tensor, "*rows e"]
    form = None

    def add_to(self, kept: Tensor | None, keep: float, scale: float) -> Tensor:
        """One product."""
        left, right = (rows.reshape(-1, rows.shape[-1]) for rows in (self.left, self.right))
        kept = left.new_zeros(left.shape[1], right.shape[1]) if kept is None else kept
        with full_precision(left.device):
            return kept.addmm_(left.T, right, beta=keep, alpha=scale)


@dataclass(frozen=True)
class MomentOfChunks:
    """Of rows that are made a few samples at a time and given up at once: patches."""

    chunks: Callable[[], Iterator[Float[Tensor, "R d"]]]
    form = None

    def add_to(self, kept: Tensor | None, keep: float, scale: float) -> Tensor:
        """Chunk by chunk; only the first meets what was kept before."""
        for rows in self.chunks():
            kept = MomentOfRows(rows).add_to(kept, keep, scale)
            keep = 1.0
        assert kept is not None, "a batch has at least one sample"
        return kept


@dataclass(frozen=True)
class MomentOfInputs:
    """Of what a layer was given (images, tokens), in a compact form; of several calls, all have one geometry."""

    inputs: list[Tensor]
    form: Form

    def add_to(self, kept: Tensor | None, keep: float, scale: float) -> Tensor:
        """One compact vector."""
        for x in self.inputs:
            with full_precision(x.device):
                kept = _averaged_in(self.form.measure(x), kept, keep, scale)
            keep = 1.0
        assert kept is not None, "a layer that was used was called"
        return kept


@dataclass(frozen=True)
class MeasuredMoment:
    """A matrix that was summed up while its rows were there."""

    matrix: Float[Tensor, "d d"]
    form = None

    def add_to(self, kept: Tensor | None, keep: float, scale: float) -> Tensor:
        """Added as it is."""
        return _averaged_in(self.matrix, kept, keep, scale)


@dataclass(frozen=True)
class JoinedMoment:
    """The sum of several: of micro-batches, of calls."""

    parts: list[Moment]
    form: Form | None

    @classmethod
    def of(cls, parts: list[Moment]) -> JoinedMoment:
        """Compact where all are, and alike."""
        forms = [part.form for part in parts]
        return cls(parts, forms[0] if all(form == forms[0] for form in forms) else None)

    def add_to(self, kept: Tensor | None, keep: float, scale: float) -> Tensor:
        """One after the other; only the first meets what was kept before."""
        for part in self.parts:
            if part.form == self.form:
                kept = part.add_to(kept, keep, scale)
            else:
                assert part.form is not None
                kept = MeasuredMoment(part.form.assemble(part.add_to(None, 0.0, 1.0))).add_to(kept, keep, scale)
            keep = 1.0
        assert kept is not None, "a sum has at least one part"
        return kept


def _averaged_in(new: Tensor, kept: Tensor | None, keep: float, scale: float) -> Tensor:
    if kept is None:
        return new * scale
    # Where keep is 0 old values are not read: they may not be finite.
    return kept.copy_(new).mul_(scale) if keep == 0 else kept.mul_(keep).add_(new, alpha=scale)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """No TF32 for statistics: cuDNN's convolutions use it unless told otherwise, and keep ten bits of it."""
    return nullcontext() if device.type != "cuda" else _without_tf32()


@contextmanager
def _without_tf32() -> Iterator[None]:
    # Of both libraries, by torch's newer switches: its older ones refuse to be read where a user has set these.
    backends: Any = torch.backends
    places = [backends.cuda.matmul, backends.cudnn.conv]
    usual = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, usual, strict=True):
            place.fp32_precision = precision
