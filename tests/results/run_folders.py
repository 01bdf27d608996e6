"""Output folders made by hand, as the design describes them, and the cells of their tables."""

from pathlib import Path

from kfbench.results.records import EPOCH_COLUMNS, UPDATE_COLUMNS, CsvLog, write_json, write_yaml


def tree(path="."):
    """Every file with its content, every folder, under a path."""
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in sorted(Path(path).rglob("*"))}


def write_seed(folder, method="foof", seed=0, losses=(2.3, 1.5), damping=1.0):
    """One seed's CSV files: one update for each loss, an epoch before and after them."""
    folder = folder / f"seed-{seed}"
    folder.mkdir(parents=True)
    identity = {"method": method, "seed": seed}
    updates = CsvLog(folder / "updates.csv", UPDATE_COLUMNS)
    updates.append(
        {**identity, "update": i, "epoch": 0, "samples": 100 * i, "loss": loss, "lr": 0.1, "damping": damping}
        for i, loss in enumerate(losses)
    )
    updates.close()
    epochs = CsvLog(folder / "epochs.csv", EPOCH_COLUMNS)
    epochs.append({**identity, "update": i, "epoch": i, "train_loss": loss} for i, loss in enumerate(losses[:2]))
    epochs.close()
    return folder


def write_run(folder, **changes):
    """A finished run of one seed."""
    write_seed(folder, **changes)
    write_yaml(folder / "config.yaml", {"problem": {"model": "mlp"}})
    write_json(folder / "environment.json", {"torch": "2.9"})
    write_json(folder / "summary.json", {"status": "done", "final_train_loss": 0.5})
    return folder
