"""The IDX format of MNIST (LeCun et al. 1998): big-endian header, then unsigned bytes; maybe gzipped."""

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from kfbench.errors import UsageError, described

_UNSIGNED_BYTE = 0x08
# Twenty times MNIST: what would be more is kept off the memory, which its header, or gzip, may promise to fill.
_MOST_BYTES = 2**30
_CHUNK = 2**20


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array of unsigned bytes in ``path``; UsageError, one sentence, for anything else.

    ``dimensions`` is what is expected: 3 for images [n, rows, columns], 1 for labels [n].
    """
    start = 4 + 4 * dimensions
    with opened(path) as file:
        shape = _shape(path, file.read(start), dimensions)
        promised = math.prod(shape)
        if promised > _MOST_BYTES:
            raise UsageError(f"{path} cannot be read: its header says {promised} bytes of data, above {_MOST_BYTES}")
        content = file.read(promised + 1)
    if len(content) > promised:
        raise UsageError(f"{path} holds more bytes of data than its header says, {promised}")
    if len(content) < promised:
        raise UsageError(f"{path} holds {len(content)} bytes of data, its header says {promised}")
    try:
        return np.frombuffer(content, np.uint8).reshape(shape)
    except ValueError as error:  # no element, yet sizes that numpy refuses
        raise UsageError(f"{path} cannot be read: {error}") from error


def _shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    """Of the array that follows; UsageError for another header than that of ``dimensions`` of unsigned bytes."""
    if len(header) < 4:
        raise UsageError(f"{path} is {len(header)} bytes long, shorter than the header of an IDX file")
    zero, kind, stated = struct.unpack(">HBB", header[:4])
    if zero != 0:
        raise UsageError(f"{path} is no IDX file: it begins with {header[:4].hex()}, expected 0000")
    if kind != _UNSIGNED_BYTE:
        raise UsageError(f"{path} has element type 0x{kind:02x}, expected unsigned bytes (0x08)")
    if stated != dimensions:
        raise UsageError(f"{path} has {stated} dimensions, expected {dimensions}; are images and labels swapped?")
    if len(header) < 4 + 4 * dimensions:
        raise UsageError(f"{path} ends within its header")
    return struct.unpack(f">{dimensions}I", header[4:])


def idx_bytes(array: np.ndarray) -> bytes:
    """An array of unsigned bytes in the format that ``read_idx`` reads."""
    return struct.pack(f">HBB{array.ndim}I", 0, _UNSIGNED_BYTE, array.ndim, *array.shape) + array.tobytes()


def idx_sha256(path: Path) -> str:
    """Of the decompressed bytes of a plain or gzipped file; UsageError where it cannot be read."""
    digest, read = hashlib.sha256(), 0
    with opened(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            read += len(chunk)
            if read > _MOST_BYTES + _CHUNK:
                raise UsageError(f"{path} cannot be read: it holds more than {_MOST_BYTES} bytes")
    return digest.hexdigest()


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The decompressed bytes of a plain or gzipped file; UsageError for whatever reading them raises."""
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"  # gzip's mark, whatever the name says
            raw.seek(0)
            yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise UsageError(f"{path} cannot be read: {described(error)}") from error
