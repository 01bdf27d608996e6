"""MATLAB 5 files: the variables asked for, of the shapes and types expected, within a bound on their bytes."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from kfbench.errors import UsageError, described

_HEADER, _COMPRESSED = 128, 15
_ORDERS = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}  # version and byte order, as the header ends
_HDF5 = (b"MATLAB 7.3", b"\x89HDF")  # how a file of that version begins, with MATLAB's own header or without

# Of each variable its shape and MATLAB's name of its type.
Variables = Mapping[str, tuple[tuple[int, ...], str]]


def read_matlab(
    path: Path, names: Sequence[str], check: Callable[[Variables], None], most_bytes: int
) -> dict[str, np.ndarray]:
    """The variables of these names; UsageError, one sentence, where one lacks or the file is damaged or another kind.

    ``check`` sees what there is before anything is read, since a header may promise to fill the memory. No more than
    ``most_bytes`` are unpacked.
    """
    import scipy.io  # slow to import, and needed here only

    try:
        content = _decompressed(path, most_bytes)
        variables = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(content)}
        for name in names:
            if name not in variables:
                raise UsageError(f"{path} has no variable {name}, it has {', '.join(sorted(variables)) or 'none'}")
        check(variables)
        content.seek(0)
        loaded = scipy.io.loadmat(content, variable_names=names)
        return {name: loaded[name] for name in names}
    except UsageError:
        raise
    except Exception as error:  # scipy raises whatever a damaged file leads it to
        raise UsageError(f"{path} cannot be read, it is damaged or no MATLAB file: {described(error)}") from error


def _decompressed(path: Path, most_bytes: int) -> io.BytesIO:
    """The same file with nothing compressed in it, so that it can be no longer than it may be."""
    content = io.BytesIO()
    with path.open("rb") as file:
        header = file.read(_HEADER)
        if header.startswith(_HDF5):
            raise UsageError(
                f"{path} is no MATLAB 5 file but one of version 7.3 (HDF5): load it in MATLAB and write it again with "
                "save(..., '-v7')"
            )
        order = _ORDERS.get(header[-4:])
        if len(header) < _HEADER or order is None:
            raise UsageError(f"{path} is no MATLAB 5 file: its header has no such version")
        content.write(header)
        while tag := file.read(8):
            kind, size = struct.unpack(f"{order}II", tag)
            if size > path.stat().st_size - file.tell():
                raise UsageError(f"{path} ends within a variable")
            element = file.read(size)
            if kind == _COMPRESSED:
                unpacked = zlib.decompressobj()
                content.write(unpacked.decompress(element, most_bytes + 1 - content.tell()))
            else:
                content.write(tag + element)
            if content.tell() > most_bytes:
                raise UsageError(f"{path} cannot be read: it holds more than {most_bytes} bytes")
    content.seek(0)
    return content
