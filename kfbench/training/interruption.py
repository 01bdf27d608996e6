"""Ctrl-C and SIGTERM become a flag that the loop looks at between updates."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """``with Interruption() as stop:`` -- ``stop.requested`` turns true on the first signal.

    A second signal acts as it would have without us. Outside the main thread nothing is caught.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

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
