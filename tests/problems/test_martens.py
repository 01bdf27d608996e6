"""FACES and CURVES in Martens's files: what is read, how they are split, trained on, and what is wrong with them."""

import io
import re

import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

from kfbench.errors import UsageError
from kfbench.problems import martens
from kfbench.problems.datasets import check_dataset, fetch_dataset, load_dataset
from kfbench.problems.martens import read_curves, read_faces
from tests.fuzzing import fuzz, result_or_one_sentence
from tests.problems.published_files import curves_variables, faces_variables, write_martens

FILES = {"faces": "newfaces_rot_single.mat", "curves-original": "digs3pts_1.mat"}
VARIABLES = {"faces": faces_variables, "curves-original": curves_variables}


# What is read.


@pytest.mark.parametrize("compressed", [True, False])
def test_faces_are_columns_of_which_the_first_25_parts_are_trained_on(tmp_path, compressed):
    columns = faces_variables()["newfaces_single"]
    write_martens(tmp_path, "faces", faces_variables(), compressed)
    data = load_dataset("faces", str(tmp_path), "published")
    assert data.input_shape == (1, 25, 25) and data.outputs == 625
    assert (len(data.train_inputs), len(data.test_inputs)) == (100, 40)
    for inputs, targets, expected in (
        (data.train_inputs, data.train_targets, columns[:, :100]),
        (data.test_inputs, data.test_targets, columns[:, -40:]),
    ):
        assert np.array_equal(inputs.flatten(1), expected.T) and torch.equal(inputs.flatten(1), targets)


def test_the_published_size_splits_as_published():
    part = 165_600 // martens._PARTS
    assert (part * martens._TRAINING_PARTS, part * martens._TEST_PARTS) == (103_500, 41_400)


@pytest.mark.parametrize("compressed", [True, False])
def test_curves_are_rows_from_0_to_1(tmp_path, compressed):
    variables = curves_variables()
    write_martens(tmp_path, "curves-original", variables, compressed)
    data = load_dataset("curves-original", str(tmp_path), "unit")
    assert data.input_shape == (1, 28, 28) and data.outputs == 784
    for inputs, name in ((data.train_inputs, "bdata"), (data.test_inputs, "bdatatest")):
        assert np.array_equal(inputs.flatten(1), variables[name].astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8, bool])
def test_any_type_of_numbers_is_the_same_data(tmp_path, dtype):
    """MATLAB stores whole numbers as bytes: these are not divided by 255."""
    ones = {name: np.ones_like(array).astype(dtype) for name, array in curves_variables().items()}
    data = load_dataset("curves-original", str(write_martens(tmp_path, "curves-original", ones)), "unit")
    assert data.train_inputs.dtype == torch.float32 and (data.train_inputs == 1).all()


@pytest.mark.parametrize("name", FILES)
def test_own_normalisation_is_one_mean_and_deviation_of_the_training_images(tmp_path, name):
    write_martens(tmp_path, name, VARIABLES[name]())
    raw = load_dataset(name, str(tmp_path), "published" if name == "faces" else "unit", dtype=torch.float64)
    own = load_dataset(name, str(tmp_path), "own", dtype=torch.float64)
    mean, std = raw.train_inputs.mean(), raw.train_inputs.std()
    torch.testing.assert_close(own.train_inputs, (raw.train_inputs - mean) / std)
    torch.testing.assert_close(own.test_inputs, (raw.test_inputs - mean) / std)


@pytest.mark.parametrize("name", FILES)
def test_where_they_are_found_and_that_no_checksum_is_known(tmp_path, monkeypatch, name):
    monkeypatch.setenv("KFBENCH_DATA", str(tmp_path))
    for folder in (tmp_path, tmp_path / name):
        write_martens(folder, name, VARIABLES[name]())
        (row,) = check_dataset(name)
        assert row["file"] == str(folder / FILES[name]) and row["check"] == "readable, no checksum known"


