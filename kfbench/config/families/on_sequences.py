"""Defaults of methods for models of sequences, where others than those for images suit."""

from collections.abc import Mapping
from typing import Any

# What the methods below have in common: a second optimizer for norms and positions, factors of one batch in every ten.
_SHARED = {"rest": "adamw", "T": 10, "S": 1, "momentum": 0.9}

# The least loss of a few short runs of each, no sweep's (docs/sequences.md): a loss is a sum over positions.
TRANSFORMER: Mapping[str, Mapping[str, Any]] = {
    "sgd": {"lr": 0.001},
    "adam": {"lr": 0.003},
    "adamw": {"lr": 0.003},
    "foof": {**_SHARED, "lr": 0.003, "damping": 1.0},
    "kfac": {**_SHARED, "lr": 0.001, "damping": 0.1},
    "ekfac": {**_SHARED, "lr": 0.001, "damping": 0.01},
    "natural": {"lr": 0.001, "damping": 1.0},
}
