"""Random kills of nodes, workers and leaders during one sweep on a Ray cluster of this machine. Not a test.

    python -m tests.measurements.random_kills [kills] [seed]

Three nodes, a sweep of sixteen trials of a tiny network that takes its time, and a kill -9 some moment after something
has come home since the one before: of a node, of the worker that attends a trial, of a trial's process or the server
that forks it, or of the leader, which the same command then continues. When the kills are done the sweep goes on to its
end. It has survived if every trial is there once, with the figures of `--executor processes`; one that was itself
killed twice has failed until the command is given again.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd

from tests.executors.clusters import Nodes, children
from tests.executors.sweeps import SMALL, run, trials

ROOT = Path(__file__).parent.parent.parent
BEATING = "tests.sweep.faulty:Beating"
GRID = ",".join(f"{0.01 * i:.2f}" for i in range(1, 17))
UPDATES = 90
# Seconds from what has come home to the next kill.
_BETWEEN = (0.0, 4.0)


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

    began, leader, seen = time.monotonic(), begin(), 0.0
    while done < kills and len(_rows(folder)) < 16:
        if leader.poll() is not None:  # at its end, or a trial failed twice: the same command
            leader, leaders = begin(), leaders + 1
        if (home := _came_home(folder)) == seen:
            time.sleep(0.1)
            continue
        time.sleep(random.uniform(*_BETWEEN))
        seen, kind = home, random.choice(["node", "node", "worker", "worker", "trial", "leader"])
        if _kill(kind, nodes, leader):
            done, seen = done + 1, _came_home(folder)
            when, ended = time.monotonic() - began, len(_rows(folder))
            print(f"{when:6.1f} s  kill {done}: {kind}, {ended} trials ended", flush=True)
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


def _came_home(folder):
    """When the last checkpoint or row did."""
    latest = 0.0
    for path in [*folder.rglob("checkpoint.pt"), *folder.glob("trials.csv")]:
        with suppress(FileNotFoundError):  # of a trial that ends just now
            latest = max(latest, path.stat().st_mtime)
    return latest


def _rows(folder):
    return trials(folder) if (folder / "trials.csv").is_file() else []


if __name__ == "__main__":
    main(int((sys.argv + ["20"])[1]), int((sys.argv + ["", "0"])[2]))
