"""Small sweeps for all executors, and their trials without clocks."""

import pandas as pd

from kfbench.config.load import load_config
from kfbench.sweep.run import sweep
from kfbench.sweep.watcher import SweepObserver

SMALL = {
    "width": 8,
    "train_samples": 60,
    "eval_samples": 20,
    "batch_size": 20,
    "updates": 6,
    "checkpoint_seconds": 0.01,
}
SWEEP = {"parameters": ["lr"], "grids": {"lr": "0.01,0.1,0.3"}, "extend": 0, "top": 0}
# What says when, and in which order.
CLOCKS = ["trial", "seconds_updates"]


class Notes(SweepObserver):
    """Keeps every sentence."""

    def __init__(self):
        self.sentences = []

    def note(self, sentence):
        self.sentences.append(sentence)


def run(folder, *specs, observer=None, **flags):
    """The summary of a sweep into that folder."""
    folder.mkdir(exist_ok=True)
    config = load_config(specs=list(specs), flags={**SMALL, **SWEEP, **flags}, command="sweep")
    return sweep(config, folder, observer or Notes())


def trials(folder):
    """trials.csv as text, but for clocks."""
    table = pd.read_csv(folder / "trials.csv", dtype=str).drop(columns=CLOCKS)
    assert table["config_hash"].is_unique, "a trial was run twice"
    return table.sort_values("config_hash").reset_index(drop=True)
