"""Peak memory of one method, in a fresh process: a process remembers only its own largest size."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from kfbench.config.load import undump
from kfbench.updates.build import build_data, prepare_torch
from kfbench.updates.memory import peak_memory_bytes, reset_peak_memory
from kfbench.updates.schedule import Always
from kfbench.updates.timed import preload
from kfbench.updates.trainee import Trainee

# An update that observes and refreshes has been through every allocation by its third turn.
_UPDATES = 3


def probe_memory(tree: dict[str, Any]) -> dict[str, int]:
    """peak_memory_bytes and state_memory_bytes of the one method in a dumped configuration."""
    # A server that has imported torch forks each probe: as fresh as a new process, without its start-up.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_probe, tree).result()


def _probe(tree: dict[str, Any]) -> dict[str, int]:
    config = undump(tree)
    device = prepare_torch(config.run)
    data = build_data(config, device)
    trainee = Trainee(config, data, config.run.seed, device)
    reset_peak_memory(device)
    with trainee.preconditioning.turn.with_schedule(Always(observing=True, refreshing=True)):
        for x, y in preload(data, config.run.batch_size, config.run.seed)[:_UPDATES]:
            trainee.update(x, y)
    return {"peak_memory_bytes": peak_memory_bytes(device), "state_memory_bytes": trainee.state_memory_bytes()}
