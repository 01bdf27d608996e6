"""Standard output and error of a command: that nobody reads them decides nothing; of several processes one speaks."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO

import typer

from kfbench.errors import KfbenchError
from kfbench.executors.launched import Launched


class _Lossy(io.TextIOBase):
    """A stream that is given up once it cannot be written: what follows goes nowhere."""

    def __init__(self, stream: TextIO, losses: type[OSError]) -> None:
        self._stream, self._losses = stream, losses

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As of the stream itself; the libraries that write to terminals ask for it."""
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """What becomes of what the encoding lacks."""
        return self._stream.errors

    def fileno(self) -> int:
        """Of the stream itself."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream.isatty()

    def writable(self) -> bool:
        """It takes anything."""
        return True

    def write(self, text: str) -> int:
        """As of any stream."""
        try:
            return self._stream.write(text)
        except self._losses:
            _give_up(self._stream)
            return len(text)

    def flush(self) -> None:
        """As of any stream."""
        try:
            self._stream.flush()
        except self._losses:
            _give_up(self._stream)


def _give_up(stream: TextIO) -> None:
    """What is in its buffer, and all that follows, goes nowhere, and so does what libraries write past it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def lossy_streams() -> Iterator[None]:
    """Within the block standard error may fail in any way; standard output may lose its reader, but not its disk."""
    out, err = sys.stdout, sys.stderr
    # None where it was closed before we began: "print" would then write to standard output.
    sys.stderr = _Lossy(err or open(os.devnull, "w"), OSError)  # noqa: SIM115
    sys.stdout = out and _Lossy(out, BrokenPipeError)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def finish_output() -> None:
    """Write what is still in the buffer of standard output; OSError where it cannot be, and then no second time."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _give_up(sys.stdout)
        raise


@contextmanager
def one_voice(one_of: Launched | None) -> Iterator[None]:
    """All but the first process are silent; what they alone know they say at their end."""
    if one_of is None or "--debug" in sys.argv:
        yield
        return
    try:
        if one_of.rank == 0:
            yield
        else:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                yield
    except typer.Exit:
        raise
    except BaseException as error:
        if _is_to_say(error, one_of.rank):
            raise
        code = (
            error.exit_code if isinstance(error, KfbenchError) else 130 if isinstance(error, KeyboardInterrupt) else 3
        )
        raise typer.Exit(code) from error


def _is_to_say(error: BaseException, rank: int) -> bool:
    from kfbench.updates.ranks.transport import RankError

    return error.to_say if isinstance(error, RankError) else rank == 0
