"""Images and labels of a data set as its files have them, in any of the formats, checked against each other."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kfbench.config.problem_table import DatasetEntry
from kfbench.errors import UsageError
from kfbench.problems.cifar import read_cifar
from kfbench.problems.idx import read_idx
from kfbench.problems.martens import READERS
from kfbench.problems.svhn import read_svhn


def read_images(paths: Sequence[Path], entry: DatasetEntry) -> tuple[list[Tensor], list[Tensor]]:
    """Of both parts images [n, channels, rows, columns], and labels [n], which a set without classes lacks.

    Pixels are bytes, in Martens's files float32. ``paths`` are as ``files_of`` names them. UsageError, one sentence,
    for whatever does not fit.
    """
    if not entry.md5:
        return _read_idx_parts(paths, entry)
    if not entry.classes:  # one file with both parts
        return [torch.from_numpy(images) for images in READERS[paths[0].name](paths[0])], []
    parts = [_read_files(part, entry) for part in (paths[:-1], paths[-1:])]
    return [images for images, _ in parts], [labels for _, labels in parts]


def _read_files(paths: Sequence[Path], entry: DatasetEntry) -> tuple[Tensor, Tensor]:
    """Of one part, whose files follow each other."""
    arrays = []
    for path in paths:
        images, labels = read_svhn(path) if path.suffix == ".mat" else read_cifar(path, entry.classes)
        if images.size == 0:
            raise UsageError(f"{path} holds no images")
        arrays.append((images, _checked_labels(path, labels, len(images), entry.classes)))
    # A copy: what lies in a file's bytes cannot be written to.
    return tuple(torch.from_numpy(np.concatenate(each)) for each in zip(*arrays, strict=True))  # type: ignore[return-value]


def _read_idx_parts(paths: Sequence[Path], entry: DatasetEntry) -> tuple[list[Tensor], list[Tensor]]:
    images, labels = [], []
    half = len(paths) // 2
    for images_path, *labels_path in (paths[:half], paths[half:]):
        array = read_idx(images_path, dimensions=3)
        if array.size == 0:
            raise UsageError(f"{images_path} holds no images")
        images.append(torch.from_numpy(array.copy()))  # what lies in the file's bytes cannot be written to
        for path in labels_path:
            checked = _checked_labels(path, read_idx(path, dimensions=1), len(array), entry.classes)
            labels.append(torch.from_numpy(checked))
    if images[0].shape[1:] != images[1].shape[1:]:
        shapes = " and ".join(str(tuple(x.shape[1:])) for x in images)
        raise UsageError(f"{paths[0]} and {paths[half]} have images of different shapes, {shapes}")
    return [x.unsqueeze(1) for x in images], labels


def _checked_labels(path: Path, labels: np.ndarray, images: int, classes: int) -> np.ndarray:
    if len(labels) != images:
        raise UsageError(f"{path} has {len(labels)} labels for {images} images")
    for label in (labels.min(), labels.max()):
        if not 0 <= label < classes:
            raise UsageError(f"{path} has label {label}, expected 0 to {classes - 1}")
    return labels.astype(np.int64)
