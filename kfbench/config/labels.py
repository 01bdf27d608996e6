"""Labels of methods, NAME-key=value: made, read, shortened."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kfbench.config.method_table import DEFAULT_S


def labels(methods: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """NAME plus -key=value for every option in which the SPECs of that NAME differ; it also names a folder."""
    found = []
    for opt, options in methods:
        others = [_chosen(other) for name, other in methods if name == opt]
        own = _chosen(options)
        differing = [key for key in options if any(other.get(key) != own[key] for other in others)]
        name = opt.replace(":", ".")
        found.append(re.sub(r"[\s/\\]", "_", "-".join([name, *(f"{key}={options[key]}" for key in differing)])))
    return found


def _chosen(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without an S that only follows from T."""
    T, S = options.get("T"), options.get("S")
    follows = T is not None and min(T, DEFAULT_S) == S
    return {**options, "S": None} if follows else dict(options)


def method_name(label: str) -> str:
    """The method of a label, NAME[-key=value...] or with a folder's name behind it."""
    return re.split(r"-[^-=]+=| \(", label, maxsplit=1)[0]


def short(label: str) -> str:
    """Without its options, for a table where the measure beside it tells what is compared."""
    return re.sub(r"-\w+=[^ ]*", "", label)


def without_T(label: str) -> str:
    """Without T and what follows it: what curves along T are of."""
    return label.split("-T=")[0]
