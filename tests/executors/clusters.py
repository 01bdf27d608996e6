"""A Ray cluster whose nodes are processes of this machine, to be killed as machines are."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import ray
from ray._private import ray_constants
from ray.cluster_utils import Cluster

# Ray lowers the priority of its workers, which beside other jobs of this machine would wait for minutes.
os.environ.setdefault("RAY_worker_niceness", "0")
# What little of the memory the nodes share; objects are records of small trials.
_STORE = {"object_store_memory": 80 * 2**20}


class Nodes:
    """The leader's own, which runs no jobs and lives to the end, and others that run one at a time."""

    def __init__(self, count):
        # Ray's nodes put one of their own there, and leave it when they end.
        self._handler = signal.getsignal(signal.SIGTERM)
        head = {"num_cpus": 0, "include_dashboard": False, **_STORE}
        self._cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        for _ in range(count - 1):
            self.add()

    @property
    def address(self):
        """For --ray-address."""
        return self._cluster.address

    def add(self):
        """Another one comes; Ray lets only the main thread ask for it."""
        _patiently(lambda: self._cluster.add_node(num_cpus=1, **_STORE))

    def kill_one(self):
        """kill -9 of one that is at work, if there is one."""
        node = max(self._cluster.worker_nodes, key=lambda node: len(attending(_raylet(node))))
        os.kill(_raylet(node), signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def attending(self):
        """The workers of Ray that attend a trial now."""
        return [pid for node in self._cluster.worker_nodes for pid in attending(_raylet(node))]

    def end(self):
        """All of them."""
        ray.shutdown()
        self._cluster.shutdown()
        signal.signal(signal.SIGTERM, self._handler)


def _patiently(start, times=5):
    """What it starts: Ray gives a node thirty seconds, which a busy machine may need for less."""
    for _ in range(times - 1):
        with suppress(Exception):  # it has no kind of its own
            return start()
    return start()


def _raylet(node):
    return node.all_processes[ray_constants.PROCESS_TYPE_RAYLET][0].process.pid


def attending(raylet):
    """Its workers that attend a trial."""
    return [pid for pid in children(raylet) if _words(pid).startswith("ray::_attend")]


def children(pid):
    """Of a process that may be gone."""
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _words(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""
