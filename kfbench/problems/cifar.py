"""CIFAR-10 and CIFAR-100 in the files of their "python version" (Krizhevsky 2009), read without executing anything."""

from pathlib import Path

import numpy as np

from kfbench.errors import UsageError, shown
from kfbench.problems.pickled import read_pickle

SIDE, CHANNELS = 32, 3
_LABELS = {10: "labels", 100: "fine_labels"}


def read_cifar(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 3, 32, 32] of unsigned bytes and labels [n]; UsageError, one sentence, for anything else.

    A file is a pickled dictionary: data [n, 3072], a row being the red, the green and the blue pixels, and a list of
    labels, of CIFAR-100 the fine ones.
    """
    content, key = read_pickle(path), _LABELS[classes]
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a {type(content).__name__}, expected a dictionary with data and {key}")
    for each in ("data", key):
        if each not in content:
            raise UsageError(f"{path} has no {each}, it has {shown(sorted(content))}")
    data, labels = content["data"], content[key]
    width = CHANNELS * SIDE * SIDE
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != width:
        got = list(data.shape) if isinstance(data, np.ndarray) else type(data).__name__
        raise UsageError(f"{path} has data of shape {got}, expected [n, {width}]")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise UsageError(f"{path} has {key} that are no list of whole numbers")
    # As objects where they exceed 64 bits: whoever checks their range says so.
    return data.reshape(-1, CHANNELS, SIDE, SIDE), np.array(labels, object if labels else np.int64)
