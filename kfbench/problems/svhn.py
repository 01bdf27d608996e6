"""SVHN's cropped digits (Netzer et al. 2011) in their published MATLAB files."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np

from kfbench.errors import UsageError, described

_SHAPE = (32, 32, 3)
_MOST_BYTES = 2**30  # four times the training set
_HEADER, _COMPRESSED = 128, 15
_ORDERS = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}  # version and byte order, as the header ends


def read_svhn(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 3, 32, 32] of unsigned bytes and labels [n] from 0 to 9; UsageError, one sentence, for anything else.

    A file holds ``X`` [32, 32, 3, n] and ``y`` [n, 1], both of unsigned bytes; label 10 is the digit 0.
    """
    import scipy.io  # slow to import, and needed here only

    try:
        content = _decompressed(path)
        shapes = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(content)}
        count = _checked_count(path, shapes)  # before anything is read: a header may promise to fill the memory
        content.seek(0)
        variables = scipy.io.loadmat(content, variable_names=("X", "y"))
    except UsageError:
        raise
    except Exception as error:  # scipy raises whatever a damaged file leads it to
        raise UsageError(f"{path} cannot be read, it is damaged or no MATLAB file: {described(error)}") from error
    images = np.ascontiguousarray(variables["X"].reshape(*_SHAPE, count).transpose(3, 2, 0, 1))
    labels = variables["y"].reshape(count).astype(np.int64)
    wrong = labels[(labels < 1) | (labels > 10)]
    if wrong.size:
        raise UsageError(f"{path} has label {wrong[0]}, expected 1 to 10")
    return images, labels % 10


def _checked_count(path: Path, shapes: dict[str, tuple[tuple[int, ...], str]]) -> int:
    """How many images there are; UsageError where variables lack or have other shapes or types."""
    for name in ("X", "y"):
        if name not in shapes:
            raise UsageError(f"{path} has no variable {name}, it has {', '.join(sorted(shapes)) or 'none'}")
        if shapes[name][1] != "uint8":
            raise UsageError(f"{path} has {name} of type {shapes[name][1]}, expected uint8")
    X, y = shapes["X"][0], shapes["y"][0]
    if len(X) not in (3, 4) or X[:3] != _SHAPE:
        raise UsageError(f"{path} has X of shape {list(X)}, expected [32, 32, 3, n]")
    count = X[3] if len(X) == 4 else 1  # MATLAB drops a last size of 1
    if len(y) != 2 or 1 not in y or max(y) != y[0] * y[1]:
        raise UsageError(f"{path} has y of shape {list(y)}, expected [n, 1]")
    if y[0] * y[1] != count:
        raise UsageError(f"{path} has {y[0] * y[1]} labels for {count} images")
    return int(count)


def _decompressed(path: Path) -> io.BytesIO:
    """The same file with nothing compressed in it, so that it can be no longer than it may be."""
    content = io.BytesIO()
    with path.open("rb") as file:
        header = file.read(_HEADER)
        order = _ORDERS.get(header[-4:])
        if len(header) < _HEADER or order is None:
            raise UsageError(f"{path} is no MATLAB 5 file, as SVHN's are: its header has no such version")
        content.write(header)
        while tag := file.read(8):
            kind, size = struct.unpack(f"{order}II", tag)
            if size > path.stat().st_size - file.tell():
                raise UsageError(f"{path} ends within a variable")
            element = file.read(size)
            if kind == _COMPRESSED:
                unpacked = zlib.decompressobj()
                content.write(unpacked.decompress(element, _MOST_BYTES + 1 - content.tell()))
            else:
                content.write(tag + element)
            if content.tell() > _MOST_BYTES:
                raise UsageError(f"{path} cannot be read: it holds more than {_MOST_BYTES} bytes")
    content.seek(0)
    return content
