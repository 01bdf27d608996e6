"""The four tensors of a user's data set, from a function or a file of arrays, checked against each other."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kfbench.config.importing import import_object
from kfbench.config.problem_table import OWN_FILES
from kfbench.errors import UsageError, described

NAMES = ("x_train", "y_train", "x_test", "y_test")
_ALL = ", ".join(NAMES)


@dataclass(frozen=True)
class Arrays:
    """Inputs [n, ...] of real numbers; targets [n] of class indices or [n, ...] of real numbers, or none at all."""

    x_train: Tensor
    y_train: Tensor | None
    x_test: Tensor
    y_test: Tensor | None

    @property
    def classes(self) -> int:
        """How many there are, counted from the largest index; 0 where the targets are no class indices."""
        if self.y_train is None or self.y_test is None or self.y_train.is_floating_point():
            return 0
        return 1 + max(int(self.y_train.max()), int(self.y_test.max()))


def read_arrays(name: str) -> Arrays:
    """The data set that ``name`` means; UsageError, one sentence naming what is wrong, for every fault of it."""
    where = f"data set {name!r}"
    given = _from_file(Path(name), where) if name.endswith(OWN_FILES) else _from_function(name, where)
    tensors = {key: _tensor(value, f"{where}: {key}") for key, value in given.items()}
    for part in ("train", "test"):
        _check_part(tensors[f"x_{part}"], tensors[f"y_{part}"], part, where)
    _check_alike(tensors, where)
    arrays = Arrays(**tensors)  # type: ignore[arg-type]
    _check_classes(arrays, where)
    return arrays


def _from_function(name: str, where: str) -> dict[str, Any]:
    make = import_object(name, "data set")
    try:
        returned = make()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's function may fail in any way
        raise UsageError(f"{where} could not be made: {described(error)}") from error
    if not isinstance(returned, (tuple, list)) or len(returned) != len(NAMES):
        many = f" of {len(returned)}" if isinstance(returned, (tuple, list)) else ""
        raise UsageError(f"{where} returned a {type(returned).__name__}{many}, expected ({_ALL})")
    return dict(zip(NAMES, returned, strict=True))


def _from_file(path: Path, where: str) -> dict[str, Any]:
    try:
        path = path.expanduser()
        if not path.is_file():
            raise UsageError(f"{where} was not found: there is no such file")
        held = _npz(path) if path.suffix == ".npz" else _safetensors(path, where)
    except UsageError:
        raise
    except Exception as error:  # a file may be damaged in any way
        raise UsageError(f"{where} cannot be read: {described(error)}") from error
    if missing := [key for key in ("x_train", "x_test") if key not in held]:
        there = ", ".join(held) or "nothing"
        raise UsageError(f"{where} lacks {' and '.join(missing)}, expected {_ALL}; it holds {there}")
    return {key: held.get(key) for key in NAMES}


def _npz(path: Path) -> Mapping[str, Any]:
    if not zipfile.is_zipfile(path):  # numpy would take it for a pickle, and say so
        raise ValueError("it is no archive of arrays, as numpy.savez writes them")
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _safetensors(path: Path, where: str) -> Mapping[str, Any]:
    try:
        from safetensors.torch import load_file  # an extra, for these files alone
    except ImportError as error:
        way = "install it with pip install 'kfbench[safetensors]', or save the arrays as .npz"
        raise UsageError(f"{where} needs the package safetensors, which is not here: {way}") from error
    loaded: Mapping[str, Any] = load_file(path)
    return loaded


def _tensor(value: Any, what: str) -> Tensor | None:
    """On the CPU, without a graph; None stays."""
    if value is None:
        return None
    try:
        # The system's order of bytes: numpy knows both, torch one.
        native = value.astype(value.dtype.newbyteorder("="), copy=False) if isinstance(value, np.ndarray) else value
        tensor = torch.as_tensor(native) if isinstance(value, np.ndarray) else value
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} is no array of numbers, got numpy's dtype {value.dtype}") from error
    if not isinstance(tensor, Tensor):
        raise UsageError(f"{what} is a {type(value).__name__}, expected a tensor or a numpy array")
    return tensor.detach().cpu()


def _check_part(x: Tensor | None, y: Tensor | None, part: str, where: str) -> None:
    if x is None:
        raise UsageError(f"{where}: x_{part} is None, expected a tensor [n, ...]")
    if not x.is_floating_point():
        raise UsageError(f"{where}: x_{part} has dtype {_dtype(x)}, expected real numbers (float32 or float64)")
    if x.dim() < 2 or x.numel() == 0:
        raise UsageError(
            f"{where}: x_{part} has shape {list(x.shape)}, expected [n, ...] with at least one number each"
        )
    _check_finite(x, f"{where}: x_{part}")
    if y is None:
        return
    if y.is_complex() or y.dim() == 0 or len(y) != len(x):
        got = f"y_{part} has shape {list(y.shape)} and dtype {_dtype(y)}"
        raise UsageError(f"{where}: {got}, expected one target for each of the {len(x)} rows of x_{part}")
    if y.numel() == 0:
        raise UsageError(f"{where}: y_{part} has shape {list(y.shape)}, expected at least one number each")
    if y.is_floating_point():
        _check_finite(y, f"{where}: y_{part}")
    elif y.dim() != 1:
        raise UsageError(f"{where}: y_{part} has shape {list(y.shape)}, expected class indices [{len(x)}]")


def _check_finite(values: Tensor, what: str) -> None:
    bad = int((~values.isfinite()).sum())
    if bad:
        raise UsageError(f"{what} holds {bad} number{'s' * (bad > 1)} not finite (nan or infinite), expected none")


def _check_alike(tensors: Mapping[str, Tensor | None], where: str) -> None:
    """Training and test part are of one kind."""
    for kind in "xy":
        train, test = tensors[f"{kind}_train"], tensors[f"{kind}_test"]
        if (train is None) != (test is None):
            missing = f"{kind}_train" if train is None else f"{kind}_test"
            raise UsageError(f"{where}: {missing} is missing, expected both targets or none")
        if train is None or test is None:
            continue
        if train.shape[1:] != test.shape[1:]:
            got = f"{list(train.shape)} and {list(test.shape)}"
            raise UsageError(f"{where}: {kind}_train and {kind}_test have shapes {got}, expected the same but for n")
        if train.is_floating_point() != test.is_floating_point():
            got = f"{_dtype(train)} and {_dtype(test)}"
            raise UsageError(f"{where}: {kind}_train and {kind}_test have dtypes {got}, expected one kind")


def _check_classes(arrays: Arrays, where: str) -> None:
    if arrays.y_train is None or arrays.y_test is None or arrays.y_train.is_floating_point():
        return
    lowest = min(int(arrays.y_train.min()), int(arrays.y_test.min()))
    if lowest < 0:
        raise UsageError(f"{where}: the lowest class index is {lowest}, expected indices from 0 on")
    samples = len(arrays.y_train) + len(arrays.y_test)
    if not 2 <= arrays.classes <= samples:
        got = f"the highest class index is {arrays.classes - 1} in {samples} samples"
        raise UsageError(f"{where}: {got}, expected class indices from 0 on, of at least two classes")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
