"""One thread, checked shapes, and no run folders left behind."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.typechecking import check_annotations

check_annotations(
    ["kfbench.curvature", "kfbench.preconditioners", "kfbench.problems.likelihoods", "kfbench.problems.augmentation"]
)

import pytest
import torch

from tests.command import kfbench  # noqa: F401 - fixtures, for all folders
from tests.runs import runs  # noqa: F401


@pytest.fixture(autouse=True)
def _one_thread_and_empty_folder(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KFBENCH_DATA", raising=False)


def pytest_collection_modifyitems(items):
    """Fast ones first: what trains and what is killed comes last."""
    slow = (
        "executors",
        "updates",
        "training",
        "wallclock",
        "similarity",
        "sweep",
        "compare",
        "cli",
        "test_properties",
        "test_readme",
    )
    items.sort(key=lambda item: any(f"tests/{part}" in item.path.as_posix() for part in slow))
