"""Small data sets in the formats in which CIFAR, SVHN, FACES and CURVES are published."""

import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import scipy.io

from kfbench.config.problem_table import DATASETS


class _Python2(pickle._Pickler):
    """Writes as Python 2 did: text and bytes are one type."""

    def _save_string(self, value):
        raw = value if isinstance(value, bytes) else value.encode("latin-1")
        self.write(b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, bytes: _save_string, str: _save_string}


def python2_pickle(value, path):
    """In protocol 2, with numpy's names of then."""
    with Path(path).open("wb") as file:
        _Python2(file, protocol=2).dump(value)
    content = Path(path).read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    Path(path).write_bytes(content)


def images_and_labels(count, classes=10, seed=0):
    """Images [count, 3, 32, 32] of bytes, each different, and labels."""
    images = np.random.default_rng([seed, count]).integers(0, 256, (count, 3, 32, 32)).astype(np.uint8)
    return images, (np.arange(count) % classes).tolist()


def cifar_batch(count, classes=10, seed=0):
    """What one file holds."""
    images, labels = images_and_labels(count, classes, seed)
    content = {
        "batch_label": "training batch 1 of 5",
        "labels" if classes == 10 else "fine_labels": labels,
        "data": images.reshape(count, 3072),
        "filenames": [f"image_s_{i:06}.png" for i in range(count)],
    }
    return content if classes == 10 else {**content, "coarse_labels": [label // 5 for label in labels]}


def write_cifar(folder, name="cifar10", count=8):
    """Every file of the data set with ``count`` images; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(DATASETS[name].md5):
        python2_pickle(cifar_batch(count, DATASETS[name].classes, seed=i), folder / file)
    return folder


def svhn_variables(count, seed=0):
    """What one file holds: images [32, 32, 3, n], label 10 for the digit 0."""
    images, labels = images_and_labels(count, 10, seed)
    y = np.array([[label or 10] for label in labels], np.uint8)
    return {"X": images.transpose(2, 3, 1, 0), "y": y}


def write_svhn(folder, count=12, compressed=True):
    """Both files of the data set; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(DATASETS["svhn"].md5):
        scipy.io.savemat(folder / file, svhn_variables(count, seed=i), do_compression=compressed)
    return folder


def faces_variables(parts=4, seed=0):
    """What the file holds: 40 images a part as columns, real numbers, each different."""
    return {"newfaces_single": np.random.default_rng(seed).normal(size=(625, 40 * parts)).astype(np.float32)}


def curves_variables(train=12, test=8, seed=0):
    """What the file holds: images as rows, numbers from 0 to 1; and targets, which are not read."""
    random = np.random.default_rng(seed)
    images = {"bdata": random.uniform(size=(train, 784)), "bdatatest": random.uniform(size=(test, 784))}
    return {**images, "tdata": np.zeros((train, 6)), "tdatatest": np.zeros((test, 6))}


def write_martens(folder, name, variables, compressed=True):
    """The one file of the data set, faces or curves-original; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (file,) = DATASETS[name].md5
    scipy.io.savemat(folder / file, variables, do_compression=compressed)
    return folder
