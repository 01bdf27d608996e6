"""Pickles as data: files of arrays are read in every dialect, nothing is executed, all else is one sentence."""

import os
import pickle
import pickletools
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kfbench.errors import UsageError
from kfbench.problems import pickled
from kfbench.problems.pickled import read_pickle
from tests.fuzzing import fuzz, result_or_one_sentence
from tests.problems.published_files import cifar_batch, python2_pickle

VALUE = {
    "data": np.arange(6, dtype=np.uint8).reshape(2, 3),
    "labels": [0, 255, 256, -1, 2**70],
    "more": (None, True, "é"),
}


def _same(a, b):
    return all(
        np.array_equal(a[key], b[key]) if isinstance(b[key], np.ndarray) else a[key] == b[key] for key in {**a, **b}
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "batch"


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_python_3_writes(path, protocol):
    path.write_bytes(pickle.dumps(VALUE, protocol))
    assert _same(read_pickle(path), VALUE)


def test_what_python_2_wrote(path):
    batch = cifar_batch(300)
    python2_pickle(batch, path)
    names = {operation.name for operation, _, _ in pickletools.genops(path.read_bytes())}
    assert {"SHORT_BINSTRING", "BINSTRING", "GLOBAL", "APPENDS"} <= names and "BINUNICODE" not in names
    found = read_pickle(path)
    assert _same(found, batch) and found["data"].dtype == np.uint8
    assert _same(found, pickle.loads(path.read_bytes(), encoding="latin1"))


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_in_either_order(path, order):
    array = np.asarray(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), order=order)
    path.write_bytes(pickle.dumps(array, 2))
    assert np.array_equal(read_pickle(path), array)


class _Evil:
    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("call", ["os.system", "eval", "open"])
def test_a_pickle_that_names_a_function_is_refused_and_executes_nothing(tmp_path, path, call, protocol):
    trace = tmp_path / "trace"
    evil = {
        "os.system": _Evil(os.system, f"touch {trace}"),
        "eval": _Evil(eval, f"open({str(trace)!r}, 'w')"),
        "open": _Evil(open, str(trace), "w"),
    }[call]
    for value in (evil, {"data": VALUE["data"], "labels": [evil]}):
        path.write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(UsageError, match=r"is refused: it names .*; nothing in it was executed") as caught:
            read_pickle(path)
        assert str(path) in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (np.arange(3.0), "holds an array of 'f8', expected unsigned bytes"),
        (np.array([_Evil(print), None], object), r"names \w+.print"),
        ({1, 2}, r"uses the operation EMPTY_SET|names \w+.set"),
        (bytearray(b"x"), r"names \w+.bytearray|BYTEARRAY8"),
        ({(1, 2): 3}, "a dictionary has a key of type tuple"),
    ],
    ids=["floats", "objects", "set", "bytearray", "key"],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_no_such_file_holds(path, value, sentence, protocol):
    path.write_bytes(pickle.dumps(value, protocol))
    with pytest.raises(UsageError, match=rf"{sentence}|names numpy\._core\.numeric\._frombuffer"):
        read_pickle(path)


def test_a_class_is_never_called(path):
    path.write_bytes(b"\x80\x02cnumpy\nndarray\nK\x05\x85R.")
    with pytest.raises(UsageError, match="it calls a class"):
        read_pickle(path)


def test_what_is_no_pickle_or_missing(tmp_path, path):
    for content in (b"", b".", b"hello", b"\x80\x02", b"\x1f\x8b\x08"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"batch (cannot be read, it is damaged or no pickle|is refused)"):
            read_pickle(path)
    for other in (tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            read_pickle(other)


_WHOLE = pickle.dumps(VALUE, 2)


def test_every_torn_one_is_one_sentence(path):
    for length in range(len(_WHOLE)):
        path.write_bytes(_WHOLE[:length])
        with pytest.raises(UsageError, match="cannot be read, it is damaged or no pickle: "):
            read_pickle(path)


_operations = st.sampled_from([operation.code.encode("latin-1") for operation in pickletools.opcodes])


@fuzz
@given(
    st.one_of(
        st.lists(st.one_of(_operations, st.binary(max_size=3)), max_size=30).map(b"".join).map(lambda b: b + b"."),
        st.tuples(st.integers(0, len(_WHOLE) - 1), st.binary(min_size=1, max_size=1)).map(
            lambda change: _WHOLE[: change[0]] + change[1] + _WHOLE[change[0] + 1 :]
        ),
    )
)
@example(b"(" * 1000 + b".")
@example(b"K\x01" + b"2" * 9 + b".")
def test_any_bytes(path, content):
    path.write_bytes(content)
    result_or_one_sentence(lambda: read_pickle(path))


def test_lengths_that_fill_any_memory_are_not_believed(path, monkeypatch):
    """Of text, of arrays, and places in the memory, for which pickle itself makes room."""
    huge = struct.pack("<i", 2**31 - 1), struct.pack("<Q", 2**40), struct.pack("<I", 2**32 - 1)
    array = _WHOLE.replace(b"K\x02K\x03\x86", b"J" + huge[0] + b"K\x03\x86")
    assert array != _WHOLE
    tracemalloc.start()
    for content in (b"T" + huge[0], b"\x8e" + huge[1], b"\x96" + huge[1], b"\x95" + huge[1], array):
        path.write_bytes(content + b"abc.")
        with pytest.raises(UsageError, match=r"cannot be read|is refused"):
            read_pickle(path)
    path.write_bytes(b"]r" + huge[2] + b".")
    assert read_pickle(path) == []
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    monkeypatch.setattr(pickled, "_MOST_BYTES", 100)
    path.write_bytes(bytes(101))
    with pytest.raises(UsageError, match="it is longer than 100 bytes"):
        read_pickle(path)
