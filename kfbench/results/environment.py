"""environment.json: what ran where. No host name, no path."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_PACKAGES = ("kfbench", "torch", "torchvision", "numpy", "pydantic", "typer")


def environment(device: "torch.device", amp: str = "none") -> dict[str, Any]:
    """Versions, processor, accelerator, threads, git commit, and the switches in force now; ``amp`` is the run's."""
    import torch  # here, since records are read where there is none

    cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu": _cpu_name(),
        "cpu_instructions": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "gpu_clock_mhz": _gpu_clock(device) if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "amp": amp,
        "autocast": torch.is_autocast_enabled("cuda"),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "argv": [Path(word).name if Path(word).is_absolute() else word for word in sys.argv],
        **commit(),
    }


def _gpu_clock(device: "torch.device") -> int | None:
    import torch

    try:
        return torch.cuda.clock_rate(device)
    except Exception:  # needs the driver's management library
        return None


# Asked once a process: what runs is what was imported. A fork inherits the answers.
@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


@cache
def commit() -> dict[str, Any]:
    """The commit of kfbench, where it runs from a checkout; dirty where its own code differs from that commit."""
    folder = Path(__file__).parent.parent

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # Installed below somebody else's repository it would answer with theirs.
    tracked = ask("ls-files", "--error-unmatch", "__init__.py")
    if tracked is None:
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": ask("rev-parse", "HEAD"), "git_dirty": bool(ask("status", "--porcelain", "."))}
