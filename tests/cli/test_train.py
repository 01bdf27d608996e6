"""`kfbench train`: one command at a time in a folder, nothing lost to --overwrite, and no exit but its own."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.results.run_folders import tree

Q = ["--width", "8", "--updates", "40", "--train-samples", "100", "--batch-size", "20"]
KFBENCH = [sys.executable, "-m", "kfbench"]

EXITS = """
import sys
import torch
from torch import nn

def maybe(place, where):
    if place == where:
        sys.exit()

class Method:
    fisher, orders = "none", ("independent", "same")
    def __init__(self, place="none"):
        self.place = place
        maybe(place, "constructor")
    def check(self, damping, points, vectors):
        maybe(self.place, "check")
    def observe(self, statistics):
        maybe(self.place, "observe")
    def refresh(self, damping):
        maybe(self.place, "refresh")
    def apply(self, gradients):
        maybe(self.place, "apply")
        return {name: G.dense() for name, G in gradients.items()}
    def state_dict(self):
        maybe(self.place, "state_dict")
        return {}
    def load_state_dict(self, state):
        pass

class Optimizer(torch.optim.SGD):
    def __init__(self, params, lr=0.1, place="none"):
        super().__init__(params, lr=lr)
        self.place = place
        maybe(place, "constructor")
    def step(self, closure=None):
        maybe(self.place, "step")
        return super().step(closure)
    def state_dict(self):
        maybe(self.place, "state_dict")
        return super().state_dict()

class Stop(BaseException):
    pass

class Stops(torch.optim.SGD):
    def step(self, closure=None):
        raise Stop("enough")

class Forward(nn.Sequential):
    calls = 0
    def forward(self, x):
        self.calls += self.training
        if self.calls > 3:
            sys.exit("bye")
        return super().forward(x)

def exits_in_forward(input_shape, outputs):
    return Forward(nn.Flatten(), nn.Linear(784, outputs))
"""

BUILDING = [
    ("--model", "sys:exit", "--opt", "sgd"),
    ("--opt", "exits:Optimizer:place=constructor"),
    ("--opt", "exits:Method:place=constructor"),
    ("--opt", "exits:Method:place=check"),
]
TRAINING = {
    **{
        ("--opt", f"exits:Method:T=2,place={place}"): "SystemExit"
        for place in ("observe", "refresh", "apply", "state_dict")
    },
    ("--opt", "exits:Optimizer:place=step"): "SystemExit",
    ("--opt", "exits:Optimizer:place=state_dict"): "SystemExit",
    ("--opt", "exits:Stops"): "Stop: enough",
    ("--opt", "sgd", "--model", "exits:exits_in_forward"): "SystemExit: bye",
}


@pytest.fixture
def exits():
    Path("exits.py").write_text(EXITS)
    sys.modules.pop("exits", None)


def without_width(words):
    """A model of the user's has none."""
    return [w for w in Q if w not in ("--width", "8")] if "--model" in words else Q


@pytest.mark.parametrize("words", BUILDING, ids=lambda words: words[-1])
def test_exiting_while_it_is_built_is_one_sentence(kfbench, exits, words):
    for command in ("train", "compare"):
        code, out, err = kfbench(command, *words, *without_width(words), "--out", "o")
        assert code == 2 and not out and "SystemExit" in err and len(err.splitlines()) == 1
        assert not Path("o").exists()


@pytest.mark.parametrize(("words", "reason"), TRAINING.items(), ids=lambda words: words[-1])
def test_exiting_in_training_fails_that_seed_alone(kfbench, exits, words, reason):
    code, _, err = kfbench("train", *words, *without_width(words), "--seeds", 2, "--out", "o")
    assert code == 3 and f"seed 0 failed: {reason}\nseed 1 failed: {reason}\n" in err
    assert all(Path(f"o/seed-{seed}/summary.json").exists() for seed in (0, 1))


