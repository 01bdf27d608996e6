"""A Ray cluster whose nodes are processes of this machine, to be killed as machines are."""

import os
import signal

import ray
from ray._private import ray_constants
from ray.cluster_utils import Cluster

# What little of the memory the nodes share; objects are records of small trials.
_STORE = {"object_store_memory": 80 * 2**20}


class Nodes:
    """The first is the leader's and lives to the end; each runs one job at a time."""

    def __init__(self, count):
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **_STORE}
        )
        for _ in range(count - 1):
            self.add()

    @property
    def address(self):
        """For --ray-address."""
        return self._cluster.address

    def add(self):
        """Another one comes."""
        self._cluster.add_node(num_cpus=1, **_STORE)

    def kill_one(self, index=0):
        """kill -9 of one that is not the leader's, and another comes in its place."""
        node = sorted(self._cluster.worker_nodes, key=lambda node: node.node_id)[index]
        raylet = node.all_processes[ray_constants.PROCESS_TYPE_RAYLET][0].process
        os.kill(raylet.pid, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)
        self.add()

    def end(self):
        """All of them."""
        ray.shutdown()
        self._cluster.shutdown()
