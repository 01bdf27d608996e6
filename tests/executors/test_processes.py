"""Processes that cannot be started: tried again, then one sentence; never taken for an interruption."""

import pytest

from kfbench.executors import processes
from kfbench.executors.contract import Job
from kfbench.executors.processes import ProcessExecutor


class Server:
    """Stands for a fork server that ends as it starts, so many times."""

    def __init__(self, ends, plain):
        self.ends, self.plain = ends, plain

    def start(self, process):
        if self.ends:
            self.ends -= 1
            raise EOFError("unexpected EOF")
        self.plain(process)


@pytest.fixture
def executor(monkeypatch):
    monkeypatch.setattr(processes, "_BETWEEN_STARTS", 0.01)
    executor = ProcessExecutor(1, "json", {})
    yield executor
    executor.stop()


def ends(executor, monkeypatch, times):
    kind = executor._context.Process
    server = Server(times, kind.start)
    monkeypatch.setattr(kind, "start", lambda process: server.start(process))


def test_a_fork_server_that_died_is_begun_anew(executor, monkeypatch):
    ends(executor, monkeypatch, 2)
    executor.submit(Job("one", "math:sqrt", (9.0,)))
    (outcome,) = executor.wait(60)
    assert (outcome.kind, outcome.value) == ("returned", 3.0)


def test_one_that_always_dies_is_an_error_of_the_machine(executor, monkeypatch):
    ends(executor, monkeypatch, 99)
    with pytest.raises(OSError, match="the process from which trials are forked ends as it starts"):
        executor.submit(Job("one", "math:sqrt", (9.0,)))
    assert executor.free == 1
