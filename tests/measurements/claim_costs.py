"""What each claim costs at a scale, by multiply-adds. A measurement, not a test: it trains nothing.

    python -m tests.measurements.claim_costs [scale] [10^9 multiply-adds a second] [ID ...]

Trials and updates are those of the plan: every cell with its seeds, the published options, the fresh seeds of each best
point; extensions of grids, evaluations and looks at directions come on top. An update costs its count (docs/speed.md),
where a method has one, else that of forward and backward. The rate is by default 36, which SGD has in the FOOF paper's
network where an update takes 21 ms. Prints a CSV, dearest claim first.
"""

import sys
from pathlib import Path

import torch

from kfbench.claims.file import claims_in, read_claim
from kfbench.claims.run import _fixed
from kfbench.config.methods import resolve_method
from kfbench.sweep.plan import plan, seeds, trial
from kfbench.updates.build import build_data
from kfbench.updates.schedule import total_updates
from kfbench.updates.timed import preload
from kfbench.updates.trainee import Trainee
from kfbench.wallclock.tasks import predicted_tasks

CONFIGS = Path(__file__).parents[2] / "configs"


def multiply_adds(config):
    """Of one update of the only method of ``config``."""
    data = build_data(config, torch.device("cpu"))
    trainee = Trainee(config, data, 0, torch.device("cpu"))
    tasks = predicted_tasks(trainee, preload(data, config.run.batch_size, 0)[0])
    if tasks is None:
        return multiply_adds(config.with_methods([resolve_method("sgd")]))
    return sum(tasks.values())


def runs_of(config):
    """(configuration of one trial, how many like it) of a sweep."""
    for method in plan(config):
        cell = method.cells()[0]
        grid = trial(config, method, cell, "grid", config.run.seed)
        yield grid.config, method.size * len(seeds(config, "grid"))
        if config.sweep.top:
            final = trial(config, method, cell, "final", config.run.seed)
            yield final.config, config.sweep.top * config.sweep.final_seeds


def cost(path, scale):
    """Runs, updates and multiply-adds of one claim."""
    file = read_claim(path, scale)
    if file.tunes:
        sweeps = [file.config, *(_fixed(file, spec) for spec in file.claim.published)]
        planned = [run for config in sweeps for run in runs_of(config)]
    else:
        planned = [(file.config.with_methods([method]), file.config.run.seeds) for method in file.config.methods]
    found = [0, 0, 0.0]
    for config, count in planned:
        data = build_data(config, torch.device("cpu"))
        updates = total_updates(config.run, len(data.train_inputs))[0]
        found[0] += count
        found[1] += count * updates
        found[2] += count * updates * multiply_adds(config)
    return found


def main(scale="full", rate="36", *ids):
    """Print the table."""
    rows = []
    for path in claims_in(CONFIGS):
        if (ids and path.stem not in ids) or "toy" in path.stem:
            continue
        try:
            runs, updates, products = cost(path, scale)
        except Exception as error:  # a data set that is not here
            print(f"{path.stem}: {type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
            continue
        rows.append((products / float(rate) / 1e9 / 3600, path.stem, runs, updates))
    print("claim,runs,updates,core_hours")
    for hours, name, runs, updates in sorted(rows, reverse=True):
        print(f"{name},{runs},{updates},{hours:.3g}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