def test_our_curves_are_not_replaced_by_the_original(tmp_path, monkeypatch):
    write_martens(tmp_path / "curves", "curves-original", curves_variables())
    with pytest.raises(UsageError, match="'curves' was not found"):
        check_dataset("curves", str(tmp_path))


# What is trained on.


@pytest.mark.parametrize(
    ("name", "model", "spec"),
    [
        ("faces", "autoencoder-faces", "foof:lr=0.01,damping=1"),
        ("faces", "autoencoder-sigmoid", "kfac:lr=0.01,damping=1"),
        ("curves-original", "autoencoder-sigmoid", "foof:lr=0.1,damping=1"),
    ],
)
def test_a_small_run_from_the_command_line(tmp_path, kfbench, name, model, spec):
    write_martens(tmp_path / "data", name, VARIABLES[name]())
    problem = ["--dataset", name, "--data-dir", "data", "--model", model, "--width", "40"]
    length = ["--batch-size", "10", "--updates", "60", "--out", "run"]
    code, _, err = kfbench("train", "--opt", spec, *problem, *length)
    assert code == 0, err
    losses = pd.read_csv(tmp_path / "run" / "seed-0" / "epochs.csv")["train_loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert f"likelihood: {'gaussian' if name == 'faces' else 'bernoulli'}" in config


# What is wrong.


def test_a_missing_one_says_where_to_get_it(tmp_path, kfbench):
    for name, file in FILES.items():
        code, _, err = kfbench("train", "--opt", "sgd", "--dataset", name, "--data-dir", "x", "--model", "autoencoder")
        url = f"https://www.cs.toronto.edu/~jmartens/{file}"
        assert code == 2 and "Traceback" not in err
        assert f"data set '{name}' was not found in x/{name}, x: download it from {url}, or point --data-dir" in err
        with pytest.raises(UsageError, match=f"is not fetched: download it from {re.escape(url)} into .*{name}"):
            fetch_dataset(name, "x")


def _faces(array):
    return "faces", {"newfaces_single": array}


def _curves(**change):
    return "curves-original", {k: v for k, v in {**curves_variables(), **change}.items() if v is not None}


def _with(value, array):
    array = array.copy()
    array[0, 0] = value
    return array


_F, _C = faces_variables()["newfaces_single"], curves_variables()["bdatatest"]
_FAULTS = {
    "faces: wrong variable": (("faces", {"newfaces": _F}), "has no variable newfaces_single, it has newfaces"),
    "faces: transposed": (_faces(_F.T), "newfaces_single of shape [160, 625], expected [625, n]"),
    "faces: wrong width": (_faces(_F[:624]), "newfaces_single of shape [624, 160], expected [625, n]"),
    "faces: a column less": (_faces(_F[:, 1:]), "of shape [625, 159], expected [625, n], n being a multiple of 40"),
    "faces: no image": (_faces(_F[:, :0]), "has no images in newfaces_single"),
    "faces: images": (_faces(_F.reshape(25, 25, 160)), "newfaces_single of shape [25, 25, 160], expected [625, n]"),
    "faces: nan": (_faces(_with(np.nan, _F)), "newfaces_single with the value nan, expected finite numbers"),
    "faces: infinite": (_faces(_with(-np.inf, _F)), "newfaces_single with the value -inf, expected finite numbers"),
    "faces: beyond float32": (_faces(_with(1e300, _F.astype(float))), "with the value inf, expected finite numbers"),
    "faces: complex": (_faces(_F + 1j), "has complex numbers in newfaces_single, expected real ones"),
    "faces: sparse": (_faces(scipy.sparse.csc_matrix(_F)), "newfaces_single of type sparse, expected double, single"),
    "faces: text": (_faces("faces"), "newfaces_single of type char, expected double, single"),
    "faces: cells": (_faces(np.array(["a", "b"], object)), "newfaces_single of type cell, expected double, single"),
    "curves: no test images": (_curves(bdatatest=None), "has no variable bdatatest, it has bdata, tdata, tdatatest"),
    "curves: transposed": (_curves(bdata=_C.T), "bdata of shape [784, 8], expected [n, 784]"),
    "curves: wrong width": (_curves(bdatatest=_C[:, 1:]), "bdatatest of shape [8, 783], expected [n, 784]"),
    "curves: no image": (_curves(bdata=_C[:0]), "has no images in bdata"),
    "curves: negative": (_curves(bdata=_with(-0.5, _C)), "bdata with the value -0.5, expected 0 to 1"),
    "curves: bytes": (_curves(bdatatest=_with(255, _C)), "bdatatest with the value 255.0, expected 0 to 1"),
    "curves: nan": (_curves(bdatatest=_with(np.nan, _C)), "bdatatest with the value nan, expected finite numbers"),
}


@pytest.mark.parametrize("fault", _FAULTS)
@pytest.mark.parametrize("compressed", [True, False])
def test_faults(tmp_path, fault, compressed):
    (name, variables), sentence = _FAULTS[fault]
    write_martens(tmp_path, name, variables, compressed)
    for read in (load_dataset, check_dataset):
        with pytest.raises(UsageError) as caught:
            read(name, str(tmp_path))
        assert str(caught.value).startswith(f"{tmp_path / FILES[name]} has") and sentence in str(caught.value)


def test_a_bad_file_is_one_sentence_on_the_command_line(tmp_path, kfbench):
    write_martens(tmp_path / "data", "faces", {"newfaces_single": _F[:624]})
    for words in (
        ("data", "check", "faces", "--data-dir", "data"),
        ("train", "--opt", "sgd", "--dataset", "faces", "--data-dir", "data", "--model", "autoencoder-faces"),
    ):
        code, _, err = kfbench(*words)
        assert code == 2 and "expected [625, n]" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64" + bytes(600), "of version 7.3 .*write it again with save.*'-v7'"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "of version 7.3"),
        (b"MATLAB 5.0 MAT-file" + bytes(600), "is no MATLAB 5 file: its header has no such version"),
        (b"", "is no MATLAB 5 file: its header has no such version"),
        (b"<html>404 Not Found</html>", "is no MATLAB 5 file: its header has no such version"),
    ],
)
def test_what_is_no_such_file(tmp_path, content, sentence):
    path = tmp_path / FILES["faces"]
    path.write_bytes(content)
    with pytest.raises(UsageError, match=sentence):
        read_faces(path)


