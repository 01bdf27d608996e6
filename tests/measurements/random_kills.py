"""Random kills of nodes, workers and leaders during one sweep on a Ray cluster of this machine. Not a test.

    python -m tests.measurements.random_kills [kills] [seed]

Three nodes, a sweep of sixteen trials of a tiny network that takes its time, and every few seconds a kill -9: of
a node, of the worker that attends a trial, of a trial's process, or of the leader, which the same command then
continues. When the kills are done the sweep goes on to its end. It has survived if every trial is there once, with
the figures of `--executor processes`; one that was itself killed twice has failed until the command is given again.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from tests.executors.clusters import Nodes, children
from tests.executors.sweeps import SMALL, run, trials

ROOT = Path(__file__).parent.parent.parent
BEATING = "tests.sweep.faulty:Beating"
GRID = ",".join(f"{0.01 * i:.2f}" for i in range(1, 17))
UPDATES = 90
# A leader that was killed needs this long before it trains again, so no kill comes sooner.
_BETWEEN = (3.0, 12.0)


def _command(folder, marker, address):
    flags = {**SMALL, "updates": UPDATES, "extend": 0, "top": 0, "grid": f"lr={GRID}", "out": folder}
    flags |= {"executor": "ray", "ray_address": address, "ship": "always", "jobs": 2}
    words = [f"--{key.replace('_', '-')}={value}" for key, value in flags.items()]
    return [sys.executable, "-m", "kfbench", "sweep", "lr", "--opt", f"{BEATING}:marker={marker}", *words]


def _kill(kind, nodes, leader):
    """Whether there was something to kill."""
    if kind == "node":
        nodes.kill_one()
        nodes.add()
        return True
    if kind == "leader":
        leader.kill()
        return True
    found = nodes.attending()
    if kind == "trial":  # the server that forks it, or itself
        found = [pid for worker in found for server in children(worker) for pid in (server, *children(server))]
    if found:
        os.kill(random.choice(found), signal.SIGKILL)
    return bool(found)


def main(kills, seed):
    """Print every kill, then whether all survived."""
    random.seed(seed)
    nodes, folder = Nodes(3), Path(tempfile.mkdtemp()) / "sweep"
    marker, done, leaders = folder.parent / "marker", 0, 1
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = _command(folder, marker, nodes.address)

    def begin():
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=sys.stderr)

    began, leader = time.monotonic(), begin()
    while done < kills and len(_rows(folder)) < 16:
        time.sleep(random.uniform(*_BETWEEN))
        if leader.poll() is not None:  # at its end, or a trial failed twice: the same command
            leader, leaders = begin(), leaders + 1
            continue
        kind = random.choice(["node", "node", "worker", "worker", "trial", "leader"])
        if _kill(kind, nodes, leader):
            done += 1
            print(
                f"{time.monotonic() - began:6.1f} s  kill {done}: {kind}, {len(_rows(folder))} trials ended", flush=True
            )
    leader.wait()
    for _ in range(5):
        if subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL).returncode == 0:
            break
        leaders += 1
    nodes.end()
    there = trials(folder)
    spec = {"opt": BEATING, "marker": str(marker)}
    run(folder.parent / "processes", spec, updates=UPDATES, grids={"lr": GRID}, jobs=2)
    pd.testing.assert_frame_equal(there, trials(folder.parent / "processes"))
    print(f"{done} kills, {leaders} leaders: all {len(there)} trials there once, as by processes")


def _rows(folder):
    return trials(folder) if (folder / "trials.csv").is_file() else []


if __name__ == "__main__":
    main(int((sys.argv + ["20"])[1]), int((sys.argv + ["", "0"])[2]))
