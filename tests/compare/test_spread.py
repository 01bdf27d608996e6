"""`compare` by an executor: the records of one that trains in its own process, seeds at the same time."""

import os
import signal

import pandas as pd
import pytest

from kfbench.compare.run import compare
from kfbench.config.load import load_config
from kfbench.errors import UsageError
from kfbench.results.contents import foreign_entry
from kfbench.results.records import read_json
from kfbench.training.observer import Observer
from tests.runs import SMALL

FLAGS = {k: v for k, v in SMALL.items() if k != "warmup_batches"} | {"updates": 4, "seeds": 2}
FAULTY = "tests.sweep.faulty:Faulty"


def run(directory, *specs, tell=lambda sentence: None, **flags):
    directory.mkdir(exist_ok=True)
    config = load_config(flags=FLAGS | flags, specs=list(specs), command="compare")
    return compare(config, directory, lambda single: Observer(), tell=tell)


def curves(directory):
    """Every CSV without its clocks, by its path."""
    tables = {path.relative_to(directory): pd.read_csv(path, dtype=str) for path in directory.rglob("*.csv")}
    return {path: table[[c for c in table if not c.startswith("seconds")]] for path, table in tables.items()}


def test_several_at_a_time_leave_the_records_of_one_after_the_other(tmp_path):
    specs, sentences = ["sgd:lr=0.1", "adam"], []
    here = run(tmp_path / "1", *specs)
    there = run(tmp_path / "2", *specs, jobs=2, tell=sentences.append)
    assert there["status"] == "done" and list(there["folders"]) == list(here["folders"])
    found, expected = curves(tmp_path / "2"), curves(tmp_path / "1")
    assert found.keys() == expected.keys() and len(found) == 8
    for path, table in expected.items():
        pd.testing.assert_frame_equal(found[path], table)
    names = {path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*")}
    more = {path.relative_to(tmp_path / "2") for path in (tmp_path / "2").rglob("*")} - names
    assert {path.name for path in more} == {"log.txt"} and foreign_entry(tmp_path / "2", "compare") is None
    for label in ("sgd", "adam"):
        summaries = [read_json(tmp_path / name / label / "summary.json") for name in ("1", "2")]
        assert summaries[0].keys() == summaries[1].keys()
        assert summaries[0]["mean"]["final_train_loss"] == summaries[1]["mean"]["final_train_loss"]
    assert len(sentences) == 4 and all(": done, " in sentence for sentence in sentences)
    assert run(tmp_path / "2", *specs)["reused"] == 2


def test_a_seed_that_crashes_is_tried_once_more_and_told(tmp_path):
    spec = {"opt": FAULTY, "how": "kill", "marker": str(tmp_path / "marker"), "lr": 0.3}
    sentences = []
    run(tmp_path / "c", spec, "sgd", seeds=1, jobs=2, tell=sentences.append)
    assert len((tmp_path / "marker").read_text().splitlines()) == 2
    (failed,) = (tmp_path / "c").glob("*Faulty*/seed-0/summary.json")
    assert read_json(failed)["reason"] == "was killed (signal 9), perhaps for want of memory"
    assert any("it is tried once more" in sentence for sentence in sentences)
    assert read_json(tmp_path / "c" / "sgd" / "summary.json")["status"] == "done"


def test_what_does_not_fit_is_said_before_anything_is_trained(tmp_path):
    with pytest.raises(UsageError, match=r"adam: batch_size is 100, above the 90 training samples"):
        run(tmp_path / "c", "adam", batch_size=100, executor="processes")
    assert not list((tmp_path / "c").iterdir())


def test_one_that_is_interrupted_goes_on(tmp_path):
    def interrupt(sentence):
        os.kill(os.getpid(), signal.SIGINT)

    found = run(tmp_path / "c", "sgd", "adam", executor="processes", tell=interrupt)
    assert found["status"] == "interrupted"
    assert run(tmp_path / "c", "sgd", "adam", executor="processes")["status"] == "done"
    run(tmp_path / "whole", "sgd", "adam")
    whole, found = curves(tmp_path / "whole"), curves(tmp_path / "c")
    assert found.keys() == whole.keys()
    for path, table in whole.items():
        pd.testing.assert_frame_equal(found[path], table)
