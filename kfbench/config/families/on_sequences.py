"""Defaults of methods for models of sequences, where others than those for images suit."""

from collections.abc import Mapping
from typing import Any

# A second optimizer for norms and positions, as of the sweep.
_REST = {"rest": "adamw", "rest_lr": 0.003}
# And factors of one batch in every ten.
_ROWS = {**_REST, "T": 10, "S": 1, "momentum": 0.9}

# AdamW's, FOOF's, K-FAC's and the descendants' are those of a sweep, docs/records/transformer; Adam has AdamW's, the
# others the least loss of a few short runs (docs/sequences.md): a loss is a sum over positions.
TRANSFORMER: Mapping[str, Mapping[str, Any]] = {
    "sgd": {"lr": 0.001},
    "adam": {"lr": 0.0058},
    "adamw": {"lr": 0.0058},
    "foof": {**_ROWS, "lr": 1.0, "damping": 100.0},
    "kfac": {**_ROWS, "lr": 0.003, "damping": 0.1},
    "ekfac": {**_ROWS, "lr": 0.001, "damping": 0.01},
    "natural": {"lr": 0.001, "damping": 1.0},
    "shampoo": {**_REST, "lr": 0.01, "damping": 1.0},
    "soap": {**_REST, "lr": 0.015},
    "muon": {**_REST, "lr": 0.024},
}
