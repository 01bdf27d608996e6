"""A seed's folder is believed where its records agree: a changed figure, or another seed's file, is noticed."""

import json
import math
import shutil

import pytest

from kfbench.results.reading import DamagedError
from kfbench.results.seed_folder import read_seed, seed_folders
from tests.compare.comparable_runs import write_method


@pytest.fixture
def seed(tmp_path):
    return write_method(tmp_path / "run", "foof", [(2.0, 1.0, 1.5), (2.0, math.inf)]) / "seed-0"


def told(folder, **changes):
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_sound_one(seed):
    found = read_seed(seed)
    assert [row["train_loss"] for row in found.epochs] == [2.0, 1.0, 1.5] and len(found.losses) == 20
    assert read_seed(seed.with_name("seed-1")).summary["final_train_loss"] == math.inf
    assert seed_folders(seed.parent) == {0: seed, 1: seed.with_name("seed-1")}


@pytest.mark.parametrize(
    "changes",
    [
        {"final_train_loss": "nan"},
        {"final_train_loss": "-inf"},
        {"final_train_loss": "inf"},
        {"final_train_loss": None},
        {"final_train_loss": 1.49},
        {"best_train_loss": 0.9},
        {"test_accuracy": 0.9},
        {"test_accuracy": None},
        {"updates": 19},
        {"updates": None},
        {"seconds_updates": 3.0},
        {"seconds_updates": None},
        {"seconds_per_update": 0.06},
        {"seed": 1},
        {"method": "sgd"},
        {"schema_version": 2},
        {"status": "diverged"},
    ],
)
def test_a_summary_that_was_changed(seed, changes):
    told(seed, **changes)
    with pytest.raises(DamagedError) as caught:
        read_seed(seed)
    assert str(seed) in str(caught.value)


@pytest.mark.parametrize("name", ["summary.json", "epochs.csv", "updates.csv"])
def test_a_file_of_another_seed(seed, name):
    shutil.copy(seed.with_name("seed-1") / name, seed / name)
    with pytest.raises(DamagedError):
        read_seed(seed)


def test_tables_that_are_cut_between_lines_or_out_of_order(seed):
    for name in ("epochs.csv", "updates.csv"):
        content = (seed / name).read_text()
        lines = content.splitlines(keepends=True)
        for wrong in (lines[:-1], lines[:2] + lines[:0:-1], lines + lines[-1:]):
            (seed / name).write_text("".join(wrong))
            with pytest.raises(DamagedError, match=name):
                read_seed(seed)
        (seed / name).write_text(content)
    assert read_seed(seed)


def test_names_that_are_no_seed_s(tmp_path):
    for name in ("seed-00", "seed-x", "seed-\u0663", "seed-7"):
        (tmp_path / name).mkdir()
    assert list(seed_folders(tmp_path)) == [7]
