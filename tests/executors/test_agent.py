"""What a node does for one job: in the leader's folder where it sees that, else in one of its own, sent home."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import kfbench
from kfbench.config.command_blocks import Placed
from kfbench.executors import agent
from kfbench.executors.agent import attend, errand
from kfbench.executors.contract import Job, Request
from kfbench.executors.parcels import contents, unpack


def request(ship, prepare="tests.executors.jobs:prepare"):
    placed = Placed(executor="ray", ship=ship)
    return Request(placed, 1, 1, "cpu", None, "json", prepare, {"of": ship})


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def job(home, function="write", *arguments):
    return Job("one", f"tests.executors.jobs:{function}", arguments, 60.0, home)


def reports(errand, home, wanted=lambda: True):
    """All of them, as they come home."""
    for report in attend(errand, lambda: contents(home), wanted):
        unpack(report.parcel, home)
        yield report


def test_in_the_leaders_own_folder_nothing_is_sent(home):
    (report,) = reports(errand(job(home, "write", "here"), request("auto")), home)
    assert report.outcome.value == str(home) and report.parcel.pieces == ()
    assert (home / "result.txt").read_text() == "here"


@pytest.mark.parametrize("ship", ["always", "auto"])
def test_elsewhere_everything_comes_home_and_nothing_stays(home, ship):
    wanted = errand(job(home, "write", "there"), request(ship))
    if ship == "auto":  # as where another disk lies at that path
        wanted = replace(wanted, seen_as=(0, 0, 0))
    *_, last = reports(wanted, home)
    assert last.outcome.kind == "returned" and last.outcome.value != str(home)
    assert (home / "result.txt").read_text() == "there"
    assert not agent.Path(last.outcome.value).exists()


def test_checkpoints_come_home_while_it_runs_and_another_node_goes_on_from_them(home):
    running = reports(errand(job(home, "grow", 60), request("always")), home)
    first = next(running)
    assert first.outcome is None and int((home / "checkpoint.pt").read_text()) >= 1
    running.close()  # the node is lost
    reached = int((home / "checkpoint.pt").read_text())
    *_, last = reports(errand(job(home, "grow", (reached + 3) / 10), request("always")), home)
    assert last.outcome.value == {"begun": reached, "ended": reached + 3}


def test_where_the_leader_wants_an_end_it_saves_and_sends_what_it_has(home):
    answers = iter([True, True, True])
    (*_, last) = reports(errand(job(home, "grow", 60), request("always")), home, lambda: next(answers, False))
    assert last.outcome is None
    rows = (home / "rows.csv").read_text().splitlines()
    assert int((home / "checkpoint.pt").read_text()) == len(rows) >= 1


def test_what_the_leader_no_longer_wants_is_not_begun(home):
    (report,) = reports(errand(job(home, "write", "late"), request("auto")), home, lambda: False)
    assert report.outcome is None and not list(home.iterdir())


def test_a_node_that_is_not_ready_says_why(home):
    (report,) = reports(errand(job(home), request("auto", "tests.executors.jobs:refuse")), home)
    assert report.outcome.kind == "refused" and "no data here" in report.outcome.value


def test_another_kfbench_on_the_node_is_refused(home):
    other = replace(errand(job(home), request("auto")), code=("0.0.1", "f" * 40), preload={"of": "other code"})
    (report,) = reports(other, home)
    assert report.outcome.kind == "refused"
    assert "the leader's 0.0.1 of digest ffffffffffff; install the same" in report.outcome.value


def test_an_installed_copy_of_the_leaders_code_is_the_same_kfbench(tmp_path, home):
    shutil.copytree(Path(kfbench.__file__).parent, tmp_path / "kfbench", ignore=shutil.ignore_patterns("__pycache__"))
    words = "from kfbench.executors.agent import Errand; print(*Errand(None, '', '', {}, None).code)"

    def of_copy():
        command = [sys.executable, "-P", "-c", words]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return tuple(subprocess.check_output(command, env=environment, cwd=tmp_path, text=True).split())

    assert of_copy() == errand(job(home), request("auto")).code
    (tmp_path / "kfbench" / "errors.py").write_text("# Changed.\n" + (tmp_path / "kfbench" / "errors.py").read_text())
    assert of_copy() != errand(job(home), request("auto")).code
