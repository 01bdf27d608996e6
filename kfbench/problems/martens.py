"""FACES and CURVES of Hinton & Salakhutdinov (2006) in the MATLAB files that Martens (2010) distributes.

Names, orientation and split are those that the demos of Martens's own code use (nnet_demo_2.m of
Hessian-free optimization, KFAC_demo_2.m of K-FAC). Neither says how the pixels of an image are
ordered: they stay as they are.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from kfbench.errors import UsageError
from kfbench.problems.matlab import Variables, read_matlab

FACES_SIDE, CURVES_SIDE = 25, 28  # pixels
# FACES is divided into 40 parts: the first 25 for training, the last 10 for testing, 5 in between for neither.
_PARTS, _TRAINING_PARTS, _TEST_PARTS = 40, 25, 10
_MOST_BYTES = 2**30  # FACES in double precision has 0.83e9
_NUMBERS = ("double", "single", "logical", "uint8")


def read_faces(path: Path) -> list[np.ndarray]:
    """Training and test images [n, 1, 25, 25] of any finite numbers, float32; UsageError for anything else.

    A file holds ``newfaces_single`` [625, n], an image a column, in the published one 165,600.
    """
    name, pixels = "newfaces_single", FACES_SIDE**2

    def check(variables: Variables) -> None:
        _check_numbers(path, variables, name)
        shape = variables[name][0]
        if len(shape) != 2 or shape[0] != pixels or shape[1] % _PARTS:
            raise UsageError(
                f"{path} has {name} of shape {list(shape)}, expected [{pixels}, n], n being a multiple of {_PARTS}"
            )

    columns = read_matlab(path, (name,), check, _MOST_BYTES)[name]
    part = columns.shape[1] // _PARTS
    split = columns[:, : part * _TRAINING_PARTS], columns[:, part * (_PARTS - _TEST_PARTS) :]
    return [_images(path, name, each.T, FACES_SIDE) for each in split]


def read_curves(path: Path) -> list[np.ndarray]:
    """Training and test images [n, 1, 28, 28] of numbers from 0 to 1, float32; UsageError for anything else.

    A file holds ``bdata`` and ``bdatatest`` [n, 784], an image a row, in the published one 20,000 and 10,000.
    """
    names, pixels = ("bdata", "bdatatest"), CURVES_SIDE**2

    def check(variables: Variables) -> None:
        for name in names:
            _check_numbers(path, variables, name)
            shape = variables[name][0]
            if len(shape) != 2 or shape[1] != pixels:
                raise UsageError(f"{path} has {name} of shape {list(shape)}, expected [n, {pixels}]")

    rows = read_matlab(path, names, check, _MOST_BYTES)
    parts = [_images(path, name, rows[name], CURVES_SIDE) for name in names]
    for name, images in zip(names, parts, strict=True):
        for value in (images.min(), images.max()):
            if not 0 <= value <= 1:
                raise UsageError(f"{path} has {name} with the value {value}, expected 0 to 1")
    return parts


READERS: Mapping[str, Callable[[Path], list[np.ndarray]]] = {
    "newfaces_rot_single.mat": read_faces,
    "digs3pts_1.mat": read_curves,
}


def _check_numbers(path: Path, variables: Variables, name: str) -> None:
    if variables[name][1] not in _NUMBERS:
        raise UsageError(f"{path} has {name} of type {variables[name][1]}, expected {', '.join(_NUMBERS)}")


def _images(path: Path, name: str, rows: np.ndarray, side: int) -> np.ndarray:
    """[n, 1, side, side] of finite float32, from [n, side * side]; a copy, which leaves what is not used."""
    if rows.size == 0:
        raise UsageError(f"{path} has no images in {name}")
    if rows.dtype.kind == "c":
        raise UsageError(f"{path} has complex numbers in {name}, expected real ones")
    with np.errstate(over="ignore"):  # it is refused below
        images = np.array(rows, np.float32, order="C")
    wrong = images[~np.isfinite(images)]
    if wrong.size:
        raise UsageError(f"{path} has {name} with the value {wrong[0]}, expected finite numbers")
    return images.reshape(-1, 1, side, side)
