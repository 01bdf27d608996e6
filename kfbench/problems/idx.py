"""The IDX format of MNIST (LeCun et al. 1998): big-endian header, then unsigned bytes; maybe gzipped."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from kfbench.errors import UsageError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array of unsigned bytes in ``path``; UsageError, one sentence, for anything else.

    ``dimensions`` is what is expected: 3 for images [n, rows, columns], 1 for labels [n].
    """
    content = idx_content(path)
    if len(content) < 4:
        raise UsageError(f"{path} is {len(content)} bytes long, shorter than the header of an IDX file")
    zero, kind, found = struct.unpack(">HBB", content[:4])
    if zero != 0:
        raise UsageError(f"{path} is no IDX file: it begins with {content[:4].hex()}, expected 0000")
    if kind != _UNSIGNED_BYTE:
        raise UsageError(f"{path} has element type 0x{kind:02x}, expected unsigned bytes (0x08)")
    if found != dimensions:
        raise UsageError(f"{path} has {found} dimensions, expected {dimensions}; are images and labels swapped?")
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise UsageError(f"{path} ends within its header")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise UsageError(f"{path} holds {len(content) - start} bytes of data, its header says {math.prod(shape)}")
    try:
        return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    except ValueError as error:  # no element, yet sizes that numpy refuses
        raise UsageError(f"{path} cannot be read: {error}") from error


def idx_bytes(array: np.ndarray) -> bytes:
    """An array of unsigned bytes in the format that ``read_idx`` reads."""
    return struct.pack(f">HBB{array.ndim}I", 0, _UNSIGNED_BYTE, array.ndim, *array.shape) + array.tobytes()


def idx_content(path: Path) -> bytes:
    """The decompressed bytes of a plain or gzipped file."""
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
