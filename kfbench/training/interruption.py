"""Ctrl-C and SIGTERM become a flag that the loop looks at between updates."""

import signal
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it imports torch, and who leads workers has none
    from kfbench.updates.ranks.sharing import Ranks


class Interruption:
    """``with Interruption() as stop:`` -- ``stop.requested`` turns true on the first signal.

    A second signal acts as it would have without us. Outside the main thread nothing is caught.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def look(self) -> None:
        """Between two updates: where several processes must agree, they do so now."""

    def __enter__(self) -> "Interruption":
        # Python lets no other thread set handlers.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class AgreedInterruption(Interruption):
    """Of several processes: ``requested`` turns true in all of them at the same ``look``, whichever got the signal."""

    def __init__(self, ranks: "Ranks") -> None:
        super().__init__()
        self._ranks, self._wanted = ranks, False

    def look(self) -> None:
        """Whether any of them got one."""
        self.requested = self._ranks.agreed(self._wanted)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._wanted = True
        self._restore()


def interruption_of(ranks: "Ranks") -> Interruption:
    """The kind for one process or for several."""
    return Interruption() if ranks.size == 1 else AgreedInterruption(ranks)
