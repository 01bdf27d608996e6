"""`kfbench sweep`: what it prints and leaves, and every wrong use as one sentence, exit 2, and nothing on disk."""

import json
import shlex
from pathlib import Path

import pandas as pd
import pytest

from kfbench.config.load import load_config
from tests.results.run_folders import tree

SMALL = ["--width", "8", "--train-samples", "60", "--eval-samples", "20", "--batch-size", "20", "--updates", "6"]
QUICK = ["sweep", "lr", "damping", "--opt", "foof", "--opt", "sgd", *SMALL, "--quick"]


def test_quick_sweep_shows_maps_a_table_and_what_comes_next(kfbench):
    code, out, err = kfbench(*QUICK, "--plot", "--out", "s")
    assert code == 0
    assert "foof: training loss, alpha across, damping down" in out and "sgd: training loss, lr across" in out
    assert out.count("*") == 2, "one best cell a method"
    assert "sgd has no damping; it was tuned over lr" in err and "quick run: not for comparison" in err
    assert {"heatmap.png", "tuned.png", "best.yaml", "trials.csv", "summary.json", "environment.json"} <= {
        p.name for p in Path("s").iterdir()
    }
    table = pd.read_csv("s/trials.csv")
    assert table.groupby("method").size().to_dict() == {"foof": 10, "sgd": 10}
    before = tree("s")
    code, again, err = kfbench(*QUICK, "--out", "s")
    assert code == 0 and again == out and tree("s") == before, "what has ended is not run again"


def test_default_folder_is_named_by_problem_and_budget_alone(kfbench):
    kfbench("sweep", "lr", "--opt", "sgd", *SMALL, "--quick", "--grid", "lr=0.1")
    kfbench("sweep", "lr", "--opt", "adam", *SMALL, "--quick", "--grid", "lr=0.1", "-j", "2", "--top", "0")
    (folder,) = Path("runs").iterdir()
    assert set(pd.read_csv(folder / "trials.csv")["method"]) == {"sgd", "adam"}
    kfbench("sweep", "lr", "--opt", "sgd", "--width", "9", "--quick", "--grid", "lr=0.1", "--eval-samples", "20")
    assert len(list(Path("runs").iterdir())) == 2


def test_best_configuration_trains_as_it_is(kfbench):
    grids = ["--grid", "lr=0.1,1.0", "--grid", "damping=1.0"]
    kfbench("sweep", "lr", "damping", *SMALL, *grids, "--extend", "0", "--out", "s", "--opt", "foof:T=3")
    best = json.loads(Path("s/summary.json").read_text())["methods"]["foof-T=3"]
    code, out, _ = kfbench("train", "--config", "s/foof-T=3/best.yaml", "--seed", "1", "--format", "json")
    assert code == 0
    assert json.loads(out)["runs"][0]["final_train_loss"] == best["final"]["losses"][0]
    assert kfbench("wallclock", "--config", "s/best.yaml", "--quick")[0] == 0


def test_formats_are_for_pipes(kfbench):
    words = ["sweep", "lr", "--opt", "sgd", *SMALL, "--grid", "lr=0.01,0.1", "--extend", "0", "--out", "s"]
    assert json.loads(kfbench(*words, "--format", "json")[1])["methods"]["sgd"]["trials"] == 2
    assert kfbench(*words, "--format", "csv")[1].splitlines()[1].startswith("sgd,2,0,0,")
    assert kfbench(*words, "--format", "markdown")[1].startswith("| method")


def test_dry_run_prints_cells_and_time_and_leaves_nothing(kfbench):
    code, out, err = kfbench("sweep", "lr", "damping", "--opt", "foof", "--opt", "sgd", *SMALL, "--dry-run")
    assert code == 0 and tree() == {}
    assert sum(line.startswith("foof") for line in out.splitlines()) == 49
    assert "foof: 49 trials of about" in err and "the grid takes about" in err and "sgd has no damping" in err


