"""Checkpoints: written whole or not at all, with the one before kept in reserve."""

import hashlib
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kfbench.errors import UsageError
from kfbench.results.contents import CHECKPOINT, RESERVES
from kfbench.results.records import SCHEMA_VERSION, write_atomically

RESERVE, _INCOMING = RESERVES
# What stands before the checksum at the end of the file, and how long both are together.
_MARK, _DIGEST = b"kfbench:", 16
_SIGNATURE = len(_MARK) + 2 * _DIGEST
# What one holds, and what of its trainee only one does from which a run goes on.
_PARTS = {
    "trajectory": dict,
    "seed": int,
    "trainee": dict,
    "epochs": list,
    "recent": list,
    "bytes": list,
    "clocks": dict,
}
_TO_GO_ON = {"optimizer", "scheduler", "preconditioning", "random", "random_device"}


class CheckpointError(UsageError):
    """There are checkpoints, and from none can the seed go on; ``reason`` says why, without advice."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; start anew with --overwrite")
        self.reason = reason


class TornError(ValueError):
    """Why one of them is of no use: the end of a sentence that begins with its name."""


def save_checkpoint(directory: Path, content: Mapping[str, Any]) -> None:
    """Write beside the last one, keep that as reserve, then rename; a crash at any point leaves one whole."""
    buffer = io.BytesIO()
    torch.save({"schema_version": SCHEMA_VERSION, **content}, buffer)
    _sign(buffer)
    current = directory / CHECKPOINT
    incoming = directory / _INCOMING
    write_atomically(incoming, buffer.getbuffer())
    if current.exists():
        os.replace(current, directory / RESERVE)
    os.replace(incoming, current)


def _sign(buffer: io.BytesIO) -> None:
    """Append the checksum of everything before it, as the comment with which a ZIP file, such as torch's, may end."""
    buffer.seek(-2, io.SEEK_END)
    buffer.write(_SIGNATURE.to_bytes(2, "little"))  # the length of the comment: so far there was none
    with buffer.getbuffer() as content:
        checksum = _checksum(content)
    buffer.write(_MARK + checksum)


def _checksum(content: memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).hexdigest().encode()


def load_checkpoint(
    directory: Path, go_on: Callable[[dict[str, Any]], None] = lambda content: None
) -> dict[str, Any] | None:
    """The newest checkpoint that is whole and that ``go_on`` takes, or None where there is none at all.

    Only tensors and plain values are loaded (``weights_only``), never code; all tensors come to the CPU. Whatever
    ``go_on`` raises, but for UsageError, makes it the turn of the next one; CheckpointError where none is left.
    """
    reasons = []
    # In this order: where the first is missing, a crash came between the two renames, and the new one is whole.
    for name in (CHECKPOINT, _INCOMING, RESERVE):
        path = directory / name
        if not path.exists():
            continue
        try:
            content = _read(path)
            go_on(content)
        except (UsageError, KeyboardInterrupt):
            raise
        except TornError as error:
            reasons.append(f"{name} {error}")
        except pickle.UnpicklingError:  # whose own words advise to load it all the same
            reasons.append(f"{name} holds more than tensors and plain values, or is damaged")
        # A torn file fails in any way, and a user's method on what it reads there; the next one is older and whole.
        except BaseException as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            reasons.append(f"{name} cannot be continued from: {what[:300]}")
        else:
            return content
    if reasons:
        raise CheckpointError(f"no checkpoint in {directory} can be read: {'; '.join(reasons)}")
    return None


def _read(path: Path) -> dict[str, Any]:
    whole = memoryview(path.read_bytes())
    signed = whole[-_SIGNATURE : -2 * _DIGEST] == _MARK
    if signed and whole[-2 * _DIGEST :] != _checksum(whole[:-_SIGNATURE]):
        raise TornError("is damaged: its checksum is another")
    # Those of before there was a checksum are ZIP files too, with one of each part, which torch does not look at.
    if not signed and zipfile.ZipFile(io.BytesIO(whole)).testzip() is not None:
        raise TornError("is damaged: a checksum in it is another")
    content = torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise TornError(f"holds a {type(content).__name__}, no checkpoint")
    if "schema_version" in content and not signed:
        raise TornError("is damaged: its checksum is missing")
    if content.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise TornError(f"is of schema_version {content['schema_version']}, expected {SCHEMA_VERSION}")
    return content


def check_whole(content: Mapping[str, Any], folder: Path, seed: int, total: int) -> None:
    """TornError where a seed of ``total`` updates cannot go on from it in that folder, be it whole as a file."""
    for key, kind in _PARTS.items():
        if not isinstance(content.get(key), kind):
            raise TornError(f"has no {kind.__name__} as {key}" if key in content else f"lacks its {key}")
    if content["seed"] != seed:
        raise TornError(f"is of seed {content['seed']}, not of {seed}")
    state = content["trainee"]
    step, samples = state.get("step"), state.get("samples")
    if not (isinstance(step, int) and isinstance(samples, int) and 0 <= step <= total and samples >= 0):
        raise TornError(f"is at update {step!r} of {total}, sample {samples!r}")
    # One of an ended run has weights alone; from any other a run goes on bit for bit.
    ended = step == total and not _TO_GO_ON & set(state)
    if not ended and (lacking := sorted(_TO_GO_ON - set(state))):
        raise TornError(f"lacks its {', '.join(lacking)}")
    for name, length in zip(("updates.csv", "epochs.csv"), content["bytes"], strict=True):
        path = folder / name
        if not path.is_file() or path.stat().st_size < length:
            raise TornError(f"was written when {name} had {length} bytes, more than now")
    for row in content["epochs"]:
        if not (isinstance(row.get("train_loss"), float) and isinstance(row.get("update"), int)):
            raise TornError("has an evaluation without update or train_loss")


def first_unreadable(state: Any, key: str = "") -> str | None:
    """Of a nested state, what could be saved and not be read again, as "KEY is a TYPE"; None where all can be.

    Tensors count as readable; they are not copied.
    """
    bare = _without_tensors(state)
    if _comes_back(bare):
        return None
    for name, child in _children(bare):
        if (inner := first_unreadable(child, f"{key}.{name}" if key else name)) is not None:
            return inner
    kind = type(state)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"{key or 'the state'} is a {name}"


def _without_tensors(value: Any) -> Any:
    kind = type(value)
    if kind in (Tensor, nn.Parameter):
        return None
    if kind in (dict, OrderedDict):
        return kind((key, _without_tensors(inner)) for key, inner in value.items())
    return kind(map(_without_tensors, value)) if kind in (list, tuple) else value


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield f"key {key!r:.40}", key
            yield str(key), inner
    elif isinstance(value, (list, tuple)):
        yield from ((str(i), inner) for i, inner in enumerate(value))


def _comes_back(value: Any) -> bool:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        torch.load(io.BytesIO(buffer.getbuffer()), weights_only=True)
    except Exception:  # of whatever lies in it
        return False
    return True


def remove_reserve(directory: Path) -> None:
    """For runs that have ended: what is kept is the last one."""
    for name in (_INCOMING, RESERVE):
        (directory / name).unlink(missing_ok=True)


def remove_checkpoints(directory: Path) -> None:
    """For runs of which only the records are kept."""
    for name in (CHECKPOINT, _INCOMING, RESERVE):
        (directory / name).unlink(missing_ok=True)
