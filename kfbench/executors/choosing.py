"""Which kinds of place there are, which package each needs, and from a request to the executor."""

import importlib
import importlib.util
from dataclasses import dataclass

from kfbench.config.command_blocks import Placed
from kfbench.errors import UsageError
from kfbench.executors.contract import Executor, Request


@dataclass(frozen=True)
class _Kind:
    """Where a kind of place is implemented, by path: a cluster's package is imported only by whoever uses it."""

    path: str
    package: str | None = None
    called: str = ""


_KINDS = {
    "processes": _Kind("kfbench.executors.processes:ProcessExecutor"),
    "ray": _Kind("kfbench.executors.ray_tasks:RayExecutor", "ray", "Ray"),
    "slurm": _Kind("kfbench.executors.slurm:SlurmExecutor", "submitit", "submitit"),
}


def check_installed(placed: Placed) -> None:
    """UsageError where the package of the executor is missing."""
    name = placed.executor or "processes"
    package, called = _KINDS[name].package, _KINDS[name].called
    if package is not None and importlib.util.find_spec(package) is None:
        how = f"pip install 'kfbench[{name}]'"
        raise UsageError(f"--executor {name} needs {called}, which is not installed; install it with {how}")


def build_executor(request: Request) -> Executor:
    """The executor that was asked for; UsageError where it cannot be had."""
    check_installed(request.placed)
    module, _, name = _KINDS[request.placed.executor or "processes"].path.partition(":")
    executor: Executor = getattr(importlib.import_module(module), name).of(request)
    return executor
