"""SVHN: read as published, fetched by torchvision, and what is wrong with its files."""

import hashlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from kfbench.config.problem_table import DATASETS
from kfbench.errors import UsageError
from kfbench.problems import svhn
from kfbench.problems.datasets import check_dataset, fetch_dataset, load_dataset
from kfbench.problems.locations import find_files
from kfbench.problems.svhn import read_svhn
from tests.fuzzing import fuzz, result_or_one_sentence
from tests.problems.published_files import images_and_labels, svhn_variables, write_svhn

TRAIN, TEST = "train_32x32.mat", "test_32x32.mat"


@pytest.mark.parametrize("compressed", [True, False])
def test_tensors(tmp_path, compressed):
    data = load_dataset("svhn", str(write_svhn(tmp_path, compressed=compressed)), "unit")
    assert data.input_shape == (3, 32, 32) and data.outputs == 10
    for i, (inputs, targets) in enumerate(
        ((data.train_inputs, data.train_targets), (data.test_inputs, data.test_targets))
    ):
        images, labels = images_and_labels(12, 10, seed=i)
        assert torch.equal((inputs * 255).round(), torch.from_numpy(images).float())
        assert targets.tolist() == labels and 0 in labels, "label 10 is the digit 0"


def test_published_normalisation(tmp_path):
    write_svhn(tmp_path)
    unit, published = (load_dataset("svhn", str(tmp_path), normalize) for normalize in ("unit", "published"))
    for channel, (mean, std) in enumerate(DATASETS["svhn"].channels):
        expected = (unit.train_inputs[:, channel] - mean) / std
        torch.testing.assert_close(published.train_inputs[:, channel], expected)


def test_one_image(tmp_path):
    """MATLAB drops a last size of 1."""
    X, y = svhn_variables(1).values()
    scipy.io.savemat(tmp_path / TRAIN, {"X": X[..., 0], "y": y})
    images, labels = read_svhn(tmp_path / TRAIN)
    assert images.shape == (1, 3, 32, 32) and labels.tolist() == [0]


def _changed(**change):
    return {key: value for key, value in {**svhn_variables(4), **change}.items() if value is not None}


_FAULTS = {
    "transposed": (
        _changed(X=np.zeros((4, 3, 32, 32), np.uint8)),
        "X of shape [4, 3, 32, 32], expected [32, 32, 3, n]",
    ),
    "grey": (_changed(X=np.zeros((32, 32, 4), np.uint8)), "X of shape [32, 32, 4], expected [32, 32, 3, n]"),
    "floats": (_changed(X=np.zeros((32, 32, 3, 4))), "X of type double, expected uint8"),
    "no X": (_changed(X=None), "has no variable X, it has y"),
    "no y": (_changed(y=None), "has no variable y, it has X"),
    "few labels": (_changed(y=np.ones((3, 1), np.uint8)), "has 3 labels for 4 images"),
    "square labels": (_changed(y=np.ones((2, 2), np.uint8)), "y of shape [2, 2], expected [n, 1]"),
    "label 0": (_changed(y=np.array([[0], [1], [2], [3]], np.uint8)), "has label 0, expected 1 to 10"),
    "label 11": (_changed(y=np.array([[1], [11], [2], [3]], np.uint8)), "has label 11, expected 1 to 10"),
    "text": (_changed(y="four"), "y of type char, expected uint8"),
    "cells": (_changed(X=np.array(["four", "five"], object)), "X of type cell, expected uint8"),
}


@pytest.mark.parametrize("fault", _FAULTS)
@pytest.mark.parametrize("compressed", [True, False])
def test_faults(tmp_path, fault, compressed):
    variables, sentence = _FAULTS[fault]
    write_svhn(tmp_path, 4)
    scipy.io.savemat(tmp_path / TEST, variables, do_compression=compressed)
    for read in (load_dataset, check_dataset):
        with pytest.raises(UsageError) as caught:
            read("svhn", str(tmp_path))
        assert f"{tmp_path / TEST} has" in str(caught.value) and sentence in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"x" * 200, b"\x89HDF\r\n\x1a\n" + bytes(200), b"MATLAB 5.0" + bytes(200)])
def test_what_is_no_such_file(tmp_path, content):
    (tmp_path / TRAIN).write_bytes(content)
    with pytest.raises(UsageError, match="is no MATLAB 5 file"):
        read_svhn(tmp_path / TRAIN)
    for other in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_svhn(other)


def _content(compressed):
    file = io.BytesIO()
    scipy.io.savemat(file, svhn_variables(1), do_compression=compressed)
    return file.getvalue()


_WHOLE = {compressed: _content(compressed) for compressed in (True, False)}


@fuzz
@given(st.booleans(), st.integers(0, 10_000), st.one_of(st.none(), st.integers(0, 255)))
def test_any_torn_or_altered_file(tmp_path, compressed, position, byte):
    """The file is cut at a position (byte None) or one byte of it is replaced; half of them near its start."""
    whole, path = _WHOLE[compressed], tmp_path / TRAIN
    position = position % 400 if position % 2 else position % len(whole)
    path.write_bytes(whole[:position] if byte is None else whole[:position] + bytes([byte]) + whole[position + 1 :])
    found = result_or_one_sentence(lambda: read_svhn(path))
    if found is not None:
        assert found[0].shape == (1, 3, 32, 32) and 0 <= found[1][0] < 10


def test_a_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    """As is one whose header promises to."""
    monkeypatch.setattr(svhn, "_MOST_BYTES", 2**20)
    bomb = zlib.compress(bytes(2**26))
    (tmp_path / TRAIN).write_bytes(_WHOLE[True][:128] + struct.pack("<II", 15, len(bomb)) + bomb)
    tracemalloc.start()
    with pytest.raises(UsageError, match="it holds more than 1048576 bytes"):
        read_svhn(tmp_path / TRAIN)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()
    (tmp_path / TRAIN).write_bytes(_WHOLE[False][:128] + struct.pack("<II", 14, 2**32 - 1) + bytes(2**21))
    with pytest.raises(UsageError, match="ends within a variable"):
        read_svhn(tmp_path / TRAIN)


def test_known_checksums_are_torchvisions():
    them = torchvision.datasets.SVHN.split_list
    assert dict(DATASETS["svhn"].md5) == {them[split][1]: them[split][2] for split in ("train", "test")}
    assert DATASETS["svhn"].splits == ("train", "test")


def test_what_torchvision_fetches_is_found(tmp_path, monkeypatch, mirror):
    """Both parts, by its own code."""
    source, root = write_svhn(mirror.folder), tmp_path / "data"
    for split, file in (("train", TRAIN), ("test", TEST)):
        digest = hashlib.md5((source / file).read_bytes()).hexdigest()
        monkeypatch.setitem(torchvision.datasets.SVHN.split_list, split, [mirror.url(file), file, digest])
    monkeypatch.setenv("KFBENCH_DATA", str(root))
    assert fetch_dataset("svhn") == root / "svhn"
    assert find_files("svhn", None) == [root / "svhn" / TRAIN, root / "svhn" / TEST]
    data, theirs = load_dataset("svhn", None, "unit"), torchvision.datasets.SVHN(str(root / "svhn"), "test")
    assert torch.equal((data.test_inputs * 255).round(), torch.from_numpy(theirs.data).float())
    assert data.test_targets.tolist() == theirs.labels.tolist()
