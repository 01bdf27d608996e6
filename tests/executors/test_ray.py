"""Sweeps on a Ray cluster of three nodes of this machine: whatever is killed, no trial is lost, none is run twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ray = pytest.importorskip("ray")

import pandas as pd  # noqa: E402

from kfbench.errors import UsageError  # noqa: E402
from kfbench.executors import ray_tasks  # noqa: E402
from tests.executors.clusters import Nodes  # noqa: E402
from tests.executors.sweeps import SMALL, Notes, run, trials  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
BEATING, FAULTY = "tests.sweep.faulty:Beating", "tests.sweep.faulty:Faulty"
UPDATES = 40


@pytest.fixture(scope="module")
def nodes():
    nodes = Nodes(3)
    yield nodes
    nodes.end()


def there(nodes, jobs=2):
    # As on machines that share no disk, which these do.
    return {"executor": "ray", "ray_address": nodes.address, "ship": "always", "jobs": jobs}


def beating(tmp_path, name):
    return {"opt": BEATING, "marker": str(tmp_path / name)}


def wait_for(condition, process=None):
    deadline = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        assert process is None or process.poll() is None, process.stderr.read()
        time.sleep(0.05)


def checkpoints(folder):
    return {path.parent.parent for path in folder.rglob("checkpoint.pt")}


def ended(folder):
    return trials(folder) if (folder / "trials.csv").is_file() else pd.DataFrame()


def test_trial_of_a_killed_node_goes_on_elsewhere_from_its_checkpoint(tmp_path, nodes):
    spec, observer, folder = beating(tmp_path, "marker"), Notes(), tmp_path / "s"

    def kill():
        wait_for(lambda: checkpoints(folder))
        nodes.kill_one()

    # One trial at a time: the node that is killed is the one that has sent the checkpoint.
    flags, killer = {"updates": UPDATES, "grids": {"lr": "0.01,0.1"}}, threading.Thread(target=kill)
    killer.start()
    assert run(folder, spec, observer=observer, **flags, **there(nodes, jobs=1))["status"] == "done"
    killer.join()
    nodes.add()
    beats = len((tmp_path / "marker").read_text())
    run(tmp_path / "p", spec, jobs=2, **flags)
    pd.testing.assert_frame_equal(trials(folder), trials(tmp_path / "p"))
    assert [sentence for sentence in observer.sentences if sentence.endswith("it goes on elsewhere")]
    whole = len((tmp_path / "marker").read_text()) - beats
    assert beats - whole < UPDATES / 2, "the trial of the killed node began from the start"
    assert not checkpoints(folder), "what ended leaves records alone"


def test_trials_that_hang_crash_or_are_killed_are_those_of_processes(tmp_path, nodes):
    specs = [{"opt": FAULTY, "how": how, "marker": str(tmp_path / how)} for how in ("kill", "hang", "raise")]
    flags = {"grids": {"lr": "0.1,0.3"}, "trial_timeout": 15}
    for folder, place in (("s", there(nodes)), ("p", {"jobs": 3})):
        observer = Notes()
        assert run(tmp_path / folder, *specs, observer=observer, **flags, **place)["status"] == "failed"
        assert len([s for s in observer.sentences if s.endswith("it is tried once more")]) == 2
    pd.testing.assert_frame_equal(trials(tmp_path / "s"), trials(tmp_path / "p"))
    assert sorted(trials(tmp_path / "s")["status"]) == ["done"] * 3 + ["failed"] * 3


def test_leader_that_is_killed_goes_on_with_the_same_command(tmp_path, nodes):
    folder, spec = tmp_path / "s", beating(tmp_path, "marker")
    flags = {
        **SMALL,
        **there(nodes),
        "updates": 30,
        "extend": 0,
        "top": 0,
        "grid": "lr=0.01,0.1,0.2",
        "out": folder,
    }
    words = [f"--{key.replace('_', '-')}={value}" for key, value in flags.items()]
    command = [sys.executable, "-m", "kfbench", "sweep", "lr", "--opt", f"{BEATING}:marker={spec['marker']}", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    leader = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
    wait_for(lambda: len(ended(folder)) >= 1 and len(checkpoints(folder)) >= 1, leader)
    leader.send_signal(signal.SIGKILL)
    leader.communicate()
    done = ended(folder)
    assert 1 <= len(done) < 3
    written = {name: (folder / name / "summary.json").stat().st_mtime_ns for name in done["run_dir"]}
    leader = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert leader.returncode == 0, leader.stderr
    assert written == {name: (folder / name / "summary.json").stat().st_mtime_ns for name in written}
    run(tmp_path / "p", spec, updates=30, grids={"lr": "0.01,0.1,0.2"}, jobs=3)
    pd.testing.assert_frame_equal(trials(folder), trials(tmp_path / "p"))


def test_what_no_node_can_run_is_refused_before_anything_is_written(tmp_path, nodes):
    with pytest.raises(UsageError, match=r"no node of the Ray cluster has 64 CPUs and 0 GPUs .* of 3 has 1 and 0"):
        run(tmp_path / "s", "sgd", trial_cpus=64, **there(nodes))
    assert not list((tmp_path / "s").iterdir())


def test_what_ray_says_of_a_job_that_sent_no_outcome():
    exceptions = ray.exceptions
    assert ray_tasks._without_report(exceptions.OutOfMemoryError("x"), exceptions)[0] == "crashed"
    assert ray_tasks._without_report(exceptions.WorkerCrashedError(), exceptions)[0] == "lost"
    assert ray_tasks._without_report(StopIteration(), exceptions)[0] == "lost"
    kind, why = ray_tasks._without_report(exceptions.RayTaskError("f", "long", ValueError("of its own")), exceptions)
    assert (kind, why) == ("crashed", "ValueError: of its own")
