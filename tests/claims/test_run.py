"""What a verdict keeps of the runs of the best points, and which runs no rule ends."""

from pathlib import Path

import pandas as pd

from kfbench.claims.file import read_claim
from kfbench.claims.run import _by_seed, _final_epochs
from kfbench.results.records import read_rows, write_csv
from kfbench.sweep.plan import plan, trial
from kfbench.training.observer import Observer
from kfbench.training.run import train

ROOT = Path(__file__).parent.parent.parent

COLUMNS = ("method", "run_dir", "seed", "update", "train_loss", "seconds_updates")
METHODS = {"foof": {"final": {"seeds": [1], "run_dirs": ["foof/trial-a"]}}, "sgd": {"final": None}}


def _rows(run, *losses):
    return [
        {"method": "foof", "run_dir": run, "seed": 1, "update": i, "train_loss": loss, "seconds_updates": i}
        for i, loss in enumerate(losses)
    ]


def test_epochs_come_from_one_place_and_of_the_very_run(tmp_path):
    """Kept twice they are not doubled, and an earlier best point's curve does not stand in for the new one's."""
    for name, run, losses in (("here", "foof/trial-b", (9.0,)), ("kept", "foof/trial-a", (2.0, 1.0))):
        (tmp_path / name).mkdir()
        write_csv(tmp_path / name / "epochs.csv", COLUMNS, _rows(run, *losses))
    places = [tmp_path / name for name in ("here", "kept", "kept")]
    rows = _final_epochs(tmp_path / "sweep", METHODS, places)
    found = _by_seed(rows)
    assert [row["train_loss"] for row in found["foof"][1]] == [2.0, 1.0] and len(rows) == 2
    write_csv(tmp_path / "again.csv", COLUMNS, rows)
    assert read_rows(tmp_path / "again.csv") == read_rows(tmp_path / "kept" / "epochs.csv")


def test_folders_of_runs_win(tmp_path):
    folder = tmp_path / "sweep" / "foof" / "trial-a" / "seed-1"
    folder.mkdir(parents=True)
    write_csv(folder / "epochs.csv", COLUMNS, _rows("", 5.0))
    (tmp_path / "kept").mkdir()
    write_csv(tmp_path / "kept" / "epochs.csv", COLUMNS, _rows("foof/trial-a", 2.0))
    rows = _final_epochs(tmp_path / "sweep", METHODS, [tmp_path / "kept"])
    found = _by_seed(rows)
    assert found["foof"][1][0]["train_loss"] == 5.0 and rows[0]["run_dir"] == "foof/trial-a"


def test_no_rule_ends_a_full_batch_trial_that_comes_back(tmp_path):
    """In foof-2a SGD's loss at this step is high, with one seed for more than 20 updates, before it is low."""
    file = read_claim(ROOT / "configs" / "foof-2a.yaml", "small")
    sgd = next(method for method in plan(file.config) if method.opt == "sgd")
    for seed in (0, 1):
        config = trial(file.config, sgd, {"lr": 0.4329}, "grid", seed).config
        (run,) = train(config, tmp_path, Observer())["runs"]
        losses = pd.read_csv(tmp_path / f"seed-{seed}" / "updates.csv")["loss"]
        assert losses.max() > 10 * losses[0] and run["final_train_loss"] < 1e-4
