"""`compare` trains what is missing, once, and nothing that has ended again."""

import fcntl
import os

import pytest

from kfbench.compare.gathering import gather
from kfbench.compare.run import compare
from kfbench.config.load import load_config
from kfbench.errors import UsageError
from kfbench.results.records import read_json
from kfbench.training.observer import Observer
from tests.runs import SMALL

FLAGS = {k: v for k, v in SMALL.items() if k != "warmup_batches"} | {"updates": 4, "seeds": 2}


def config(*specs, **flags):
    return load_config(flags=FLAGS | flags, specs=list(specs), command="compare")


def run(directory, *specs, observer=Observer, **flags):
    directory.mkdir(exist_ok=True)
    return compare(config(*specs, **flags), directory, lambda single: observer())


def times(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("seed-*/*")}


def test_every_method_and_seed_under_one_protocol(tmp_path):
    found = run(tmp_path / "c", "sgd:lr=0.1", "sgd:lr=0.2", "adam")
    assert found["status"] == "done" and list(found["folders"]) == ["sgd-lr=0.1", "sgd-lr=0.2", "adam"]
    for label, folder in found["folders"].items():
        assert folder == tmp_path / "c" / label and {p.name for p in folder.glob("seed-*")} == {"seed-0", "seed-1"}
        assert not list(folder.rglob("checkpoint.pt")), "records only"
    assert [m.label for m in gather([tmp_path / "c"]).methods] == ["adam", "sgd-lr=0.1", "sgd-lr=0.2"]


def test_what_has_ended_is_not_run_again_also_not_for_more_methods_and_seeds(tmp_path):
    run(tmp_path / "c", "sgd", "adam")
    before = times(tmp_path / "c")
    environment = (tmp_path / "c" / "sgd" / "environment.json").stat().st_mtime_ns
    run(tmp_path / "c", "sgd", "adam")
    assert times(tmp_path / "c") == before
    run(tmp_path / "c", "sgd", "adamw", seeds=1)
    run(tmp_path / "c", "sgd", seeds=2)
    assert (tmp_path / "c" / "sgd" / "environment.json").stat().st_mtime_ns == environment
    run(tmp_path / "c", "sgd", seeds=3)
    after = times(tmp_path / "c")
    assert {path: after[path] for path in before} == before and len(after) > len(before)


def test_a_seed_that_is_missing_or_was_cut_off_is_run_again_bit_for_bit(tmp_path):
    found = run(tmp_path / "c", "sgd")
    summary = tmp_path / "c" / "sgd" / "seed-1" / "summary.json"
    before = read_json(summary)["final_train_loss"]
    summary.unlink()
    run(tmp_path / "c", "sgd")
    assert read_json(summary)["final_train_loss"] == before and found["status"] == "done"


def test_another_method_of_the_same_label_gets_a_folder_of_its_own(tmp_path):
    one = run(tmp_path / "c", "sgd:lr=0.1", seeds=1)["folders"]["sgd"]
    other = run(tmp_path / "c", "sgd:lr=0.2", seeds=1)["folders"]["sgd"]
    assert one != other and other.name.startswith("sgd-")
    assert run(tmp_path / "c", "sgd:lr=0.2", seeds=1)["folders"]["sgd"] == other
    assert [m.label for m in gather([tmp_path / "c"]).methods] == ["sgd-lr=0.1", "sgd-lr=0.2"]


def test_what_does_not_fit_is_said_before_the_first_update_of_any(tmp_path):
    with pytest.raises(UsageError, match="raised on construction"):
        run(tmp_path / "c", "sgd", "torch.optim:Adam:betas=3")
    assert list((tmp_path / "c").iterdir()) == []


def test_two_commands_do_not_share_a_folder_at_the_same_time(tmp_path):
    (tmp_path / "c").mkdir()
    handle = os.open(tmp_path / "c", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="in use by another command"):
        run(tmp_path / "c", "sgd")
    os.close(handle)


class PressCtrlC(Observer):
    """In the first block of the second method."""

    methods = 0

    def __init__(self):
        PressCtrlC.methods += 1

    def flushed(self, row):
        if PressCtrlC.methods == 2:
            os.kill(os.getpid(), 2)


def test_an_interruption_ends_all_and_the_next_command_continues(tmp_path):
    PressCtrlC.methods = 0
    found = run(tmp_path / "c", "sgd", "adam", "adamw", observer=PressCtrlC, updates=12)
    assert found["status"] == "interrupted"
    assert {p.name for p in (tmp_path / "c").iterdir() if p.is_dir()} == {"sgd", "adam"}
    before = times(tmp_path / "c" / "sgd")
    assert run(tmp_path / "c", "sgd", "adam", "adamw", updates=12)["status"] == "done"
    assert times(tmp_path / "c" / "sgd") == before and len(gather([tmp_path / "c"]).methods) == 3
    whole = run(tmp_path / "whole", "adam", updates=12)["folders"]["adam"]
    for seed in (0, 1):
        files = [folder / f"seed-{seed}" / "summary.json" for folder in (whole, tmp_path / "c" / "adam")]
        one, other = (read_json(file)["final_train_loss"] for file in files)
        assert one == other
