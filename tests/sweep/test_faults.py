"""Trials in real processes: whatever goes wrong with one harms only that one, and nothing is lost or doubled."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from kfbench.config.load import load_config
from kfbench.errors import UsageError
from kfbench.sweep import ledger as ledger_module
from kfbench.sweep.run import sweep
from kfbench.sweep.watcher import SweepObserver

ROOT = Path(__file__).parent.parent.parent
FAULTY, BEATING = "tests.sweep.faulty:Faulty", "tests.sweep.faulty:Beating"
SMALL = {"width": 8, "train_samples": 60, "eval_samples": 20, "batch_size": 20, "updates": 6}
SWEEP = {"parameters": ["lr"], "grids": {"lr": "0.01,0.1,0.3"}, "extend": 0, "top": 0}


class Notes(SweepObserver):
    def __init__(self):
        self.sentences, self.left = [], []

    def note(self, sentence):
        self.sentences.append(sentence)

    def ended(self, row, done, total, seconds_left):
        self.left.append((done, total, seconds_left))


def run(folder, spec, observer=None, **flags):
    folder.mkdir(exist_ok=True)
    config = load_config(specs=[spec], flags={**SMALL, **SWEEP, **flags}, command="sweep")
    return sweep(config, folder, observer or Notes())


def faulty(how, marker, times=99):
    return {"opt": FAULTY, "how": how, "marker": str(marker), "times": times}


def table(folder):
    return pd.read_csv(folder / "trials.csv")


def losses(folder):
    """config_hash -> loss, each once."""
    rows = table(folder)
    assert rows["config_hash"].is_unique
    return dict(zip(rows["config_hash"], rows["final_train_loss"], strict=True))


def test_trials_are_runs_like_those_of_train(tmp_path):
    summary = run(tmp_path / "s", "foof", parameters=["lr"], grids={"lr": "0.1,0.3"})
    assert summary["status"] == "done"
    rows = table(tmp_path / "s")
    for row in rows.itertuples():
        folder = tmp_path / "s" / row.run_dir
        assert {"config.yaml", "environment.json", "summary.json", "seed-0"} <= {p.name for p in folder.iterdir()}
        assert load_config(folder / "config.yaml").methods[0].options["lr"] == row.lr
        updates = pd.read_csv(folder / "seed-0" / "updates.csv")
        assert len(updates) == 6 and set(updates["method"]) == {"foof"}
        assert not list(folder.rglob("checkpoint*")), "records only: sweeps have many trials"


def test_several_jobs_give_the_same_losses_as_one(tmp_path):
    run(tmp_path / "1", "foof", parameters=["lr", "damping"], grids={"lr": "0.1,1.0", "damping": "0.1,1.0"}, top=1)
    grids = {"lr": "0.1,1.0", "damping": "0.1,1.0"}
    run(tmp_path / "2", "foof", parameters=["lr", "damping"], grids=grids, top=1, jobs=2)
    assert losses(tmp_path / "1") == losses(tmp_path / "2") and len(losses(tmp_path / "1")) == 4 + 3


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("exit", "ended with exit code 7 and no result"),
        ("kill", "was killed (signal 9), perhaps for want of memory"),
        ("raise", "RuntimeError: no such luck"),
    ],
)
def test_crash_harms_only_its_own_trial_and_is_tried_once_more(tmp_path, how, reason):
    observer = Notes()
    summary = run(tmp_path / "s", faulty(how, tmp_path / "marker"), observer, jobs=2)
    assert summary["status"] == "failed"
    assert table(tmp_path / "s").sort_values("lr")["status"].tolist() == ["done", "done", "failed"]
    assert len((tmp_path / "marker").read_text().splitlines()) == 2
    assert [reason in sentence for sentence in observer.sentences] == [True, True]
    assert "tried once more" in observer.sentences[0]


def test_second_chance_suffices_and_begins_anew(tmp_path):
    summary = run(tmp_path / "s", faulty("kill", tmp_path / "marker", times=1))
    assert summary["status"] == "done"
    run(tmp_path / "sound", faulty("none", tmp_path / "other"))
    assert table(tmp_path / "s")["final_train_loss"].tolist() == table(tmp_path / "sound")["final_train_loss"].tolist()
    folder = tmp_path / "s" / table(tmp_path / "s").set_index("lr").loc[0.3, "run_dir"]
    assert len(pd.read_csv(folder / "seed-0" / "updates.csv")) == 6


def test_trial_that_somebody_else_ends_is_started_again(tmp_path):
    summary = run(tmp_path / "s", faulty("term", tmp_path / "marker", times=1))
    assert summary["status"] == "done" and len(losses(tmp_path / "s")) == 3


def test_error_of_a_network_is_no_full_disk(tmp_path):
    summary = run(tmp_path / "s", faulty("network", tmp_path / "marker"))
    assert table(tmp_path / "s").sort_values("lr")["status"].tolist() == ["done", "done", "failed"]
    assert summary["status"] == "failed"


def test_first_look_at_a_method_that_diverges_refuses_nothing(tmp_path):
    spec = "foof:T=1"
    flags = {"parameters": ["lr", "damping"], "grids": {"lr": "1e8,1e9", "damping": "1.0"}}
    summary = run(tmp_path / "s", spec, **flags)
    assert summary["methods"]["foof-T=1"]["diverged"] == 2 and summary["status"] == "done"


def test_hanging_trial_is_ended_after_the_timeout(tmp_path):
    observer = Notes()
    began = time.monotonic()
    summary = run(tmp_path / "s", faulty("hang", tmp_path / "marker"), observer, trial_timeout=8)
    assert time.monotonic() - began < 60
    assert summary["status"] == "failed"
    assert table(tmp_path / "s").sort_values("lr")["status"].tolist() == ["done", "done", "failed"]
    assert "took longer than 8 s" in observer.sentences[-1]
    assert len((tmp_path / "marker").read_text().splitlines()) == 1


def test_timeout_shorter_than_one_update_is_refused_before_any_trial(tmp_path):
    with pytest.raises(UsageError, match=r"trial_timeout is 0.01 s, shorter than one update of .*Beating.*, 0.1"):
        run(tmp_path / "s", {"opt": BEATING, "marker": str(tmp_path / "m")}, trial_timeout=0.01)
    assert not list((tmp_path / "s").iterdir())


def test_wrong_methods_are_refused_before_any_trial(tmp_path):
    with pytest.raises(UsageError, match="raised on construction with"):
        run(tmp_path / "s", "torch.optim:Adam:eps=-1")
    with pytest.raises(UsageError, match="batch_size is 100, above the 60 training samples"):
        run(tmp_path / "s", "sgd", batch_size=100)
    assert not list((tmp_path / "s").iterdir())


def test_full_disk_in_a_trial_ends_the_sweep_and_the_same_command_continues(tmp_path):
    spec = faulty("full", tmp_path / "marker", times=1)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "s", spec)
    assert set(table(tmp_path / "s")["lr"]) == {0.01, 0.1}, "not recorded as a failure of the method"
    assert run(tmp_path / "s", spec)["status"] == "done"
    assert len(losses(tmp_path / "s")) == 3


def test_full_disk_of_the_leader_loses_no_trial(tmp_path, monkeypatch):
    plain = ledger_module.CsvLog.append

    def full(self, rows):
        raise OSError(28, "No space left on device", str(self.path))

    monkeypatch.setattr(ledger_module.CsvLog, "append", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "s", "sgd")
    monkeypatch.setattr(ledger_module.CsvLog, "append", plain)
    first = next((tmp_path / "s").glob("sgd/trial-*/seed-0/updates.csv"))
    written = first.stat().st_mtime_ns
    assert run(tmp_path / "s", "sgd")["status"] == "done"
    assert len(losses(tmp_path / "s")) == 3 and first.stat().st_mtime_ns == written, "it was run again"


def test_finished_folder_without_its_row_is_noted_not_run_again(tmp_path):
    run(tmp_path / "s", "sgd")
    path = tmp_path / "s" / "trials.csv"
    before = table(tmp_path / "s")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("updates.csv")}
    path.unlink()
    run(tmp_path / "s", "sgd")
    pd.testing.assert_frame_equal(table(tmp_path / "s"), before)
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("updates.csv")}


def test_two_sweeps_do_not_share_a_folder_at_the_same_time(tmp_path):
    (tmp_path / "s").mkdir()
    handle = os.open(tmp_path / "s", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="is in use by another command"):
        run(tmp_path / "s", "sgd")
    os.close(handle)
    assert run(tmp_path / "s", "sgd")["status"] == "done"


def test_committed_trials_are_not_taken_over_while_another_sweep_writes(tmp_path):
    run(tmp_path / "earlier", "sgd")
    folder = tmp_path / "s"
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="is in use by another command"):
        ledger_module.adopt(folder, tmp_path / "earlier" / "trials.csv")
    assert not list(folder.iterdir())
    os.close(handle)
    assert ledger_module.adopt(folder, tmp_path / "earlier" / "trials.csv") == 3
    assert ledger_module.adopt(folder, tmp_path / "earlier" / "trials.csv") == 0 and len(losses(folder)) == 3


def _command(folder, marker):
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in {**SMALL, "updates": 12}.items()]
    spec = f"{BEATING}:marker={marker}"
    words = ["sweep", "lr", "--opt", spec, "--grid", "lr=0.01,0.02,0.05,0.1,0.2,0.5", "--extend=0", "--top=0", "-j2"]
    return [sys.executable, "-m", "kfbench", *words, *flags, f"--out={folder}"]


def _start(folder, marker):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        _command(folder, marker), cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _wait_for_trials(process, folder, count):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (folder / "trials.csv").is_file() and len(table(folder)) >= count:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("no trial ended in two minutes")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_or_interrupted_leader_takes_its_trials_along_and_continues(tmp_path, number):
    """After kill -9 no trial lives on beside those of the next leader; Ctrl-C is exit 130."""
    folder, marker = tmp_path / "s", tmp_path / "marker"
    process = _start(folder, marker)
    _wait_for_trials(process, folder, 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130 and "the same command continues" in err
        assert "status" in (folder / "summary.json").read_text()
    time.sleep(0.5)
    beats = marker.read_text()
    time.sleep(1.0)
    assert marker.read_text() == beats, "a trial outlived its leader"
    done = table(folder)
    assert 2 <= len(done) < 6
    times = {row.run_dir: (folder / row.run_dir / "summary.json").stat().st_mtime_ns for row in done.itertuples()}
    process = _start(folder, marker)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len(losses(folder)) == 6
    for name, written in times.items():
        assert (folder / name / "summary.json").stat().st_mtime_ns == written, "a finished trial was run again"
    run(tmp_path / "whole", {"opt": BEATING, "marker": str(marker)}, grids={"lr": "0.01,0.2"}, updates=12)
    whole = table(tmp_path / "whole").set_index("lr")["final_train_loss"]
    assert table(folder).set_index("lr")["final_train_loss"].loc[whole.index].tolist() == whole.tolist()


def test_progress_says_what_is_left(tmp_path):
    observer = Notes()
    run(tmp_path / "s", "sgd", observer)
    assert [(done, total) for done, total, _ in observer.left] == [(1, 3), (2, 3), (3, 3)]
    assert observer.left[0][2] > 0 and observer.left[-1][2] == 0