def test_what_unpacks_to_more_than_expected_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(martens, "_MOST_BYTES", 10_000)
    write_martens(tmp_path, "faces", faces_variables())
    with pytest.raises(UsageError, match="holds more than 10000 bytes"):
        read_faces(tmp_path / FILES["faces"])


def _content(compressed):
    file = io.BytesIO()
    scipy.io.savemat(file, curves_variables(2, 1), do_compression=compressed)
    return file.getvalue()


_WHOLE = {compressed: _content(compressed) for compressed in (True, False)}


@fuzz
@given(st.booleans(), st.integers(0, 30_000), st.one_of(st.none(), st.integers(0, 255)))
def test_any_torn_or_altered_file(tmp_path, compressed, position, byte):
    """The file is cut at a position (byte None) or one byte of it is replaced; half of them near its start."""
    whole, path = _WHOLE[compressed], tmp_path / FILES["curves-original"]
    position = position % 400 if position % 2 else position % len(whole)
    path.write_bytes(whole[:position] if byte is None else whole[:position] + bytes([byte]) + whole[position + 1 :])
    found = result_or_one_sentence(lambda: read_curves(path))
    if found is not None:
        train, test = found
        assert train.shape[1:] == test.shape[1:] == (1, 28, 28)
        assert all(part.min() >= 0 and part.max() <= 1 for part in found)
