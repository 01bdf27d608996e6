"""The executor that trials run by, and what they share there: torch, our own modules, the data set. No torch here."""

from pathlib import Path

from kfbench.config.command_blocks import Placed
from kfbench.config.load import dump
from kfbench.config.schema import Config
from kfbench.executors.choosing import build_executor
from kfbench.executors.contract import Executor, Request

# What is imported before jobs are forked, and what a node does before its first one, by path: leaders import no torch.
_PRELOADED, _PREPARE = "kfbench.training.preload", "kfbench.training.arrival:prepare"


def executor_of_trials(placed: Placed, jobs: int, first: Config, directory: Path | None) -> Executor:
    """As ``placed`` says, for trials such as the ``first``; the leader's own folder is ``directory``, if any.

    UsageError where it cannot be had.
    """
    run = first.run
    return build_executor(Request(placed, jobs, run.threads, run.device, directory, _PRELOADED, _PREPARE, dump(first)))
