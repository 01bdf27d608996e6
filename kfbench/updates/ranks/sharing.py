"""Who sees which rows of a batch, and how what each makes of its rows becomes what the whole batch gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from kfbench.curvature.averages import Placement
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import LayerStatistics
from kfbench.errors import KfbenchError, described
from kfbench.layers.estimate import Estimate
from kfbench.updates.batches import Batch
from kfbench.updates.ranks.placed import Placed
from kfbench.updates.ranks.reduced import ReducedMoment, ReducedStatistics, as_sent, received
from kfbench.updates.ranks.synchronised import WholeBatch
from kfbench.updates.ranks.transport import RankError, Transport


class OwnError(KfbenchError):
    """What one of several processes raised by itself, so that the others cannot go on."""

    exit_code = 3


T = TypeVar("T")
Gradients = dict[str, LayerGradient]
Plain = list[tuple[int, list[Tensor | None]]]  # of each micro-batch: samples, mean gradients

# Where a refresh is made: each part by one process, or all of it by every process.
PLACEMENTS = ("spread", "replicated")


class Ranks:
    """One process, which sees every batch whole: nothing is shared, nothing is sent."""

    rank, size = 0, 1
    placement: Placement | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes the records."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Where this process trains."""
        return device

    def rows(self, samples: int) -> tuple[slice, int]:
        """Which of so many are for this process, and how many of them count."""
        return slice(None), samples

    def shares(self, parts: Iterable[Batch]) -> Iterator[Batch]:
        """Of an update's micro-batches the rows of this process."""
        yield from parts

    def each(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same of batches that are not joined: of the warm-up."""
        yield from batches

    def by_itself(self) -> AbstractContextManager[None]:
        """Around what a process does of its own, so that it may fail where others do not."""
        return nullcontext()

    def training_forward(self) -> AbstractContextManager[Any]:
        """Around a forward that is trained on."""
        return nullcontext()

    def part(self, losses: Tensor, samples: int) -> Tensor:
        """What losses [n] add to the mean over an update's ``samples``."""
        return losses.sum() / samples

    def sums(self, own: Sequence[Tensor]) -> list[Tensor]:
        """Over all processes."""
        return list(own)

    def means(self, own: Sequence[Tensor]) -> list[Tensor]:
        """Over the batch, of means over own rows."""
        return list(own)

    def gradients(self, own: Gradients, plain: Plain) -> tuple[Gradients, Plain]:
        """Of the whole batch, of layers and of parameters of none."""
        return own, plain

    def statistics(self, own: dict[str, LayerStatistics], estimate: Estimate) -> dict[str, LayerStatistics]:
        """Those whose moments are of the whole batch."""
        return own

    def agreed(self, wanted: bool) -> bool:
        """Whether any process wants it."""
        return wanted

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes."""
        return make()

    def end(self, error: BaseException) -> None:
        """Raise where others must not wait for a process that failed."""

    def described(self) -> dict[str, Any]:
        """What a summary says of them: nothing of one."""
        return {}


ALONE = Ranks()


class Several(Ranks):
    """One of several processes: each takes neighbouring rows of every (micro-)batch, and all of them every step.

    A process that gets none of a batch smaller than their number takes its first row, which then counts nothing: so
    every process asks its model for the same tensors.
    """

    def __init__(self, transport: Transport, local_rank: int, placement: str = "spread") -> None:
        self._transport, self._local_rank = transport, local_rank
        self.rank, self.size = transport.rank, transport.size
        self.placement = Placed(transport) if placement == "spread" else None
        self._samples = self._own = self._of = 0  # of the update so far, of all and here; of the (micro-)batch at hand
        self._rows = slice(0)
        self.counts = True  # whether this process has rows of the (micro-)batch at hand

    def device(self, device: torch.device) -> torch.device:
        """Of several CUDA devices each process of a machine takes one."""
        return torch.device("cuda", self._local_rank) if device.type == "cuda" and device.index is None else device

    def rows(self, samples: int) -> tuple[slice, int]:
        """Neighbouring ones, the first processes one more where it does not divide; of none left, the first row."""
        start, count = sum(self._count(rank, samples) for rank in range(self.rank)), self._count(self.rank, samples)
        return slice(start, start + count) if count else slice(0, 1), count

    def shares(self, parts: Iterable[Batch]) -> Iterator[Batch]:
        """Of each micro-batch alike, so that labels are drawn as one process would draw them."""
        self._samples = self._own = 0
        for x, y in parts:
            self._of = len(x)
            self._rows, count = self.rows(len(x))
            self.counts = count > 0
            self._samples += self._of
            self._own += count
            yield x[self._rows], y[self._rows]

    def each(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Of each batch alone."""
        for batch in batches:
            yield from self.shares([batch])

    def place(self) -> tuple[int, slice]:
        """Samples of the (micro-)batch at hand, and which of them are here."""
        return self._of, self._rows

    def training_forward(self) -> AbstractContextManager[Any]:
        """Around a training forward, in which batch normalisation is that of the whole (micro-)batch."""
        return WholeBatch(self)

    @contextmanager
    def by_itself(self) -> Iterator[None]:
        """An error there is no divergence that all agree on: it ends the run."""
        try:
            yield
        except RankError:  # met where numbers travel within a forward or backward pass
            raise
        except Exception as error:
            raise OwnError(f"process {self.rank} failed: {described(error)}") from error

    def part(self, losses: Tensor, samples: int) -> Tensor:
        """Nothing of a row that counts nothing."""
        return losses.sum() / samples if self._own else losses.sum() * 0.0

    def sums(self, own: Sequence[Tensor]) -> list[Tensor]:
        """Over all processes: one message for each precision."""
        found: list[Tensor] = list(own)
        for dtype in dict.fromkeys(tensor.dtype for tensor in own):
            places = [i for i, tensor in enumerate(own) if tensor.dtype == dtype]
            flat = torch.cat([own[i].reshape(-1) for i in places])
            self._transport.add_up(flat)
            for i, numbers in zip(places, flat.split([own[i].numel() for i in places]), strict=True):
                found[i] = numbers.view(own[i].shape)
        return found

    def means(self, own: Sequence[Tensor]) -> list[Tensor]:
        """Over the batch: each mean counts for as many rows as it was made of."""
        return self.sums([tensor * (self._own / self._samples) for tensor in own])

    def gradients(self, own: Gradients, plain: Plain) -> tuple[Gradients, Plain]:
        """All rows where they are fewer numbers, else matrices, beside which a method that keeps rows has its own."""
        count = sum(n for n, _ in plain)
        of_plain = [_mean_of_parts([(n, g[i]) for n, g in plain], count) for i in range(len(plain[0][1]))]
        used = [g for g in of_plain if g is not None]
        # Of micro-batches each process decides by its own number of rows in which form they are joined.
        may_travel = len(plain) == 1 and not self._keeps_rows
        few = [
            name for name, G in own.items() if may_travel and rows_are_fewer(self._samples, G.shape, G.positions_or_0)
        ]
        by_rows = self._gathered({name: own[name] for name in few})
        names, own = list(own), {name: G for name, G in own.items() if name not in by_rows}
        means = self.means([*(G.dense() for G in own.values()), *used])
        matrices = dict(zip(own, means, strict=False))
        rest = iter(means[len(own) :])
        joined = {
            name: G.knowing(matrices[name])
            if G.rows and self._keeps_rows
            else LayerGradient.from_dense(matrices[name], self._samples)
            for name, G in own.items()
        }
        joined = {name: by_rows[name] if name in by_rows else joined[name] for name in names}
        return joined, [(self._samples, [None if g is None else next(rest) for g in of_plain])]

    def _gathered(self, own: Gradients) -> Gradients:
        """With the rows of all processes, in the order in which one would have them."""
        if not own:
            return {}
        counts = [self._count(rank, self._samples) for rank in range(self.size)]
        mine = [rows[: counts[self.rank]] for G in own.values() for rows in (G.output_gradients, G.inputs)]
        widths = [rows.shape[1] for rows in mine]
        flats = [mine[0].new_empty(count * sum(widths)) for count in counts]
        flats[self.rank] = torch.cat([rows.reshape(-1) for rows in mine])
        self._transport.hand_on(flats)
        split = [flat.split([n * width for width in widths]) for flat, n in zip(flats, counts, strict=True)]
        parts = [torch.cat([each[i].view(-1, width) for each in split]) for i, width in enumerate(widths)]
        pairs = zip(own, parts[::2], parts[1::2], strict=True)
        return {name: LayerGradient(g, a, self._samples) for name, g, a in pairs}

    def _count(self, rank: int, samples: int) -> int:
        few, more = divmod(samples, self.size)
        return few + (rank < more)

    _keeps_rows = False

    def keep_rows(self) -> None:
        """For a method that looks at single rows, and asks ``means`` for what it makes of them."""
        self._keeps_rows = True

    def statistics(self, own: dict[str, LayerStatistics], estimate: Estimate) -> dict[str, LayerStatistics]:
        """Sums of outer products travel once, as halves where they are whole matrices."""
        moments = [(layer.input_moment(estimate=estimate), layer) for layer in own.values()]
        sums = [as_sent(moment, bool(self._own)) for moment, _ in moments]
        outputs = [layer.output_moment(estimate) if layer.vectors else None for _, layer in moments]
        sums += [as_sent(moment, bool(self._own)) for moment in outputs if moment is not None]
        whole = iter(self.sums(sums))
        inputs = [received(next(whole), moment.form) for moment, _ in moments]
        of_outputs = [None if moment is None else received(next(whole), moment.form) for moment in outputs]
        return {
            name: ReducedStatistics(layer, self._samples, estimate, of_inputs, of_output, self._summed)
            for (name, layer), of_inputs, of_output in zip(own.items(), inputs, of_outputs, strict=True)
        }

    def _summed(self, layer: LayerStatistics, ones: bool | None, estimate: Estimate) -> ReducedMoment:
        """An input moment that nobody has announced, by itself."""
        moment = layer.input_moment(ones, estimate)
        return received(self.sums([as_sent(moment, bool(self._own))])[0], moment.form)

    def agreed(self, wanted: bool) -> bool:
        """Whether any process wants it; all get the same answer."""
        return bool(self._transport.largest(int(wanted)))

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes; what that raises ends the others too."""
        made: T = self._transport.from_first(make() if self.is_first else None)
        return made

    def end(self, error: BaseException) -> None:
        """Whatever it is, this process cannot go on to another seed alone."""
        raise OwnError(f"process {self.rank} failed: {described(error)}") from error

    def described(self) -> dict[str, Any]:
        """How many they are, what this one sent in all, and how long that took."""
        return {
            "processes": self.size,
            "bytes_sent": self._transport.bytes_sent,
            "seconds_communication": self._transport.seconds,
        }


def rows_are_fewer(samples: int, shape: tuple[int, int], positions: int) -> bool:
    """Whether the rows of a layer's gradient are fewer numbers than its matrix, of one row a sample."""
    d_out, d_in = shape
    return positions == 1 and samples * (d_out + d_in) < d_out * d_in


def _mean_of_parts(parts: list[tuple[int, Tensor | None]], count: int) -> Tensor | None:
    """Of means over micro-batches; None where no micro-batch has any."""
    known = [(n, g) for n, g in parts if g is not None]
    return torch.stack([g * (n / count) for n, g in known]).sum(0) if known else None
