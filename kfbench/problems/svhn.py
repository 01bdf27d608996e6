"""SVHN's cropped digits (Netzer et al. 2011) in their published MATLAB files."""

from pathlib import Path

import numpy as np

from kfbench.errors import UsageError
from kfbench.problems.matlab import Variables, read_matlab

_SHAPE = (32, 32, 3)
_MOST_BYTES = 2**30  # four times the training set


def read_svhn(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 3, 32, 32] of unsigned bytes and labels [n] from 0 to 9; UsageError, one sentence, for anything else.

    A file holds ``X`` [32, 32, 3, n] and ``y`` [n, 1], both of unsigned bytes; label 10 is the digit 0.
    """
    variables = read_matlab(path, ("X", "y"), lambda found: _check(path, found), _MOST_BYTES)
    labels = variables["y"].reshape(-1).astype(np.int64)
    images = np.ascontiguousarray(variables["X"].reshape(*_SHAPE, len(labels)).transpose(3, 2, 0, 1))
    wrong = labels[(labels < 1) | (labels > 10)]
    if wrong.size:
        raise UsageError(f"{path} has label {wrong[0]}, expected 1 to 10")
    return images, labels % 10


def _check(path: Path, variables: Variables) -> None:
    """UsageError where variables have other shapes or types, or images and labels are not as many."""
    for name in ("X", "y"):
        if variables[name][1] != "uint8":
            raise UsageError(f"{path} has {name} of type {variables[name][1]}, expected uint8")
    X, y = variables["X"][0], variables["y"][0]
    if len(X) not in (3, 4) or X[:3] != _SHAPE:
        raise UsageError(f"{path} has X of shape {list(X)}, expected [32, 32, 3, n]")
    count = X[3] if len(X) == 4 else 1  # MATLAB drops a last size of 1
    if len(y) != 2 or 1 not in y or max(y) != y[0] * y[1]:
        raise UsageError(f"{path} has y of shape {list(y)}, expected [n, 1]")
    if y[0] * y[1] != count:
        raise UsageError(f"{path} has {y[0] * y[1]} labels for {count} images")
