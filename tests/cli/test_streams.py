"""What cannot be shown does not decide about the work, nor about its exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_KFBENCH = [sys.executable, "-m", "kfbench"]
_PROBLEM = ["--width", "8", "--train-samples", "100", "--batch-size", "20"]
_COMMANDS = {
    "train": ["train", "--opt", "sgd", "--updates", "60", *_PROBLEM, "--out", "o"],
    "sweep": ["sweep", "lr", "--opt", "sgd", "--grid", "lr=0.1,0.2", "--quick", *_PROBLEM, "--out", "o"],
    "compare": ["compare", "--opt", "sgd", "--opt", "adam", "--quick", *_PROBLEM, "--out", "o"],
    "wallclock": ["wallclock", "--opt", "adam", "--quick", "--width", "8", "--batch-size", "20", "--out", "o"],
}


def _broken_pipe():
    out, into = os.pipe()
    os.close(out)
    return os.fdopen(into, "wb")


@pytest.fixture
def ended(tmp_path):
    """Run a command in a new folder; returns its exit code, what it wrote, and its summary."""

    def run(arguments, **streams):
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        done = subprocess.run([*_KFBENCH, *arguments], cwd=tmp_path, text=True, timeout=240, **streams)
        summary = tmp_path / "o" / "summary.json"
        return done, json.loads(summary.read_text()) if summary.exists() else None

    return run


@pytest.mark.parametrize("command", _COMMANDS)
@pytest.mark.parametrize("kind", ["full", "gone"])
def test_progress_that_cannot_be_written_is_given_up_and_the_work_goes_on(ended, command, kind):
    with Path("/dev/full").open("wb") if kind == "full" else _broken_pipe() as stream:
        done, summary = ended(_COMMANDS[command], stderr=stream)
    assert done.returncode == 0 and "sgd" in done.stdout
    assert summary["status"] == "done"


def test_all_trials_are_run_though_the_only_reader_has_gone(ended, tmp_path):
    """As in ``kfbench sweep ... 2>&1 | head -1``."""
    with _broken_pipe() as stream:
        done, summary = ended(_COMMANDS["sweep"], stdout=stream, stderr=stream)
    assert done.returncode == 0 and summary["status"] == "done"
    assert len((tmp_path / "o" / "trials.csv").read_text().splitlines()) >= 3


def test_the_exit_code_of_the_work_stays_though_nobody_reads_the_table(ended):
    with _broken_pipe() as stream:
        done, _ = ended(["train", "--opt", "sgd", "--lr", "1e30", "--quick", *_PROBLEM], stdout=stream)
        refused, _ = ended(["train", "--opt", "sgd", "--lr", "-1"], stderr=stream)
    assert (done.returncode, refused.returncode) == (3, 2)
    assert "diverged" in done.stderr and "Broken" not in done.stderr


def test_plots_are_made_though_nobody_reads_the_table(ended, tmp_path):
    with _broken_pipe() as stream:
        done, _ = ended([*_COMMANDS["wallclock"], "--plot"], stdout=stream)
    assert done.returncode == 0 and (tmp_path / "o" / "wallclock.png").exists()


def test_a_table_that_does_not_fit_on_the_disk_is_an_error(ended):
    with Path("/dev/full").open("wb") as stream:
        done, _ = ended(["list"], stdout=stream)
    assert done.returncode == 2
    assert done.stderr == "Error: No space left on device; what was written before stays valid\n"


@pytest.mark.parametrize("closed", ["2>&-", ">&-"])
def test_streams_that_were_closed_before(tmp_path, closed):
    """Nothing that is meant for one of them gets into the other, or into a file that takes its number."""
    command = f"{sys.executable} -m kfbench train --opt sgd --quick {' '.join(_PROBLEM)} --format json --out o {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    if closed == "2>&-":
        assert json.loads(done.stdout) == summary
    for file in (tmp_path / "o").rglob("*.csv"):
        assert "records" not in file.read_text()
