"""Which runs are the same: the part of a configuration that decides the numbers, its hash, and how two differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfbench.config.load import dump
from kfbench.config.schema import Config
from kfbench.errors import UsageError

# Keys of `run` that name a seed or a place, or are only looked at afterwards.
_NOT_NUMBERS = ("seed", "seeds", "target_loss", "refresh_placement")


def trajectory(config: Config) -> dict[str, Any]:
    """The part of the configuration that decides the numbers, but for the seed."""
    tree = dump(config)
    return {**_problem_and_run(tree), "method": tree["methods"][0]}


def budget(config: Config) -> dict[str, Any]:
    """What runs must share to be compared: the problem, and for how long on which batches it is trained."""
    shared = _problem_and_run(dump(config))
    # They stay in a trajectory, which goes on bit for bit; a comparison needs no equal digits.
    for key in ("device", "threads"):
        shared["run"].pop(key)
    return shared


def _problem_and_run(tree: Mapping[str, Any]) -> dict[str, Any]:
    run = {k: v for k, v in tree["run"].items() if k not in _NOT_NUMBERS}
    problem = {k: v for k, v in tree["problem"].items() if k != "data_dir"}  # the same data may lie elsewhere
    return {"problem": problem, "run": run}


def fingerprint(content: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that are equal for equal content, whatever its order."""
    # Folders and trials on disk are found again by it, so the text must not change from version to version.
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differing_keys(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys in which two nested configurations differ."""
    differing = []
    for key in dict.fromkeys([*a, *b]):  # no set, to name them in the order in which they are written
        left, right = a.get(key), b.get(key)  # an absent key is one of None, as ``dump`` leaves it out
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            differing += differing_keys(left, right, f"{prefix}{key}.")
        elif left != right:
            differing.append(f"{prefix}{key}")
    return differing


def refuse_other(old: Mapping[str, Any], new: Mapping[str, Any], folder: Path, kind: str = "run") -> None:
    """UsageError naming the keys in which what is on disk differs from what is asked for."""
    keys = differing_keys(old, new)
    if keys:
        raise UsageError(f"{folder} holds a {kind} of another configuration; differing: {', '.join(keys)}")
