"""What becomes of processes of `wallclock` that end: by themselves, or under an interruption."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from kfbench.config.load import dump, load_config
from kfbench.training.interruption import Interruption
from kfbench.updates.build import build_data
from kfbench.updates.timed import preload
from kfbench.wallclock import memory_probe
from kfbench.wallclock.child import ChildError, values_of

SMALL = ["--width", "20", "--warmup-batches", "2", "--window-seconds", "0.01", "--opt", "foof:T=4,S=2", "--out", "a"]


def _counts(last, ending):
    yield from range(last)
    ending()


def _killed(number):
    os.kill(os.getpid(), number)
    time.sleep(60)


def _fails():
    raise MemoryError("too much")


def _exits():
    os._exit(3)


def _of_child(ending, *arguments, stop=None):
    context = multiprocessing.get_context("spawn")
    return values_of(context, _counts, (2, _Ending(ending, arguments)), stop or Interruption())


class _Ending:
    def __init__(self, function, arguments):
        self.function, self.arguments = function, arguments

    def __call__(self):
        self.function(*self.arguments)


def test_values_come_until_the_process_is_through():
    assert list(_of_child(int)) == [0, 1]


@pytest.mark.parametrize(
    ("ending", "why"),
    [
        ((_killed, signal.SIGKILL), "signal 9, perhaps for want of memory"),
        ((_killed, signal.SIGTERM), "signal 15"),
        ((_fails,), "MemoryError: too much"),
        ((_exits,), "exit code 3"),
    ],
)
def test_a_death_without_an_interruption_is_told(ending, why):
    values = _of_child(*ending)
    assert [next(values), next(values)] == [0, 1]
    with pytest.raises(ChildError, match=why):
        next(values)


@pytest.mark.parametrize("ending", [(_killed, signal.SIGTERM), (_fails,), (_exits,), (time.sleep, 60)])
def test_any_end_after_a_request_to_stop_is_the_interruption(ending):
    stop = Interruption()
    values = _of_child(*ending, stop=stop)
    assert [next(values), next(values)] == [0, 1]
    stop.requested = True
    began = time.monotonic()
    assert list(values) == []
    assert time.monotonic() - began < 10


def test_on_an_accelerator_no_process_is_started(monkeypatch):
    """Its allocator can forget the peak; what others hold there does not count, the data does."""
    config = load_config(specs=["foof"], flags={"width": 20, "warmup_batches": 2}, command="wallclock")
    data = build_data(config, torch.device("cpu"))
    batches = preload(data, 100, 0)
    monkeypatch.setattr(memory_probe, "values_of", None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 7_000_000)
    monkeypatch.setattr(memory_probe, "_measure", lambda *_: {"peak_memory_bytes": 9_000_000, "state_memory_bytes": 1})
    memory = memory_probe.probe_memory(config, data, batches, torch.device("cuda"), Interruption())
    of_data = 4 * 784 * (1000 + 10 * 100) + 4 * 784 * len(data.test_inputs) + 8 * (2000 + len(data.test_inputs))
    assert memory == {"peak_memory_bytes": 2_000_000 + of_data, "state_memory_bytes": 1}


def _interrupted(folder, arguments, wanted, number):
    """Send a signal to the whole process group once standard error says ``wanted``; code, output, errors."""
    command = [sys.executable, "-m", "kfbench", "wallclock", *SMALL, *arguments]
    with subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as running:
        late = threading.Timer(120, running.kill)
        late.start()
        errors = []
        for line in running.stderr:
            errors.append(line)
            if wanted in line:
                time.sleep(0.3)  # its process is at work
                os.killpg(running.pid, number)
                break
        output, rest = running.communicate()
        late.cancel()
    return running.returncode, output, "".join(errors) + rest


def test_a_probe_of_memory_repeats_no_warning(recwarn):
    """The leader's own run of the method has said it, in words of the command."""
    flags = {"dataset": "shakespeare", "model": "transformer", "context": 5, "width": 8, "depth": 1, "heads": 2}
    sizes = {"train_samples": 40, "eval_samples": 20, "batch_size": 4}
    (memory,) = memory_probe._apart(dump(load_config(specs=["foof:T=2"], flags=flags | sizes)))
    assert memory["state_memory_bytes"] > 0 and not recwarn.list


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_while_memory_is_probed(tmp_path, number):
    """As by Slurm or `timeout`: every process of the group gets it. The rounds are there, and summarised."""
    code, output, errors = _interrupted(tmp_path, ["--rounds", "6"], "tasks and memory of sgd", number)
    assert code == 130, errors
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["cells"][0]["methods"]["foof"]["rounds"] == 6
    assert "peak_memory_bytes" not in summary["cells"][0]["methods"]["foof"]
    assert "A/A" in output
    assert "Traceback" not in errors
    assert "internal" not in errors


def test_interrupted_in_a_process_of_rounds(tmp_path):
    flags = ["--rounds", "400", "--processes", "2"]
    code, _, errors = _interrupted(tmp_path, flags, "warming up foof", signal.SIGTERM)
    assert code == 130, errors
    assert "Traceback" not in errors


def test_memory_of_a_process_that_dies_is_missing_and_the_table_stands(tmp_path):
    program = f"""
import os, sys
from kfbench.cli.app import main
from kfbench.wallclock import memory_probe
plain = memory_probe.values_of
memory_probe.values_of = lambda context, function, arguments, stop: plain(context, os._exit, (3,), stop)
sys.argv = ["kfbench", "wallclock", *{SMALL!r}, "--rounds", "6"]
main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "A/A" in done.stdout
    assert "foof: its memory could not be measured: it ended with exit code 3" in done.stderr
    (cell,) = json.loads((tmp_path / "a" / "summary.json").read_text())["cells"]
    assert "peak_memory_bytes" not in cell["methods"]["foof"]
    assert cell["methods"]["foof"]["seconds_by_task"]
