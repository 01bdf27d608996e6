"""The IDX reader: the published format is read, every fault of a file is one sentence."""

import gzip
import hashlib
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kfbench.errors import UsageError
from kfbench.problems import idx
from kfbench.problems.idx import read_idx
from tests.fuzzing import fuzz, result_or_one_sentence
from tests.problems.idx_files import idx_bytes

_IMAGES = np.arange(24).reshape(2, 4, 3) * 10
_LABELS = np.array([0, 9, 255])


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("array", [_IMAGES, _LABELS, np.zeros((0, 28, 28)), np.zeros(0)], ids=lambda a: str(a.shape))
def test_what_was_written_is_read(tmp_path, array, compress):
    path = tmp_path / "file"
    path.write_bytes(compress(idx_bytes(array)))
    found = read_idx(path, array.ndim)
    assert found.dtype == np.uint8 and found.shape == array.shape
    assert (found == array).all()
    assert idx.idx_bytes(found) == idx_bytes(array), "our writer gives the published format"


def test_the_header_as_published(tmp_path):
    """Byte for byte from the description of the MNIST files: magic number 2049, count, labels."""
    path = tmp_path / "labels"
    path.write_bytes(bytes.fromhex("00000801 00000003 050004"))
    assert read_idx(path, 1).tolist() == [5, 0, 4]


_whole = idx_bytes(_IMAGES)
_zipped = gzip.compress(_whole)
_FAULTS = {
    "empty": (b"", "0 bytes long"),
    "three bytes": (b"\0\0\x08", "3 bytes long"),
    "text": (b"<html>not found</html>", "is no IDX file: it begins with 3c68746d"),
    "element type": (idx_bytes(_IMAGES, kind=0x0D), "element type 0x0d, expected unsigned bytes"),
    "swapped": (idx_bytes(_LABELS), "has 1 dimensions, expected 3; are images and labels swapped?"),
    "no dimension": (b"\0\0\x08\0", "has 0 dimensions"),
    "within the header": (_whole[:10], "ends within its header"),
    "truncated": (_whole[:-1], "holds 23 bytes of data, its header says 24"),
    "only a header": (_whole[:16], "holds 0 bytes of data, its header says 24"),
    "trailing": (_whole + b"\0", "holds more bytes of data than its header says, 24"),
    "absurd sizes": (_whole[:4] + b"\xff" * 12 + _whole[16:], "its header says"),
    "none of absurd size": (struct.pack(">HBB3I", 0, 8, 3, 0, 2**32 - 1, 2**32 - 1), "cannot be read"),
    "torn gzip": (_zipped[: len(_zipped) // 2], "cannot be read"),
    "gzip without its end": (_zipped[:-4], "cannot be read"),
    "gzip header only": (_zipped[:5], "cannot be read"),
    "wrong checksum": (_zipped[:-8] + b"\0\0\0\0" + _zipped[-4:], "cannot be read"),
    "damaged gzip": (_zipped[:12] + b"\xff\xff" + _zipped[14:], "cannot be read"),
    "gzipped twice": (gzip.compress(_zipped), "is no IDX file: it begins with 1f8b"),
}


@pytest.mark.parametrize("fault", _FAULTS)
def test_a_fault_is_one_sentence_with_the_file(tmp_path, fault):
    content, sentence = _FAULTS[fault]
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_idx(path, 3)
    assert sentence in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_no_file(tmp_path, kind):
    with pytest.raises(UsageError, match="cannot be read"):
        read_idx(tmp_path / "missing" if kind == "missing" else tmp_path, 1)


_header = st.builds(
    lambda kind, sizes, data: struct.pack(f">HBB{len(sizes)}I", 0, kind, len(sizes), *sizes) + data,
    st.sampled_from([0x08, 0x09]),
    st.lists(st.one_of(st.integers(0, 3), st.integers(0, 2**32 - 1)), max_size=4),
    st.binary(max_size=20),
)
_content = st.one_of(st.binary(max_size=40), _header)


@fuzz
@given(st.one_of(_content, _content.map(gzip.compress), st.binary(max_size=40).map(lambda b: b"\x1f\x8b\x08" + b)))
@example(struct.pack(">HBB3I", 0, 8, 3, 0, 2**32 - 1, 2**32 - 1))
def test_any_bytes(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    for dimensions in (1, 3):
        found = result_or_one_sentence(lambda n=dimensions: read_idx(path, n))
        assert found is None or (found.ndim == dimensions and found.dtype == np.uint8)


def test_no_more_is_read_than_the_header_promises(tmp_path):
    """Three megabytes that unpack to three gigabytes were unpacked whole."""
    path = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(struct.pack(">HBB3I", 0, 8, 3, 2, 4, 3))
        for _ in range(200):
            file.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(UsageError, match="holds more bytes of data than its header says, 24"):
        read_idx(path, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20


def test_a_header_that_promises_more_than_any_memory_is_not_believed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(struct.pack(">HBB3I", 0, 8, 3, 2**31, 28, 28) + bytes(100))
    with pytest.raises(UsageError, match="its header says 1683627180032 bytes of data, above 1073741824"):
        read_idx(path, 3)


def test_the_checksum_of_a_file_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "_MOST_BYTES", 2**22)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(bytes(2**24)))
    with pytest.raises(UsageError, match="it holds more than 4194304 bytes"):
        idx.idx_sha256(path)
    path.write_bytes(gzip.compress(b"x" * 3))
    assert idx.idx_sha256(path) == hashlib.sha256(b"xxx").hexdigest()
