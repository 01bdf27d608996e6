"""`kfbench train`, and what holds for every command that trains.

One command at a time in a folder, nothing lost to --overwrite, no exit but its own, and --resume from
what is whole and its own, from nothing else.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kfbench.executors import processes
from kfbench.training import seed_run
from kfbench.training.checkpoint import CHECKPOINT, RESERVE, save_checkpoint
from kfbench.updates.trainee import Trainee
from tests.results.run_folders import tree
from tests.runs import epochs, updates

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


def test_exiting_ends_neither_the_timing_of_others_nor_a_look_at_directions(kfbench, exits):
    spec = "exits:Method:T=2,place=apply"
    code, out, err = kfbench("wallclock", "--quick", "--width", "8", "--opt", spec, "--opt", "adam")
    assert code == 3 and "adam" in out and "cannot be timed, and is left out: SystemExit" in err
    code, _, err = kfbench("wallclock", "--quick", "--width", "8", "--reference", spec, "--opt", "adam")
    assert code == 2 and "Error: the reference, 'exits.Method', cannot be timed: SystemExit" in err
    for words in (("--follow", spec, "--opt", "sgd"), ("--follow", "sgd", "--opt", spec)):
        code, _, err = kfbench("similarity", *words, *Q)
        assert code == 3 and "seed 0 failed: SystemExit" in err


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


EVERY = {
    "train": ["--opt", "sgd", *Q],
    "sweep": ["lr", "--opt", "sgd", *Q],
    "compare": ["--opt", "sgd", *Q],
    "compare DIR": ["a", "--html"],
    "similarity": Q,
    "wallclock": ["--quick", "--width", "8"],
}


def test_overwrite_takes_no_configuration_of_somebody_else_for_ours(kfbench):
    assert kfbench("train", "--opt", "sgd", *Q, "--out", "a")[0] == 0
    for name in ("o", ".a.replaced", ".a.replaced-by-kfbench"):
        Path(name).mkdir()
        Path(name, "config.yaml").write_text("theme: dark")
        Path(name, "thesis.tex").write_text("years of work")
    before = tree()
    for command, words in EVERY.items():
        code, _, err = kfbench(command.split()[0], *words, "--out", "o", "--overwrite")
        assert code == 2 and "Error: --overwrite: o is no output folder of kfbench by its config.yaml: it stays" in err
    code, _, err = kfbench("train", "--opt", "adam", *Q, "--out", "a", "--overwrite")
    assert code == 2 and ".a.replaced-by-kfbench is in the way" in err and tree() == before
    shutil.rmtree(".a.replaced-by-kfbench")
    assert kfbench("train", "--opt", "adam", *Q, "--out", "a", "--overwrite")[0] == 0
    assert Path(".a.replaced/thesis.tex").read_text() == "years of work"


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


# What --resume goes on from.

SPEC = ("--opt", "sgd:lr=0.1,momentum=0.9")
RESUME = ("train", "--resume", "--out", "o")


def stopped(kfbench, *words):
    """A command that SIGTERM stops in update 23, with the checkpoints of 23 and before; none of its seeds has ended."""
    plain = Trainee.update

    def update(self, *batch):
        if self.step == 22:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seed_run, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(seed_run, "BLOCK", 3)
        patch.setattr(Trainee, "update", update)
        assert kfbench(*words, *Q, "--out", "o")[0] == 130
    (seed,) = Path("o").rglob("seed-0")
    (seed / "summary.json").unlink()  # as after kill -9
    return seed


@pytest.fixture
def begun(kfbench):
    """The folder of a seed that was stopped; beside it, in ``whole``, the run that was not."""
    assert kfbench("train", *SPEC, *Q, "--out", "whole")[0] == 0
    return stopped(kfbench, "train", *SPEC)


@pytest.fixture
def made(monkeypatch):
    """The updates that are made from here on."""
    made, plain = [], Trainee.update
    monkeypatch.setattr(Trainee, "update", lambda self, *batch: (made.append(self.step), plain(self, *batch))[1])
    return made


def assert_whole(run="o"):
    for read in (updates, epochs):
        assert read(Path(run)).equals(read(Path("whole")))


@pytest.mark.parametrize("size", [4096, 1], ids=["zeros", "a bit"])
def test_resume_passes_over_a_damaged_checkpoint_to_the_reserve(kfbench, begun, made, size):
    content = bytearray((begun / CHECKPOINT).read_bytes())
    half = len(content) // 2
    content[half : half + size] = bytes(size) if size > 1 else bytes([content[half] ^ 4])
    (begun / CHECKPOINT).write_bytes(content)
    assert kfbench(*RESUME)[0] == 0
    assert_whole()
    assert 20 <= made[0] < 23, "from the one before"
    assert not (begun / RESERVE).exists()


def test_resume_takes_no_checkpoint_of_another_seed(kfbench):
    seed = stopped(kfbench, "train", *SPEC, "--seeds", "2")
    shutil.copytree(seed, "o/seed-1")
    before = Path("o/seed-1/updates.csv").read_bytes()
    code, _, err = kfbench(*RESUME)
    assert code == 2 and f"Error: no checkpoint in o/seed-1 can be read: {CHECKPOINT} is of seed 0, not of 1" in err
    assert Path("o/seed-1/updates.csv").read_bytes() == before


def test_resume_goes_on_from_the_checkpoint_whatever_became_of_the_summary(kfbench, begun, made):
    shutil.copytree("o", "stopped")
    for content in ("", '{"schema_ver', "[]", "null"):
        (begun / "summary.json").write_text(content)
        made.clear()
        code, _, err = kfbench(*RESUME)
        assert code == 0 and "Warning: o/seed-0/summary.json " in err
        assert_whole()
        assert made[0] == 23, "none is made twice"
        shutil.rmtree("o")
        shutil.copytree("stopped", "o")


def test_compare_goes_on_from_the_checkpoint_whatever_became_of_the_summary(kfbench, made):
    assert kfbench("train", *SPEC, *Q, "--out", "whole")[0] == 0
    words = ("compare", *SPEC, "--seeds", "1")
    (stopped(kfbench, *words) / "summary.json").write_text("[]")
    made.clear()
    assert kfbench(*words, *Q, "--out", "o")[0] == 0
    assert_whole("o/sgd")
    assert made[0] == 23


def test_compare_begins_a_seed_anew_of_which_no_checkpoint_can_be_read(kfbench, made):
    assert kfbench("train", *SPEC, *Q, "--out", "whole")[0] == 0
    words = ("compare", *SPEC, "--seeds", "1")
    seed = stopped(kfbench, *words)
    for name in (CHECKPOINT, RESERVE):
        torch.save({"trainee": {"scale": processes.Job}}, seed / name)
    made.clear()
    code, _, err = kfbench(*words, *Q, "--out", "o")
    assert code == 0 and "o/sgd/seed-0 can be read: " in err and "; seed 0 is trained anew" in err
    assert_whole("o/sgd")
    assert made[0] == 0


def test_what_is_no_checkpoint_is_the_reserves_turn_then_one_sentence(kfbench, begun):
    (begun / RESERVE).rename("reserve")
    for content in ({}, torch.ones(3), "model", None):
        torch.save(content, begun / CHECKPOINT)
        code, _, err = kfbench(*RESUME)
        assert code == 2 and f"Error: no checkpoint in o/seed-0 can be read: {CHECKPOINT} " in err
        assert "start anew with --overwrite" in err and len(err.splitlines()) == 1
    Path("reserve").rename(begun / RESERVE)
    assert kfbench(*RESUME)[0] == 0
    assert_whole()


def test_weights_of_another_model_are_told_in_full(kfbench, begun):
    content = torch.load(begun / CHECKPOINT, weights_only=True)
    weight = content["trainee"]["model"]
    name = next(iter(weight))
    weight[name] = weight[name][:, 1:].clone()
    save_checkpoint(begun, content)
    (begun / RESERVE).unlink()
    code, _, err = kfbench(*RESUME)
    assert code == 2 and f"size mismatch for {name}" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_state_that_could_not_be_read_again_is_refused_at_once(kfbench, command):
    Path("keeps.py").write_text(
        "import numpy\nfrom torch.optim import SGD\nclass Keeps(SGD):\n"
        "    def state_dict(self):\n        return {'scale': numpy.ones(2), **super().state_dict()}\n"
    )
    sys.modules.pop("keeps", None)
    code, _, err = kfbench(command, "--opt", "keeps:Keeps:lr=0.1", *Q, "--out", "o")
    assert code == 2 and err.splitlines()[-1] == (
        "Error: keeps.Keeps: its state cannot be saved: optimizer.scale is a numpy.ndarray; expected tensors and "
        "plain values in state_dict"
    )


def test_a_fork_server_that_always_dies_is_no_interruption(kfbench, monkeypatch):
    def start(process):
        raise EOFError("unexpected end")

    monkeypatch.setattr(processes, "_BETWEEN_STARTS", 0.01)
    monkeypatch.setattr("multiprocessing.context.ForkServerProcess.start", start)
    code, _, err = kfbench("sweep", "lr", "--opt", "sgd", "--grid", "lr=0.1,0.2", *Q[:2], *Q[4:], "--epochs", "1")
    assert code == 2 and "Error: the process from which trials are forked ends as it starts" in err


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
