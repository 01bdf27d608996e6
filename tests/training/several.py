"""`kfbench` in several processes as torchrun starts them, but forked from a server that has imported torch once."""

import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")


def _main(rank, size, port, folder, arguments):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "COLUMNS": "200"}
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    sys.argv = ["kfbench", *arguments]
    from kfbench.cli.app import main

    main()


class Started:
    """The processes of one command; what each has said so far."""

    def __init__(self, folder, size, *arguments):
        _CONTEXT.set_forkserver_preload(["__main__", "kfbench.training.preload"])
        self._folder = Path(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        given = size, port, self._folder, [*map(str, arguments)]
        self.processes = [_CONTEXT.Process(target=_main, args=(rank, *given)) for rank in range(size)]
        for process in self.processes:
            process.start()

    def ended(self, seconds=120):
        """Their exit codes; negative numbers are signals."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
            if process.exitcode is None:
                for other in self.processes:
                    other.kill()
                raise AssertionError(f"they do not end: {self.errors()}")
        return [process.exitcode for process in self.processes]

    def errors(self):
        return [self._read(f"err-{rank}") for rank in range(len(self.processes))]

    def outputs(self):
        return [self._read(f"out-{rank}") for rank in range(len(self.processes))]

    def _read(self, name):
        return (self._folder / name).read_text()

    def wait_for(self, path, rows=0, seconds=60):
        """Until a file has more rows than that, beside its header."""
        until = time.monotonic() + seconds
        while not (path.exists() and path.read_bytes().count(b"\n") > 1 + rows):
            assert time.monotonic() < until and any(p.is_alive() for p in self.processes), self.errors()
            time.sleep(0.02)
