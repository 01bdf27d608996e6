"""Small runs through the same function that the command calls."""

import pandas as pd
import pytest

from kfbench.config.load import load_config
from kfbench.config.method_table import METHODS
from kfbench.training.observer import Observer
from kfbench.training.run import train

SMALL = {"width": 16, "train_samples": 90, "eval_samples": 50, "batch_size": 20, "warmup_batches": 3}
TIMING = ["seconds_updates", "seconds_elsewhere"]


# Steps that suit a few updates of a tiny network; a SPEC that names its own wins. The defaults suit real ones.
STEPS = {
    "foof": {"lr": 0.3, "damping": 1.0},
    "foof-centred": {"lr": 0.3, "damping": 1.0},
    "foof-kfac-damping": {"lr": 0.003, "damping": 0.01},
    "foof-per-sample": {"lr": 10.0, "damping": 1.0},
    "kfac": {"lr": 0.003, "damping": 0.01},
    "kfac-tridiagonal": {"lr": 0.003, "damping": 0.01},
    "kflr": {"lr": 0.003, "damping": 0.01},
    "kfra": {"lr": 0.003, "damping": 0.01},
    "ekfac": {"lr": 0.001, "damping": 0.001},
    "ekfac-ra": {"lr": 0.001, "damping": 0.001},
    "natural": {"lr": 3e-4, "damping": 0.01},
    "gn-cg": {"lr": 0.1, "damping": 1.0},
    "shampoo": {"lr": 0.003, "damping": 1e-6},
    "soap": {"lr": 0.003, "damping": 1e-8},
}


class Runs:
    """Trains into numbered folders of the test's own directory."""

    def __init__(self, path):
        self.path, self.count = path, 0

    def config(self, spec, **flags):
        wanted = SMALL | STEPS.get(spec.split(":")[0], {}) | flags
        entry = METHODS.get(spec.split(":")[0])
        if not (entry and entry.accepts("warmup_batches")) and "warmup_batches" not in flags:
            wanted = {k: v for k, v in wanted.items() if k != "warmup_batches"}
        return load_config(specs=[spec], flags=wanted)

    def train(self, spec, folder=None, observer=None, resume=False, **flags):
        """(summary, folder)"""
        if folder is None:
            self.count += 1
            folder = self.path / f"run-{self.count}"
        folder.mkdir(exist_ok=True)
        return train(self.config(spec, **flags), folder, observer or Observer(), resume), folder


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path)


def updates(folder, seed=0):
    """updates.csv as text cells, without the timing columns: equal frames are bit-identical."""
    return pd.read_csv(folder / f"seed-{seed}" / "updates.csv", dtype=str).drop(columns=TIMING)


def epochs(folder, seed=0):
    return pd.read_csv(folder / f"seed-{seed}" / "epochs.csv", dtype=str).drop(columns=TIMING)
