"""CURVES: synthetic images, each of a curve through three random points, generated from a fixed seed.

Hinton & Salakhutdinov 2006 ("Reducing the Dimensionality of Data with Neural Networks", Science)
trained on 20,000 and tested on 10,000 images, 28 x 28, pixels from 0 to 1, of curves "generated
from three randomly chosen points in two dimensions". How a curve follows from its points is not
said there, so these images are of that kind and not the same ones: losses are not comparable with
published ones.

For each image six coordinates are drawn, uniform over 1,024 steps from 4 to 24 pixels. The curve is
the quadratic polynomial in t that is at the first point for t = 0, at the second for 1/2, at the
third for 1; it stays inside the image. A pixel is white where its centre lies within 1/2 pixel of
the curve, black beyond 3/2, and linear in between: a pen two pixels wide.
"""

import fcntl
import gzip
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from kfbench.problems.idx import idx_bytes
from kfbench.results.records import write_atomically

SIDE = 28  # pixels
_SEED = 2006
_BITS = 10  # of a coordinate
_LOW, _RANGE = 4, 20  # pixels
_UNIT = 64  # parts of a pixel in which distances are whole numbers
_PIECES = 256  # of a curve: their ends lie less than half a pixel apart, so that no piece is seen
_CHUNK = 16  # images drawn at a time: what is being compared fits into a cache


def write_curves(folder: Path, files: Mapping[str, int]) -> None:
    """Gzipped IDX files of so many images each, in turn from the same stream.

    The folder is there whole or not at all, also where several processes want it; the one above it exists.
    """
    with _alone(folder.parent) as alone:
        if folder.is_dir():  # another process has made it meanwhile
            return
        if alone:
            _remove_leftovers(folder, files)
        _write(folder, files)


@contextmanager
def _alone(place: Path) -> Iterator[bool]:
    """Whether no other process generates anything there within the block; waits for one that does."""
    handle = os.open(place, os.O_RDONLY)
    try:
        locked = False
        with suppress(OSError):  # not every file system can lock a folder
            fcntl.flock(handle, fcntl.LOCK_EX)
            locked = True
        yield locked
    finally:
        os.close(handle)


def _remove_leftovers(folder: Path, files: Mapping[str, int]) -> None:
    """What killed processes left: folders named as below, of files as below."""
    ours = re.compile(rf"{re.escape(folder.name)}/({'|'.join(map(re.escape, files))})\.gz(\.tmp)?")
    for left in folder.parent.glob(f".{folder.name}-????????"):
        within = [path for path in left.rglob("*") if path != left / folder.name]
        if (
            left.is_dir()
            and not left.is_symlink()
            and all(ours.fullmatch(path.relative_to(left).as_posix()) for path in within)
        ):
            shutil.rmtree(left)


def _write(folder: Path, files: Mapping[str, int]) -> None:
    images = np.split(curves(sum(files.values())), np.cumsum(list(files.values()))[:-1])
    # Beside its place, since a rename is whole only within one file system.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made = Path(temporary) / folder.name
        made.mkdir()
        for name, part in zip(files, images, strict=True):
            # Without the time, so that equal images are equal files.
            write_atomically(made / f"{name}.gz", gzip.compress(idx_bytes(part), mtime=0))
        try:
            os.rename(made, folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same images
                raise


def curves(count: int) -> np.ndarray:
    """The first ``count`` images, [count, 28, 28] bytes; the same on every machine.

    Of numpy's generators only the raw bits are promised never to change, so only those are used.
    All arithmetic is on whole numbers, but for a square root, a product and a difference for each
    pixel, which IEEE 754 rounds in one way.
    """
    bits = np.random.PCG64(_SEED).random_raw(6 * count) >> np.uint64(64 - _BITS)
    points = bits.astype(np.int64).reshape(count, 3, 2)
    return np.concatenate([_drawn(points[i : i + _CHUNK]) for i in range(0, count, _CHUNK)])


def positions(points: np.ndarray) -> np.ndarray:
    """Points on the curves through ``points`` [n, 3, 2] in steps, [n, 2, pieces + 1] in 1/64 pixel."""
    k = np.arange(_PIECES + 1, dtype=np.int64)
    # Lagrange's weights at t = k / pieces, times pieces^2.
    first, second, third = (_PIECES - k) * (_PIECES - 2 * k), 4 * k * (_PIECES - k), k * (2 * k - _PIECES)
    steps = 1 << _BITS
    nodes = (points * _RANGE + _LOW * steps)[..., None]  # in 1/steps pixel
    curve = first * nodes[:, 0] + second * nodes[:, 1] + third * nodes[:, 2]
    return curve * _UNIT // (steps * _PIECES**2)


def _drawn(points: np.ndarray) -> np.ndarray:
    """Images [n, 28, 28] bytes; the first coordinate of a point is its row."""
    centres = np.arange(SIDE, dtype=np.int64) * _UNIT + _UNIT // 2
    # 32 bits are enough for distances below 28 * 64, squared and added.
    squares = (positions(points)[:, :, None, :] - centres[:, None]).astype(np.int32) ** 2
    rows, columns = squares[:, 0], squares[:, 1]  # [n, 28, pieces + 1]
    nearest = np.stack([(columns + rows[:, r, None]).min(axis=-1) for r in range(SIDE)], axis=1)
    distances = np.sqrt(nearest.astype(np.float64)) / _UNIT  # pixels
    return np.rint(255 * np.clip(1.5 - distances, 0, 1)).astype(np.uint8)