def test_values_of_a_file_are_swept_over_and_its_block_is_read(kfbench):
    Path("c.yaml").write_text(
        "problem: {width: 8, train_samples: 60, eval_samples: 20}\n"
        "run: {batch_size: 20, updates: 6}\n"
        "methods: [{opt: foof, lr: 0.3, T: 2}]\n"
        "sweep: {parameters: [lr], grids: {lr: 0.1:1:half-decades}, extend: 0, top: 0}\n"
    )
    assert kfbench("sweep", "--config", "c.yaml", "--out", "s")[0] == 0
    table = pd.read_csv("s/trials.csv")
    assert table["alpha"].tolist() == [0.1, 0.3, 1.0] and table["method"].unique().tolist() == ["foof-T=2"]
    assert load_config(Path("s/config.yaml"), command="sweep").sweep.grids == {"lr": "0.1:1:half-decades"}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("sweep lr momentu", ["unknown parameter 'momentu'", "did you mean 'momentum'"]),
        ("sweep damping --opt sgd", ["unknown parameter 'damping'"]),
        ("sweep lr --grid lr=", ["is empty"]),
        ("sweep lr --grid lr=1:0.1:decades", ["reversed"]),
        ("sweep lr --grid lr", ["--grid takes NAME=GRID", "'lr'"]),
        ("sweep lr --grid T=1,2", ["'T' is not among the swept parameters lr"]),
        ("sweep lr --lr 0.1", ["--lr 0.1 fixes 'lr', which is swept"]),
        ("sweep lr --opt sgd:lr=0.1", ["fixes 'lr' of sgd"]),
        ("sweep lr damping --grid lr=1e-9:1:200 --grid damping=1e-9:1:200", ["40000 cells", "--yes-many"]),
        ("sweep lr -j 0", ["jobs", "0"]),
        ("sweep lr --trial-timeout 0", ["trial_timeout", "0"]),
        ("sweep lr --trial-timeout 1e-6 --width 8", ["shorter than one update of foof"]),
        ("sweep lr --sampler grid", ["sampler", "'random', 'qmc' or 'tpe'"]),
        ("sweep lr --near 0.9", ["near"]),
        ("sweep lr --opt nonsense", ["unknown method 'nonsense'"]),
        ("sweep lr --extend -1", ["extend"]),
        ("sweep lr --config missing.yaml", ["missing.yaml cannot be read"]),
        ("sweep lr --seeds 0", ["seeds"]),
    ],
)
def test_wrong_use_is_one_sentence(kfbench, arguments, parts):
    code, out, err = kfbench(*shlex.split(arguments))
    assert (code, out) == (2, "") and tree() == {}
    assert err.count("\n") == 1 and err.startswith("Error: ")
    for part in parts:
        assert part in err


def test_folders_of_something_else_are_refused(kfbench):
    words = ["sweep", "lr", "--opt", "sgd", *SMALL, "--grid", "lr=0.1", "--extend", "0", "--top", "0"]
    assert kfbench(*words, "--out", "s")[0] == 0
    code, _, err = kfbench(*words, "--out", "s", "--normalize", "own")
    assert code == 2 and "s holds a sweep of another configuration; differing: problem.normalize" in err
    kfbench("train", "--opt", "sgd", *SMALL, "--out", "t")
    code, _, err = kfbench(*words, "--out", "t")
    assert code == 2 and "holds something else than a sweep" in err
    Path("file").write_text("mine")
    assert kfbench(*words, "--out", "file")[0] == 2
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    assert kfbench(*words, "--out", "full")[0] == 2 and kfbench(*words, "--out", "full", "--overwrite")[0] == 2
    assert Path("full/mine").read_text() == "mine"


def test_overwrite_begins_anew(kfbench):
    words = ["sweep", "lr", "--opt", "sgd", *SMALL, "--extend", "0", "--top", "0", "--out", "s"]
    assert kfbench(*words, "--grid", "lr=0.1")[0] == 0
    assert kfbench(*words, "--grid", "lr=0.2", "--normalize", "own", "--overwrite")[0] == 0
    assert pd.read_csv("s/trials.csv")["lr"].tolist() == [0.2]


def test_more_jobs_than_cores_are_warned_of(kfbench):
    words = ["sweep", "lr", "--opt", "sgd", *SMALL, "--grid", "lr=0.1", "--extend", "0", "--top", "0"]
    assert "slow each other down" in kfbench(*words, "-j", "64")[2]


def test_help_imports_no_torch(kfbench):
    code, out, _ = kfbench("sweep", "--help-all")
    assert code == 0
    for part in ("--grid", "--absolute-lr", "--extend", "--refine", "--sampler", "--trial-timeout", "-j", "--dry-run"):
        assert part in out
