"""Records: whole lines or none, whole files or none, and what was written is what is read."""

import csv
import json
import math
import os
import warnings

import numpy as np
import pytest
import yaml

import kfbench
from kfbench.results import records
from kfbench.results.records import (
    EPOCH_COLUMNS,
    UPDATE_COLUMNS,
    CsvLog,
    load,
    read_json,
    to_json,
    write_atomically,
    write_json,
    write_yaml,
)
from tests.results.run_folders import write_run, write_seed

COLUMNS = ("method", "loss", "note")


class DiskFull:
    """A file whose ``write`` stores a part and then reports it, or raises, as a full disk does."""

    def __init__(self, file, part, raises):
        self._file, self._part, self._raises = file, part, raises

    def write(self, content):
        written = self._file.write(content[: self._part])
        if self._raises:
            raise OSError(28, "No space left on device")
        return written

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.fixture
def log(tmp_path):
    found = CsvLog(tmp_path / "log.csv", COLUMNS)
    yield found
    found.close()


# CSV.


def test_a_new_log_replaces_what_was_there(tmp_path):
    (tmp_path / "log.csv").write_text("old\n" * 10)
    CsvLog(tmp_path / "log.csv", COLUMNS).close()
    assert (tmp_path / "log.csv").read_text() == "method,loss,note\n"


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, ""),
        (0.1, "0.1"),
        (1e-30, "1e-30"),
        (1 / 3, "0.3333333333333333"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (np.float64(0.1), "0.1"),
        (7, "7"),
        ("foof", "foof"),
        ("foof-betas=(0.9, 0.99)", '"foof-betas=(0.9, 0.99)"'),
    ],
)
def test_cells(log, value, cell):
    log.append([{"loss": value}])
    assert log.path.read_text().splitlines()[1] == f",{cell},"


def test_floats_come_back_to_the_last_bit(log):
    values = [0.1 + 0.2, 1e-308, 123456.789012345, float(np.float32(0.1))]
    log.append({"loss": value} for value in values)
    with open(log.path) as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == values


def test_rows_are_on_the_disk_after_every_append(log):
    log.append([{"method": "a", "loss": 1.0}, {"method": "b"}])
    assert log.path.read_text() == "method,loss,note\na,1.0,\nb,,\n"
    log.append([])
    log.append([{"method": "c"}])
    assert log.path.read_text().endswith("b,,\nc,,\n")
    assert log.bytes == log.sync() == log.path.stat().st_size


def test_cut_back_and_continue(log):
    log.append([{"method": "a"}])
    kept = log.sync()
    log.append([{"method": "b"}, {"method": "c"}])
    log.close()
    again = CsvLog(log.path, COLUMNS, kept)
    again.append([{"method": "d"}])
    again.close()
    assert log.path.read_text() == "method,loss,note\na,,\nd,,\n"


def test_a_log_shorter_than_its_checkpoint_says_is_refused_and_left_alone(log):
    log.close()
    before = log.path.read_bytes()
    with pytest.raises(OSError, match="17 bytes"):
        CsvLog(log.path, COLUMNS, 100)
    assert log.path.read_bytes() == before


def test_a_log_that_vanished_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        CsvLog(tmp_path / "log.csv", COLUMNS, 100)


@pytest.mark.parametrize("raises", [True, False], ids=["raises", "short"])
@pytest.mark.parametrize("part", [0, 3, 11])
def test_a_write_that_fails_half_way_leaves_whole_lines(log, part, raises):
    log.append([{"method": "a", "loss": 1.0}])
    before, file = log.path.read_bytes(), log._file
    log._file = DiskFull(file, part, raises)
    with pytest.raises(OSError) as caught:
        log.append([{"method": "b", "loss": 2.0}, {"method": "c", "loss": 3.0}])
    assert caught.value.filename == str(log.path)
    assert log.path.read_bytes() == before and log.bytes == len(before)
    log._file = file  # there is space again
    log.append([{"method": "d"}])
    assert log.path.read_bytes() == before + b"d,,\n"


