"""Which executor: said in one sentence where it cannot be had, before any work."""

import pytest

from kfbench.config.command_blocks import Placed
from kfbench.config.identity import trajectory
from kfbench.config.load import load_config
from kfbench.errors import UsageError
from kfbench.executors import choosing
from kfbench.executors.contract import Request
from kfbench.sweep.plan import plan, trial

REQUEST = {"jobs": 1, "threads": 1, "directory": None, "module": "json", "prepare": "", "preload": {}}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ray", r"--executor ray needs Ray, which is not installed; install it with pip install 'kfbench\[ray\]'"),
        ("slurm", r"--executor slurm needs submitit, which is not .*pip install 'kfbench\[slurm\]'"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, name, sentence):
    monkeypatch.setattr(choosing.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UsageError, match=sentence):
        choosing.check_installed(Placed(executor=name))
    choosing.check_installed(Placed())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"executor": "cloud"}, "executor"),
        ({"executor": "ray", "trial_cpus": 0}, "trial_cpus should be greater than 0, got 0"),
        ({"executor": "ray", "trial_cpus": "nan"}, "trial_cpus should be a finite number"),
        ({"executor": "ray", "trial_gpus": -0.5}, "trial_gpus should be greater than or equal to 0, got -0.5"),
        ({"executor": "ray", "trial_gpus": 1.5}, "trial_gpus is 1.5; accepted: a part of one GPU, or whole ones"),
        ({"ray_address": "auto"}, "ray_address auto is of --executor ray, got --executor processes"),
        ({"executor": "slurm", "ray_address": "auto"}, "ray_address auto is of --executor ray, got --executor slurm"),
        ({"trial_gpus": 1}, "trial_gpus 1.0 is of --executor ray or slurm, got --executor processes"),
        ({"executor": "slurm", "trial_gpus": 0.5}, "Slurm gives whole CPUs and GPUs"),
        ({"executor": "slurm", "ship": "always"}, "ship always is of --executor ray, got --executor slurm"),
        ({"executor": "ray", "ray_address": "ray://x:1"}, "ray_address ray://x:1 is of Ray Client"),
        ({"executor": "ray", "checkpoint_seconds": 0}, "checkpoint_seconds should be greater than 0, got 0"),
        ({"executor": "ray", "slurm": {"partition": "x"}}, "is of --executor slurm, got --executor ray"),
    ],
)
@pytest.mark.parametrize("command", ["sweep", "compare"])
def test_what_does_not_fit_is_one_sentence(command, flags, sentence):
    with pytest.raises(UsageError) as refused:
        load_config(specs=["sgd"], flags=flags, command=command)
    assert sentence in str(refused.value)


def test_where_a_trial_runs_is_no_part_of_what_it_is():
    def first(**flags):
        config = load_config(specs=["foof"], flags=flags, command="sweep")
        (foof,) = plan(config)
        return trial(config, foof, foof.cells()[0], "grid", 0)

    here = first()
    there = first(executor="ray", jobs=9, trial_cpus=2, trial_gpus=0.5, ship="always", checkpoint_seconds=1)
    assert there.hash == here.hash and trajectory(there.config) == trajectory(here.config)


def test_a_trial_has_the_cpus_of_its_threads_and_a_gpu_where_it_trains_on_one():
    request = Request(placed=Placed(), device="cpu", **REQUEST | {"threads": 4})
    assert (request.cpus, request.gpus) == (4, 0)
    request = Request(placed=Placed(), device="cuda:0", **REQUEST)
    assert (request.cpus, request.gpus) == (1, 1)
    request = Request(placed=Placed(executor="ray", trial_cpus=0.5, trial_gpus=0.25), device="cuda", **REQUEST)
    assert (request.cpus, request.gpus) == (0.5, 0.25)


def test_every_kind_is_in_the_table():
    assert set(choosing._KINDS) == {"processes", "ray", "slurm"}
    executor = choosing.build_executor(Request(placed=Placed(), device="cpu", **REQUEST | {"jobs": 3}))
    assert executor.free == 3
    executor.stop()
