"""Small data sets written in the published IDX format."""

import gzip
import struct
from pathlib import Path

import numpy as np

from kfbench.problems.locations import FILES


def idx_bytes(array, kind=0x08):
    """The format as published: zero, zero, element type, dimensions, sizes (big-endian), elements."""
    array = np.asarray(array, np.uint8)
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


def small_arrays(train=20, test=10, shape=(4, 3), classes=10):
    """Images and labels of both parts, in the order of FILES; every image differs from every other."""
    random = np.random.default_rng(0)
    arrays = []
    for n in (train, test):
        arrays += [random.integers(0, 256, (n, *shape)), np.arange(n) % classes]
    return arrays


def write_files(folder, arrays=None, gz=False):
    """The four files of a data set; returns their folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(FILES, small_arrays() if arrays is None else arrays, strict=True):
        content = idx_bytes(array)
        path = folder / (name + ".gz" if gz else name)
        path.write_bytes(gzip.compress(content) if gz else content)
    return folder
