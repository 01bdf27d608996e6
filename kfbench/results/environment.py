"""environment.json: what ran where. No host name, no path."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("kfbench", "torch", "torchvision", "numpy", "pydantic", "typer")


def environment() -> dict[str, Any]:
    """Versions, processor, accelerator, threads, git commit, and the switches in force now."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        **_git(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _git() -> dict[str, Any]:
    """The commit of kfbench itself, where it runs from a checkout."""
    folder = Path(__file__).parent

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    tracked = ask("ls-files", "--error-unmatch", Path(__file__).name)
    if tracked is None:
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": ask("rev-parse", "HEAD"), "git_dirty": bool(ask("status", "--porcelain"))}
