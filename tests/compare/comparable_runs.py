"""Finished runs made by hand, with the writers that real ones are written with."""

import math

from kfbench.config.load import dump, load_config
from kfbench.results.records import EPOCH_COLUMNS, UPDATE_COLUMNS, CsvLog, write_json, write_yaml

# Updates between two evaluations.
STEP = 10


def write_method(folder, spec="sgd", curves=((2.0, 1.0), (2.0, 1.1)), label=None, first_seed=0, **flags):
    """A run folder of one method: a curve of training losses for each seed; one that ends at infinity diverged."""
    flags = {"updates": STEP, "width": 8, "seed": first_seed, "seeds": len(curves)} | flags
    config = load_config(specs=[spec], flags=flags)
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(folder / "config.yaml", dump(config))
    write_json(folder / "environment.json", {"cpu": "abacus", "threads": 1, "packages": {"torch": "2.9"}})
    for seed, losses in enumerate(curves, first_seed):
        _write_seed(folder / f"seed-{seed}", label or config.methods[0].label, seed, losses)
    return folder


def _write_seed(folder, label, seed, losses):
    folder.mkdir()
    identity = {"method": label, "seed": seed}
    diverged = not math.isfinite(losses[-1])
    epochs = CsvLog(folder / "epochs.csv", EPOCH_COLUMNS)
    epochs.append(
        {
            **identity,
            "update": i * STEP,
            "epoch": i,
            "train_loss": loss,
            "test_accuracy": 0.8,
            "seconds_updates": 0.5 * i,
        }
        for i, loss in enumerate(losses)
    )
    epochs.close()
    updates = CsvLog(folder / "updates.csv", UPDATE_COLUMNS)
    updates.append({**identity, "update": i, "loss": losses[i // STEP]} for i in range(STEP * (len(losses) - 1)))
    updates.close()
    summary = {
        "status": "diverged" if diverged else "done",
        "reason": None,
        "final_train_loss": float(losses[-1]),
        "best_train_loss": min(losses),
        "test_accuracy": None if diverged else 0.8,
        "updates": STEP * (len(losses) - 1),
        "seconds_updates": 0.5 * (len(losses) - 1),
        "seconds_per_update": 0.05,
    }
    write_json(folder / "summary.json", identity | summary)