def test_exiting_in_one_method_does_not_end_the_comparison(kfbench, exits):
    code, out, err = kfbench("compare", "--opt", "exits:Optimizer:place=step", "--opt", "sgd", *Q, "--out", "o")
    assert code == 3 and "sgd" in out and "left out: " in err


SECOND = [
    ("train", "--opt", "foof:T=5", *Q),
    ("train", "--opt", "sgd", *Q, "--overwrite"),
    ("train", "--resume"),
    ("sweep", "lr", "--opt", "sgd", *Q),
    ("compare", "--opt", "sgd", *Q, "--overwrite"),
    ("similarity", *Q, "--overwrite"),
    ("wallclock", "--quick", "--width", "8", "--overwrite"),
]


def test_a_second_command_is_refused_while_one_writes(kfbench):
    endless = [*KFBENCH, "train", "--opt", "sgd", *Q[:2], "--updates", "100000000", *Q[4:], "--out", "o"]
    first = subprocess.Popen(endless, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not Path("o/seed-0/updates.csv").exists() and first.poll() is None:
            time.sleep(0.02)
        before = Path("o/config.yaml").read_bytes()
        names = {path.name for path in Path().iterdir()}
        for words in SECOND:
            code, _, err = kfbench(*words, "--out", "o")
            assert code == 2 and "Error: o is in use by another command; " in err
            assert Path("o/config.yaml").read_bytes() == before and names == {path.name for path in Path().iterdir()}
    finally:
        first.send_signal(signal.SIGTERM)
        _, err = first.communicate()
    assert first.returncode == 130 and "interrupted; continue with" in err


def test_two_at_once_leave_the_records_of_one(kfbench):
    words = [*KFBENCH, "train", *Q, "--out", "o", "--opt"]
    pair = [
        subprocess.Popen([*words, spec], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for spec in ("sgd", "adam")
    ]
    said = [process.communicate()[1].decode() for process in pair]
    assert sorted(process.returncode for process in pair) == [0, 2], said
    rows = Path("o/seed-0/updates.csv").read_text().splitlines()[1:]
    assert len(rows) == 40 and len({row.split(",")[0] for row in rows}) == 1


def test_a_killed_and_a_refused_overwrite_lose_nothing(kfbench):
    assert kfbench("train", "--opt", "foof:T=5", *Q, "--out", "o")[0] == 0
    before = tree()
    program = (
        "import os, sys; from pathlib import Path; from kfbench.results import folders;"
        "plain = folders.OutputFolder.begin;"
        "folders.OutputFolder.begin = lambda self: (plain(self), os.kill(os.getpid(), 9));"
        f"sys.argv = ['kfbench', 'train', '--opt', 'sgd', *{Q}, '--out', 'o', '--overwrite'];"
        "from kfbench.cli.app import main; main()"
    )
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL and os.listdir("o") == []
    code, _, err = kfbench("train", "--opt", "sgd", *Q[:-1], "5000", "--out", "o", "--overwrite")
    assert code == 2 and "batch_size is 5000" in err and tree() == before
    Path("o").rename(".o.replaced-by-kfbench")
    assert kfbench("train", "--resume", "--out", "o")[0] == 0
    assert {path for path in tree() if "replaced" in path} == set()


def test_resume_of_nothing_says_so(kfbench):
    code, _, err = kfbench("train", "--resume", "--out", "nowhere")
    assert code == 2 and "Error: --resume: nowhere holds no run (no config.yaml)" in err
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_torn_summary_does_not_stop_whoever_continues(kfbench, command):
    words = [command, "--opt", "sgd", *Q, "--out", "o"]
    assert kfbench(*words)[0] == 0
    (summary,) = Path("o").rglob("seed-0/summary.json")
    whole = summary.read_text()
    os.truncate(summary, 100)
    code, _, err = kfbench(*(["train", "--resume", "--out", "o"] if command == "train" else words))
    assert code == 0 and "Warning: " in err and "summary.json" in err
    loss = re.search('"final_train_loss": [^\n]*', whole)[0]
    assert loss in summary.read_text()
    shutil.rmtree("o")
