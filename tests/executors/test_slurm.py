"""Slurm as far as it goes without one: submitit's local executor, whose jobs are processes; what Slurm would say."""

from pathlib import Path

import pytest

submitit = pytest.importorskip("submitit")

import pandas as pd  # noqa: E402

from kfbench.config.command_blocks import Placed  # noqa: E402
from kfbench.errors import UsageError  # noqa: E402
from kfbench.executors import slurm  # noqa: E402
from kfbench.executors.contract import Job, Request  # noqa: E402
from kfbench.executors.slurm import SlurmExecutor  # noqa: E402
from kfbench.results.contents import foreign_entry  # noqa: E402
from tests.executors.sweeps import run, trials  # noqa: E402


def request(directory, **parameters):
    placed = Placed(executor="slurm", slurm={"cluster": "local", **parameters})
    return Request(placed, 2, 1, "cpu", directory, "json", "tests.executors.jobs:prepare", {})


def ended(executor):
    """The next outcome."""
    for _ in range(120):
        if outcomes := executor.wait(1.0):
            return outcomes[0]
    raise AssertionError("nothing ended in two minutes")


@pytest.fixture
def executor(tmp_path):
    executor = SlurmExecutor.of(request(tmp_path))
    yield executor
    executor.stop()


def test_a_sweep_has_the_same_trials_as_by_processes(tmp_path):
    run(tmp_path / "p", "sgd", grids={"lr": "0.01,0.1"})
    there = {"executor": "slurm", "slurm": {"cluster": "local"}, "jobs": 2}
    assert run(tmp_path / "s", "sgd", grids={"lr": "0.01,0.1"}, **there)["status"] == "done"
    pd.testing.assert_frame_equal(trials(tmp_path / "s"), trials(tmp_path / "p"))
    assert foreign_entry(tmp_path / "s", "sweep") is None, "--overwrite must know all of it"


def test_jobs_save_what_they_have_when_the_leader_stops(executor, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    executor.submit(Job("one", "tests.executors.jobs:grow", (60,), folder=folder))
    while not (folder / "checkpoint.pt").exists():
        assert executor.wait(0.2) == []
    executor.stop()
    reached = int((folder / "checkpoint.pt").read_text())
    again = SlurmExecutor.of(request(tmp_path))
    again.submit(Job("one", "tests.executors.jobs:grow", ((reached + 2) / 10,), folder=folder))
    assert ended(again).value == {"begun": reached, "ended": reached + 2}


def test_a_killed_job_is_lost_not_failed(executor, tmp_path):
    executor.submit(Job("one", "tests.executors.jobs:nap", (5,)))
    executor._running["one"].handle._process.kill()
    outcome = ended(executor)
    assert outcome.kind == "lost" and "its job or node was lost" in outcome.value


def test_jobs_of_a_leader_that_was_killed_end_when_there_is_another(executor, tmp_path):
    """They wait in the queue, or train: no trial may run twice."""
    folder = tmp_path / "one"
    folder.mkdir()
    executor.submit(Job("one", "tests.executors.jobs:grow", (60,), folder=folder))
    while not (folder / "checkpoint.pt").exists():
        assert executor.wait(0.2) == []
    SlurmExecutor.of(request(tmp_path))
    outcome = ended(executor)
    assert (outcome.kind, outcome.value) == ("lost", "another leader has taken its place")
    assert len((folder / "rows.csv").read_text().splitlines()) == int((folder / "checkpoint.pt").read_text())


def test_debug_runs_jobs_here(tmp_path):
    placed = request(tmp_path, cluster="debug")
    executor = SlurmExecutor.of(placed)
    executor.submit(Job("one", "math:sqrt", (9.0,)))
    (outcome,) = executor.wait(1.0)
    executor.stop()
    assert (outcome.kind, outcome.value) == ("returned", 3.0)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"cluster": "moon"}, "slurm.cluster is 'moon'; accepted: slurm, local, debug"),
        ({"cluster": "slurm"}, "--executor slurm: RuntimeError: Could not detect"),
        ({"partitions": "gpu"}, "--executor slurm: "),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, parameters, sentence):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError) as refused:
        SlurmExecutor.of(request(tmp_path, **parameters))
    assert sentence in str(refused.value) and not list(tmp_path.iterdir())


def test_a_first_look_that_keeps_nothing_leaves_nothing():
    executor = SlurmExecutor.of(request(None, cluster="debug"))
    executor.submit(Job("one", "math:sqrt", (9.0,)))
    assert executor.wait(1.0)[0].value == 3.0
    executor.stop()
    executor.stop()
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("state", "kind"), [("OUT_OF_MEMORY", "crashed"), ("TIMEOUT", "late"), ("NODE_FAIL", "lost"), ("PREEMPTED", "lost")]
)
def test_what_slurm_says_of_a_job_without_outcome(state, kind):
    assert slurm._without_outcome(state, RuntimeError("log"))[0] == kind
