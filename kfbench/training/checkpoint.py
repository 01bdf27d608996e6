"""Checkpoints: written whole or not at all, with the one before kept in reserve."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kfbench.errors import UsageError
from kfbench.results.records import write_atomically

CHECKPOINT = "checkpoint.pt"
RESERVE = "checkpoint.previous.pt"


def save_checkpoint(directory: Path, content: Mapping[str, Any]) -> None:
    """Write beside the last one, keep that as reserve, then rename; a crash at any point leaves one whole."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    current = directory / CHECKPOINT
    incoming = directory / (CHECKPOINT + ".new")
    write_atomically(incoming, buffer.getbuffer())
    if current.exists():
        os.replace(current, directory / RESERVE)
    os.replace(incoming, current)


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None where there is none at all.

    Only tensors and plain values are loaded (``weights_only``), never code; all tensors come to the CPU.
    """
    found = False
    for name in (CHECKPOINT, CHECKPOINT + ".new", RESERVE):
        path = directory / name
        if not path.exists():
            continue
        found = True
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # a torn file fails in any way; the next one is older and whole
            continue
    if found:
        raise UsageError(f"no checkpoint in {directory} can be read; start anew with --overwrite")
    return None


def remove_checkpoints(directory: Path) -> None:
    """For runs of which only the records are kept."""
    for name in (CHECKPOINT, CHECKPOINT + ".new", RESERVE):
        (directory / name).unlink(missing_ok=True)
