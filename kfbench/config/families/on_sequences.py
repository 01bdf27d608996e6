"""Defaults of methods for models of sequences, where others than those for images suit."""

from collections.abc import Mapping
from typing import Any

# The least loss of a few short runs of each, no sweep's (docs/sequences.md): a loss is a sum over positions.
TRANSFORMER: Mapping[str, Mapping[str, Any]] = {
    "sgd": {"lr": 0.001},
    "adam": {"lr": 0.003},
    "adamw": {"lr": 0.003},
    "foof": {"lr": 0.003, "damping": 1.0, "momentum": 0.9},
    "kfac": {"lr": 0.001, "damping": 0.1, "momentum": 0.9},
    "ekfac": {"lr": 0.001, "damping": 0.01, "momentum": 0.9},
    "natural": {"lr": 0.001, "damping": 1.0},
}
