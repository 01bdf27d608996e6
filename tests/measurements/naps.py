"""Trials of `leader_overhead`, apart from it: so a job imports nothing that a real trial would not."""

import time
from pathlib import Path

from kfbench.results.records import EPOCH_COLUMNS, UPDATE_COLUMNS, write_csv, write_json


def nap(tree, label, checkpoint_seconds, folder, anew):
    """A trial that sleeps for as many seconds as its damping says, then leaves what a trial leaves."""
    seconds = tree["methods"][0]["damping"]
    time.sleep(seconds)
    seed = Path(folder, "seed-0")
    seed.mkdir(exist_ok=True)
    loss = tree["methods"][0]["lr"]
    figures = {"final_train_loss": loss, "best_train_loss": loss, "test_accuracy": 0.5}
    row = {"method": label, "seed": 0, "epoch": 1, "train_loss": loss, "test_accuracy": 0.5, "seconds_updates": seconds}
    write_csv(seed / "epochs.csv", EPOCH_COLUMNS, [{**row, "update": update} for update in range(10)])
    write_csv(seed / "updates.csv", UPDATE_COLUMNS, [{**row, "update": update, "loss": loss} for update in range(300)])
    summary = {"seed": 0, "status": "done", "updates": 9, "seconds_updates": seconds, **figures}
    write_json(seed / "summary.json", summary)
    return {"runs": [summary]}
