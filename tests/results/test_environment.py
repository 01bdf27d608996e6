"""environment.json: nothing personal, and quickly found."""

import json
import subprocess
from pathlib import Path

import torch

from kfbench.results.environment import environment


def test_no_path_and_no_host(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/kfbench", "train"])
    found = json.dumps(environment(torch.device("cpu")))
    assert str(Path.home()) not in found and "/somewhere" not in found and "kfbench" in found


def test_versions_and_commit_are_asked_once_a_process(monkeypatch):
    """Each run of a sweep writes them; starting git three times takes longer than a short run's updates."""
    first = environment(torch.device("cpu"))

    def refuse(*args, **options):
        raise AssertionError(f"asked again: {args}")

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr("importlib.metadata.version", refuse)
    assert environment(torch.device("cpu")) == first


def test_processors_of_one_name_are_told_apart():
    """Machines that call themselves alike differ twofold in the speed of a matrix product, by their instructions."""
    assert environment(torch.device("cpu"))["cpu_instructions"] == torch.backends.cpu.get_cpu_capability()
