"""`train` on several processes over gloo: records are those of one; they are interrupted, fail and go on together."""

import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest

from kfbench.results.records import load
from tests.runs import epochs, updates
from tests.training.several import Started

TINY = ["--width", 12, "--train-samples", 82, "--eval-samples", 50, "--batch-size", 20, "--dtype", "float64"]
KFAC = ["train", "--opt", "kfac:T=3,lr=0.003,damping=0.01,warmup_batches=2", *TINY]
ENDLESS = ["--updates", 1_000_000]

MODEL = """
import torch
from torch import nn

class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        if self.calls > 8 and torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
            raise ValueError("no more")
        return x

def failing(input_shape, outputs):
    return nn.Sequential(nn.Flatten(), Failing(), nn.Linear(784, outputs))

def failing_before_others_add_up(input_shape, outputs):
    return nn.Sequential(nn.Flatten(), Failing(), normalised(input_shape, outputs))

def normalised(input_shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.BatchNorm1d(4), nn.Linear(4, outputs))
"""


def assert_same(folder, other):
    for table in (updates, epochs):
        mine, theirs = (table(one).drop(columns=["method"]).astype(float) for one in (folder, other))
        pd.testing.assert_frame_equal(mine, theirs, check_exact=False, rtol=1e-9)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The records of one process."""
    folder = tmp_path_factory.mktemp("alone")
    started = Started(folder, 1, *KFAC, "--epochs", 3, "--out", folder / "run")
    assert started.ended() == [0], started.errors()
    return folder / "run"


def test_two_leave_what_one_leaves(tmp_path, alone):
    two = Started(tmp_path, 2, *KFAC, "--epochs", 3, "--out", tmp_path / "run")
    assert two.ended() == [0, 0], two.errors()
    assert_same(tmp_path / "run", alone)
    assert two.outputs()[0].count("kfac") == 1 and two.outputs()[1] == two.errors()[1] == ""
    assert sorted(p.name for p in tmp_path.rglob("*.csv")) == ["epochs.csv", "updates.csv"]
    summary = load(tmp_path / "run").summary["runs"][0]
    assert summary["processes"] == 2 and summary["bytes_sent"] > 0
    # Where it ran is no part of what it is.
    assert (tmp_path / "run" / "config.yaml").read_text() == (alone / "config.yaml").read_text()


def test_interrupted_by_a_signal_to_one_of_them_and_continued_by_three(tmp_path, alone):
    run = tmp_path / "run"
    two = Started(tmp_path, 2, *KFAC, *ENDLESS, "--out", run)
    two.wait_for(run / "seed-0" / "updates.csv")
    os.kill(two.processes[1].pid, signal.SIGTERM)
    assert two.ended() == [130, 130], two.errors()
    assert f"interrupted; continue with: kfbench train --resume --out {run}" in two.errors()[0]
    made = len(updates(run))
    three = Started(tmp_path, 3, "train", "--resume", "--out", run)
    three.wait_for(run / "seed-0" / "updates.csv", max(made, 15))
    for process in three.processes:
        os.kill(process.pid, signal.SIGINT)
    assert three.ended() == [130, 130, 130], three.errors()
    assert len(updates(run)) > made
    losses, wanted = (updates(one)["loss"].astype(float) for one in (run, alone))
    pd.testing.assert_series_equal(losses[:15], wanted, rtol=1e-9)
    assert updates(run)["update"].astype(int).tolist() == list(range(len(updates(run))))


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_all_with_one_sentence(tmp_path, killed):
    run = tmp_path / "run"
    two = Started(tmp_path, 2, *KFAC, *ENDLESS, "--out", run)
    two.wait_for(run / "seed-0" / "updates.csv")
    two.processes[killed].kill()
    codes = two.ended()
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == 3, two.errors()
    # Where the first is killed, who keeps the store here, torch itself complains beside it.
    said = [line for line in two.errors()[1 - killed].splitlines() if line.startswith(("Error", "Traceback"))]
    sentence = "one of the 2 processes ended without a word, so the run ends; continue it with --resume"
    assert said == [f"Error: {sentence}"]


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A module that a run can name, in the folder in which it runs."""
    (tmp_path / "models.py").write_text(MODEL)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return "models"


@pytest.mark.parametrize("model", ["failing", "failing_before_others_add_up"])
def test_what_one_raises_ends_all_and_is_said_once(tmp_path, models, model):
    two = Started(tmp_path, 2, "train", "--opt", "sgd", "--model", f"{models}:{model}", "--batch-size", 20, *ENDLESS)
    assert two.ended() == [3, 3], two.errors()
    first, second = two.errors()
    assert "Error: another process failed: process 1 failed: ValueError: no more" in first and second == ""


def test_batch_normalisation_is_that_of_one_process_and_is_continued_by_another_number(tmp_path, models):
    """After two epochs; running averages are in the checkpoint, the losses of evaluations depend on them."""
    given = [*KFAC[:3], *(arg for arg in TINY if arg not in ("--width", 12)), "--model", f"{models}:normalised"]
    one, run = tmp_path / "one", tmp_path / "run"
    assert Started(tmp_path, 1, *given, "--epochs", 4, "--out", one).ended() == [0]
    two = Started(tmp_path, 2, *given, "--epochs", 4, "--out", run)
    two.wait_for(run / "seed-0" / "updates.csv")
    two.processes[1].terminate()
    two.ended()  # interrupted, or through
    three = Started(tmp_path, 3, "train", "--resume", "--out", run)
    assert three.ended() == [0, 0, 0], three.errors()
    assert_same(run, one)


def test_they_diverge_together(tmp_path):
    run = tmp_path / "run"
    two = Started(
        tmp_path, 2, "train", "--opt", "sgd:lr=1e9,weight_decay=1000", *TINY, "--epochs", 9, "--seeds", 2, "--out", run
    )
    assert two.ended() == [3, 3], two.errors()
    assert [seed["status"] for seed in json.loads((run / "summary.json").read_text())["runs"]] == ["diverged"] * 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--opt", "natural"], "method 'natural' keeps the rows of a whole batch: one process only, got 2"),
        (["sweep", "lr", "--opt", "sgd"], "torchrun is for train alone: sweep takes one process, got WORLD_SIZE=2"),
    ],
)
def test_what_cannot_be_shared_is_said_once(tmp_path, arguments, sentence):
    two = Started(tmp_path, 2, *arguments)
    assert two.ended() == [2, 2], two.errors()
    assert two.errors()[0].count("Error") == 1 and sentence in two.errors()[0]
    assert "Traceback" not in two.errors()[1]


def test_torchrun_itself(tmp_path, alone):
    """As the page says it: the port is found, and nothing but the first process's table is printed."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "kfbench"]
    command = [*torchrun, *map(str, KFAC), "--epochs", "3", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("kfac") == 1
    assert_same(tmp_path / "run", alone)
