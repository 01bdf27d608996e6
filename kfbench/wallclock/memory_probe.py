"""Peak memory of one method: on a CPU in a fresh process, for a process remembers only its own largest size."""

import gc
import multiprocessing
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from kfbench.config.load import dump, undump
from kfbench.config.schema import Config
from kfbench.problems.datasets import Dataset
from kfbench.training.interruption import Interruption
from kfbench.updates.batches import Batch
from kfbench.updates.build import build_data, prepare_torch
from kfbench.updates.schedule import Always
from kfbench.updates.spent import peak_memory_bytes, reset_peak_memory, tensor_bytes
from kfbench.updates.timed import preload
from kfbench.updates.trainee import Trainee
from kfbench.wallclock.child import values_of

# An update that observes and refreshes has been through every allocation by its third turn.
_UPDATES = 3


def probe_memory(
    config: Config, data: Dataset, batches: list[Batch], device: torch.device, stop: Interruption
) -> dict[str, int]:
    """peak_memory_bytes and state_memory_bytes of the one method in a configuration; nothing if it is interrupted.

    ChildError where the process that was to find out did not live to say it.
    """
    if device.type == "cuda":
        return _here(config, data, batches, device)
    # A server that has imported torch forks each probe: as fresh as a new process, without its start-up.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return next(values_of(context, _apart, (dump(config),), stop), {})


def _here(config: Config, data: Dataset, batches: list[Batch], device: torch.device) -> dict[str, int]:
    """Without a process: the device's allocator can forget its peak. What else lies there does not count."""
    gc.collect()  # else garbage of before might go during the measurement, and count as less
    others = torch.cuda.memory_allocated(device)
    memory = _measure(config, data, batches, device)
    inputs = [data.train_inputs, data.train_targets, data.test_inputs, data.test_targets]
    memory["peak_memory_bytes"] += tensor_bytes([inputs, batches]) - others
    return memory


def _apart(tree: dict[str, Any]) -> Iterator[dict[str, int]]:
    config = undump(tree)
    device = prepare_torch(config.run)
    data = build_data(config, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the leader's own runs of the method have said it
        yield _measure(config, data, preload(data, config.run.batch_size, config.run.seed), device)


def _measure(config: Config, data: Dataset, batches: list[Batch], device: torch.device) -> dict[str, int]:
    reset_peak_memory(device)
    trainee = Trainee(config, data, config.run.seed, device)
    with trainee.preconditioning.turn.with_schedule(Always(observing=True, refreshing=True)):
        for x, y in batches[:_UPDATES]:
            trainee.update(x, y)
    return {"peak_memory_bytes": peak_memory_bytes(device), "state_memory_bytes": trainee.state_memory_bytes()}
