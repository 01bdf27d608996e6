"""A user's arrays, right and wrong: every fault is one sentence that names what it is of."""

import builtins
import sys

import numpy as np
import pytest
import torch

from kfbench.errors import UsageError
from kfbench.problems.own.arrays import NAMES, read_arrays


def good():
    """20 + 10 samples of 3 features and 2 classes."""
    x, y = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 2
    return x[:20], y[:20], x[20:], y[20:]


def changed(**parts):
    return tuple(parts.get(name, value) for name, value in zip(NAMES, good(), strict=True))


@pytest.fixture
def returning(monkeypatch):
    """A function by path that returns this."""

    def name(value):
        def make():
            if isinstance(value, BaseException):
                raise value
            return value

        monkeypatch.setattr(sys.modules[__name__], "made", make, raising=False)
        return f"{__name__}:made"

    return name


def test_a_function_of_tensors_or_of_numpy_arrays(returning):
    tensors = read_arrays(returning(good()))
    arrays = read_arrays(returning(tuple(value.numpy() for value in good())))
    for name, value in zip(NAMES, good(), strict=True):
        assert torch.equal(getattr(tensors, name), value)
        assert torch.equal(getattr(arrays, name), value)
    assert tensors.classes == 2


def test_numbers_of_the_other_order_of_bytes(returning):
    x = good()[0].numpy()
    assert torch.equal(read_arrays(returning(changed(x_train=x.astype(">f4")))).x_train, good()[0])


def test_a_graph_is_left_behind(returning):
    assert not read_arrays(returning(changed(x_train=good()[0].requires_grad_() * 2))).x_train.requires_grad


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_files_hold_what_was_saved(tmp_path, kind):
    path = save(tmp_path / f"data.{kind}", dict(zip(NAMES, good(), strict=True)))
    read = read_arrays(str(path))
    assert all(torch.equal(getattr(read, name), value) for name, value in zip(NAMES, good(), strict=True))


def save(path, tensors):
    if path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in tensors.items()})
    else:
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_files_without_targets_have_none(tmp_path, kind):
    x, _, x_test, _ = good()
    read = read_arrays(str(save(tmp_path / f"data.{kind}", {"x_train": x, "x_test": x_test})))
    assert read.y_train is None and read.y_test is None and read.classes == 0


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_files_that_are_none(tmp_path, kind):
    with pytest.raises(UsageError, match="was not found: there is no such file"):
        read_arrays(str(tmp_path / f"missing.{kind}"))
    (tmp_path / f"text.{kind}").write_text("no arrays at all")
    with pytest.raises(UsageError, match="cannot be read: "):
        read_arrays(str(tmp_path / f"text.{kind}"))
    whole = save(tmp_path / f"whole.{kind}", dict(zip(NAMES, good(), strict=True))).read_bytes()
    (tmp_path / f"torn.{kind}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="cannot be read: "):
        read_arrays(str(tmp_path / f"torn.{kind}"))
    path = save(tmp_path / f"other.{kind}", {"inputs": good()[0]})
    with pytest.raises(UsageError, match=r"lacks x_train and x_test, expected x_train, .*; it holds inputs"):
        read_arrays(str(path))


def test_a_pickle_in_an_archive_is_not_unpickled(tmp_path):
    np.savez(tmp_path / "data.npz", x_train=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UsageError, match="cannot be read: ValueError: Object arrays cannot be loaded"):
        read_arrays(str(tmp_path / "data.npz"))


def test_without_safetensors_a_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    path = save(tmp_path / "data.safetensors", dict(zip(NAMES, good(), strict=True)))
    usual = builtins.__import__

    def barred(name, *more):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return usual(name, *more)

    monkeypatch.setattr(builtins, "__import__", barred)
    with pytest.raises(UsageError, match=r"needs the package safetensors, .*pip install 'kfbench\[safetensors\]'"):
        read_arrays(str(path))


_NAN = torch.tensor([[float("nan"), 1.0, 2.0]]).expand(20, 3)
_FAULTS = [
    (ValueError("no\ndata"), "could not be made: ValueError: no"),
    (SystemExit(3), "could not be made: SystemExit: 3"),
    (None, r"returned a NoneType, expected \(x_train, y_train, x_test, y_test\)"),
    (good()[:3], r"returned a tuple of 3, expected \(x_train"),
    (changed(x_train=[[1.0]]), "x_train is a list, expected a tensor or a numpy array"),
    (changed(x_train=np.array([["a"]])), "x_train is no array of numbers, got numpy's dtype <U1"),
    (changed(x_train=None), "x_train is None, expected a tensor"),
    (changed(x_train=torch.arange(60).view(20, 3)), "x_train has dtype int64, expected real numbers"),
    (changed(x_train=torch.zeros(20)), r"x_train has shape \[20\], expected \[n, ...\]"),
    (changed(x_train=torch.zeros(20, 0)), r"x_train has shape \[20, 0\], expected"),
    (changed(x_train=_NAN), r"x_train holds 20 numbers not finite \(nan or infinite\), expected none"),
    (changed(x_test=torch.full((10, 3), float("inf"))), "x_test holds 30 numbers not finite"),
    (changed(x_test=torch.zeros(10, 4)), r"shapes \[20, 3\] and \[10, 4\], expected the same but for n"),
    (
        changed(y_train=torch.zeros(19).long()),
        r"y_train has shape \[19\] .*one target for each of the 20 rows of x_train",
    ),
    (changed(y_train=torch.tensor(1)), r"y_train has shape \[\] and dtype int64, expected one target"),
    (changed(y_train=torch.zeros(20, 1).long()), r"y_train has shape \[20, 1\], expected class indices \[20\]"),
    (changed(y_train=torch.zeros(20, 0)), r"y_train has shape \[20, 0\], expected at least one number"),
    (changed(y_train=torch.zeros(20)), "y_train and y_test have dtypes float32 and int64, expected one kind"),
    (changed(y_train=None), "y_train is missing, expected both targets or none"),
    (changed(y_train=-good()[1]), "the lowest class index is -1, expected indices from 0 on"),
    (changed(y_train=good()[1] * 30), "the highest class index is 30 in 30 samples, expected class indices from 0 on"),
    (
        changed(y_train=torch.zeros(20).long(), y_test=torch.zeros(10).long()),
        "the highest class index is 0 in 30 samples, expected .* of at least two classes",
    ),
    (changed(y_train=torch.zeros(20), y_test=torch.full((10,), torch.nan)), "y_test holds 10 numbers not finite"),
    (changed(y_train=torch.zeros(20, dtype=torch.complex64)), "dtype complex64, expected one target"),
]


@pytest.mark.parametrize(("value", "sentence"), _FAULTS, ids=[sentence for _, sentence in _FAULTS])
def test_faults_are_one_sentence_that_names_the_data_set(returning, value, sentence):
    name = returning(value)
    with pytest.raises(UsageError, match=sentence) as caught:
        read_arrays(name)
    assert str(caught.value).startswith(f"data set {name!r}")
