"""A user's data set as one that trains: normalised if that is asked for, its targets those of the likelihood."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from kfbench.config.problem_table import MODELS, OWN_FILES
from kfbench.config.schema import Problem
from kfbench.errors import UsageError
from kfbench.problems.datasets import Dataset
from kfbench.problems.locations import file_states
from kfbench.problems.own.arrays import NAMES, Arrays, read_arrays

# Of SHA-256, in hexadecimal: as many as no chance makes equal.
DIGITS = 16
# The last one, its digest, and what it was read from: asked for when a command begins, and again when it trains.
_last: tuple[tuple[Any, ...], Arrays, str] | None = None


def digest(name: str) -> str:
    """Of names, types, shapes and numbers of a data set: a function's by what it returns, a file's by what it holds.

    UsageError where it cannot be had.
    """
    return _remembered(name)[1]


def load_own(problem: Problem, device: torch.device, dtype: torch.dtype) -> Dataset:
    """The user's data set of ``problem``, in ``dtype`` on the device.

    Its targets are class indices [n] for the categorical likelihood; else its own real numbers [n, K], or, where it has
    none, the inputs, flattened. UsageError where they are of another kind, or where its content is not that of
    ``dataset_digest``.
    """
    arrays, found = _remembered(problem.dataset)
    where = f"data set {problem.dataset!r}"
    if problem.dataset_digest not in (None, found):
        hint = "" if problem.dataset.endswith(OWN_FILES) else " (a function must return the same each time)"
        raise UsageError(
            f"{where} holds other numbers than were asked for: digest {found}, not {problem.dataset_digest}{hint}"
        )
    x = [part.to(device, dtype) for part in (arrays.x_train, arrays.x_test)]
    if problem.normalize == "own":
        x = _normalised(where, *x)
    y = _targets(arrays, problem, where)
    if y is None:
        data = Dataset(x[0], x[0], x[1], x[1], 0).reconstruction()
    elif problem.likelihood == "categorical":
        data = Dataset(x[0], y[0].to(device), x[1], y[1].to(device), arrays.classes)
    else:
        real = [part.reshape(len(part), -1).to(device, dtype) for part in y]
        data = Dataset(x[0], real[0], x[1], real[1], real[0].shape[1])
    if problem.likelihood == "bernoulli":
        _check_probabilities(data, where)
    return data


def _remembered(name: str) -> tuple[Arrays, str]:
    global _last
    key = (name, file_states(name, None) if name.endswith(OWN_FILES) else None)
    if _last is None or _last[0] != key:
        _last = None  # freed first, so that no two are held at once
        arrays = read_arrays(name)
        _last = key, arrays, _digest(arrays)
    return _last[1], _last[2]


def _digest(arrays: Arrays) -> str:
    sha = hashlib.sha256()
    for name in NAMES:
        tensor = getattr(arrays, name)
        if tensor is not None:
            sha.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
            sha.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()[:DIGITS]


def _targets(arrays: Arrays, problem: Problem, where: str) -> tuple[Tensor, Tensor] | None:
    """Those of the likelihood; None where the inputs are."""
    if arrays.y_train is None or arrays.y_test is None:
        if problem.likelihood == "categorical":
            raise UsageError(
                f"{where} has no targets, likelihood 'categorical' takes class indices as y_train and y_test"
            )
        return None
    if problem.likelihood == "categorical":
        if not arrays.classes:
            got = "real numbers as targets, likelihood 'categorical' takes class indices"
            raise UsageError(f"{where} has {got}; for real numbers use --likelihood gaussian")
        return arrays.y_train.long(), arrays.y_test.long()
    if not arrays.classes:
        return arrays.y_train, arrays.y_test
    # Of our data sets, too, autoencoders leave the labels out. Of any other model that would be a surprise.
    if problem.model in MODELS and MODELS[problem.model].likelihood != "categorical":
        return None
    expected = "real numbers, or no targets, which has the inputs reconstructed"
    raise UsageError(f"{where} has class indices as targets, likelihood {problem.likelihood!r} takes {expected}")


def _normalised(where: str, train: Tensor, test: Tensor) -> list[Tensor]:
    """Every feature [n, d] or channel [n, c, ...] with mean 0 and deviation 1 over the training samples."""
    others = [axis for axis in range(train.dim()) if axis != 1]
    exact = train.double()
    mean, std = exact.mean(others, keepdim=True), exact.std(others, keepdim=True)
    flat = (exact.amax(others) == exact.amin(others)).nonzero()
    if len(flat) or (len(train) == 1 and train.dim() == 2):
        which = int(flat[0]) if len(flat) else 0
        raise UsageError(f"{where} cannot be normalised: feature {which} of x_train has the same value everywhere")
    return [((part - mean) / std).to(part.dtype) for part in (train, test)]


def _check_probabilities(data: Dataset, where: str) -> None:
    for targets in (data.train_targets, data.test_targets):
        lowest, highest = float(targets.min()), float(targets.max())
        if lowest < 0 or highest > 1:
            got = f"its targets go from {lowest:g} to {highest:g}"
            raise UsageError(f"likelihood 'bernoulli' takes targets from 0 to 1; of {where} {got}")
