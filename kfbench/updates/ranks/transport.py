"""How numbers travel between the processes of a run: torch.distributed, its errors one sentence, its bytes counted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from kfbench.errors import KfbenchError, UsageError, described
from kfbench.executors.launched import Launched
from kfbench.updates.spent import now

# Under these names the store, which outlives any one of them, tells the others.
_TOLD, _SAID = "kfbench/told", "kfbench/said"
# For those who wait while the first process evaluates, writes or draws; a process that dies is noticed at once.
_PATIENCE = timedelta(hours=1)


class RankError(KfbenchError):
    """Another process has failed or is gone. ``to_say``: whether it is for this one to tell the user."""

    exit_code = 3

    def __init__(self, sentence: str, to_say: bool) -> None:
        super().__init__(sentence)
        self.to_say = to_say


@runtime_checkable  # tests check annotations at run time
class Transport(Protocol):
    """What travels; tensors are flat, and every process calls the same in the same order.

    ``bytes_sent`` counts tensors that are added up once, and those handed on once; ``seconds`` what both took.
    """

    rank: int
    size: int
    bytes_sent: int
    seconds: float

    def add_up(self, flat: Tensor) -> None:
        """In place, over all processes."""

    def hand_on(self, flats: Sequence[Tensor]) -> None:
        """In place, each from the process of its index to all others; an empty one stays at home."""

    def largest(self, value: int) -> int:
        """Of all processes' values; waits for no accelerator."""

    def all_objects(self, value: Any) -> list[Any]:
        """Everybody's, by rank."""

    def from_first(self, value: Any) -> Any:
        """The first one's."""


class TorchTransport:
    """``with TorchTransport(launched, "cuda") as transport:`` -- gloo between CPUs, NCCL between CUDA devices.

    Seconds include waiting for others, on an accelerator only until all is queued. RankError where another is gone.
    """

    def __init__(self, launched: Launched, device_type: str) -> None:
        self.rank, self.size, self.local_rank = launched.rank, launched.size, launched.local_rank
        self._backend = "nccl" if device_type == "cuda" else "gloo"
        self.bytes_sent, self.seconds = 0, 0.0

    def __enter__(self) -> "TorchTransport":
        if self._backend == "nccl":
            torch.cuda.set_device(self.local_rank)
        try:
            dist.init_process_group(self._backend, timeout=_PATIENCE)
            # What a CPU decides must not wait for what is queued on a device.
            self._control: Any = dist.group.WORLD if self._backend == "gloo" else dist.new_group(backend="gloo")
        except (RuntimeError, ValueError) as error:  # of torch.distributed, of many kinds
            raise UsageError(
                f"{self.size} processes could not be joined by {self._backend}: {described(error)}"
            ) from error
        self._store: Any = dist.distributed_c10d._get_default_store()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            # Whoever leaves early seems to have failed, and torchrun then ends those that are still writing.
            with self._one_sentence():
                dist.barrier(group=self._control)
        elif not isinstance(error, RankError):
            with suppress(Exception):  # the store may be gone with its process
                self._store.set(_TOLD, str(error).strip() or type(error).__name__)
        with suppress(Exception):
            dist.destroy_process_group()

    def add_up(self, flat: Tensor) -> None:
        """In place, over all processes."""
        with self._timed(flat):
            dist.all_reduce(flat)

    def hand_on(self, flats: Sequence[Tensor]) -> None:
        """In place, each from the process of its index to all others; an empty one stays at home."""
        with self._timed(*flats):
            # Begun together, then waited for.
            waiting: list[Any] = [
                dist.broadcast(flat, src=i, async_op=True) for i, flat in enumerate(flats) if flat.numel()
            ]
            for work in waiting:
                work.wait()

    def largest(self, value: int) -> int:
        """Of all processes' values; waits for no accelerator."""
        box = torch.tensor(value)
        with self._one_sentence():
            dist.all_reduce(box, op=dist.ReduceOp.MAX, group=self._control)
        return int(box)

    def all_objects(self, value: Any) -> list[Any]:
        """Everybody's, by rank."""
        found: list[Any] = [None] * self.size
        with self._one_sentence():
            dist.all_gather_object(found, value, group=self._control)
        return found

    def from_first(self, value: Any) -> Any:
        """The first one's."""
        box = [value]
        with self._one_sentence():
            dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    @contextmanager
    def _timed(self, *flats: Tensor) -> Iterator[None]:
        self.bytes_sent += sum(flat.numel() * flat.element_size() for flat in flats)
        began = now()
        with self._one_sentence():
            yield
        self.seconds += now() - began

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # so torch says that a connection is closed
            raise self._ended() from error

    def _ended(self) -> RankError:
        """Why others cannot be reached: what one of them has told before it left, or that it left without a word."""
        with suppress(Exception):
            if self._store.check([_TOLD]):
                return RankError(f"another process failed: {self._store.get(_TOLD).decode()}", self.rank == 0)
        first = True
        with suppress(Exception):  # gone too: then everybody says it
            first = self._store.add(_SAID, 1) == 1
        return RankError(
            f"one of the {self.size} processes ended without a word, so the run ends; continue it with --resume",
            first,
        )