# JSON and YAML.


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, '"nan"'),
        (math.inf, '"inf"'),
        (-math.inf, '"-inf"'),
        (np.float64("nan"), '"nan"'),
        (1e-30, "1e-30"),
        (None, "null"),
        (True, "true"),
    ],
)
def test_json_is_standard_and_comes_back(tmp_path, value, text):
    write_json(tmp_path / "a.json", {"x": value, "inner": [{"y": (value,)}]})
    written = (tmp_path / "a.json").read_text()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    json.loads(written, parse_constant=refuse)
    assert written.count(text) == 2 and written.endswith("}\n")
    found = read_json(tmp_path / "a.json")
    for back in (found["x"], found["inner"][0]["y"][0]):
        assert back == value or (math.isnan(back) and math.isnan(value))


def test_json_keeps_the_order_of_keys():
    assert list(json.loads(to_json({"b": 1, "a": 2}))) == ["b", "a"]


def test_yaml_comes_back_in_order(tmp_path):
    content = {"run": {"seed": 0, "dataset": "ü"}, "methods": [{"opt": "foof", "lr": 1e-05}]}
    write_yaml(tmp_path / "a.yaml", content)
    found = yaml.safe_load((tmp_path / "a.yaml").read_text(encoding="utf-8"))
    assert found == content and list(found) == list(content) and list(found["run"]) == ["seed", "dataset"]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, fails):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, fails, full)
    with pytest.raises(OSError) as caught:
        write_json(path, {"x": 2})
    assert caught.value.filename == str(path)
    assert read_json(path) == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"], "nothing temporary stays"


def test_what_is_no_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert read_json(tmp_path / "a.json") == {"x": 1} and os.listdir(tmp_path) == ["a.json"]


def test_the_content_is_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            records.os, name, lambda *a, name=name, real=real, **k: (calls.append(name), real(*a, **k))[1]
        )
    write_atomically(tmp_path / "a", b"x")
    assert calls == ["fsync", "replace"] and (tmp_path / "a").read_bytes() == b"x"


@pytest.mark.parametrize("place", ["missing/a.json", "file/a.json", "folder"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(OSError) as caught:
        write_json(tmp_path / place, {})
    assert str(tmp_path / place) in str(caught.value.filename)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


# load.


def test_load_a_finished_run(tmp_path):
    found = load(write_run(tmp_path / "run"))
    assert found.config == {"problem": {"model": "mlp"}}
    assert found.environment == {"torch": "2.9"} and found.summary["final_train_loss"] == 0.5
    assert tuple(found.updates.columns) == UPDATE_COLUMNS and tuple(found.epochs.columns) == EPOCH_COLUMNS
    assert found.updates.loss.tolist() == [2.3, 1.5]
    assert found.updates.seconds_updates.isna().all(), "a cell that is missing is empty"
    assert kfbench.load(str(tmp_path / "run")).path == tmp_path / "run"


def test_load_several_seeds_and_methods(tmp_path):
    """Methods lie one folder deeper; a column that one of them never fills does no harm."""
    write_run(tmp_path / "run")
    write_seed(tmp_path / "run", seed=1, losses=(2.0,))
    write_seed(tmp_path / "run" / "sgd", method="sgd", damping=None, losses=(math.inf, math.nan, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load(tmp_path / "run")
    counts = found.updates.groupby(["method", "seed"]).size().to_dict()
    assert counts == {("foof", 0): 2, ("foof", 1): 1, ("sgd", 0): 3}
    sgd = found.updates[found.updates.method == "sgd"]
    assert sgd.loss.iloc[0] == math.inf and math.isnan(sgd.loss.iloc[1]) and sgd.damping.isna().all()
    assert found.updates.index.is_unique


@pytest.mark.parametrize("state", ["no seed", "no row", "no header"])
def test_load_a_run_that_just_began(tmp_path, state):
    folder = tmp_path / "run"
    if state == "no seed":
        folder.mkdir()
    else:
        write_seed(folder, losses=())
    if state == "no header":
        for path in folder.glob("seed-0/*.csv"):
            path.write_text("")
    write_yaml(folder / "config.yaml", {})
    found = load(folder)
    assert len(found.updates) == len(found.epochs) == 0 and found.summary == found.environment == {}
    assert tuple(found.updates.columns) == UPDATE_COLUMNS and tuple(found.epochs.columns) == EPOCH_COLUMNS


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_load_what_is_no_run(tmp_path, kind):
    if kind == "empty":
        (tmp_path / "run").mkdir()
    if kind == "file":
        (tmp_path / "run").write_text("")
    with pytest.raises(FileNotFoundError, match="no output folder of kfbench"):
        load(tmp_path / "run")
