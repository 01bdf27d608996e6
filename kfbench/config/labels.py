"""Labels of methods, NAME-key=value: made, read, shortened."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kfbench.config.method_table import DEFAULT_S, FACTORS, METHODS

# Where they are None they go without saying: beside foof-spatial=sua it is foof.
_UNSAID = (*FACTORS, "fisher_columns")


def labels(methods: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """NAME plus -key=value for every option in which the SPECs of that NAME differ; it also names a folder."""
    # Each is held against the first of its NAME: there may be thousands of them.
    chosen = [_chosen(opt, options) for opt, options in methods]
    first: dict[str, dict[str, Any]] = {}
    differs: dict[str, set[str]] = {}
    for (opt, _), own in zip(methods, chosen, strict=True):
        one = first.setdefault(opt, own)
        differs.setdefault(opt, set()).update(key for key in {*own, *one} if own.get(key) != one.get(key))
    told_apart = []
    for opt, options in methods:
        differing = [k for k in options if k in differs[opt] and (k not in _UNSAID or options[k] is not None)]
        name = opt.replace(":", ".")
        # A value may be a path, or hold spaces.
        told_apart.append(re.sub(r"[\s/\\]", "_", "-".join([name, *(f"{key}={options[key]}" for key in differing)])))
    return told_apart


def _chosen(opt: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without those that only follow from others: an S from T, a variant's own defaults."""
    T, S = options.get("T"), options.get("S")
    chosen = dict(options)
    if T is not None and min(T, DEFAULT_S) == S:
        chosen["S"] = None
    entry = METHODS.get(opt)
    for variant in entry.variants if entry else ():
        defaults = METHODS[opt].defaults(options)
        chosen |= {key: None for key in variant.options if options.get(key) == defaults[key]}
    return chosen


def method_name(label: str) -> str:
    """The method of a label, NAME[-key=value...] or with a folder's name behind it."""
    # A NAME has dashes of its own, so only the dash of a -key= ends it.
    return re.split(r"-[^-=]+=| \(", label, maxsplit=1)[0]


def without_shared(label: str, other: str, among: Iterable[str] = ()) -> tuple[str, str]:
    """Both without the options that tell nothing apart there: those of several labels, alike in all of these.

    An option that only some labels of one NAME have tells these apart. A label may be a pair, joined by " ~ ".
    """
    # A value may hold dashes, so only the next -key= ends it.
    option = re.compile(r"-(\w+)=((?:(?!-\w+=)[^ ])*)")
    singles = {single for text in (label, other, *among) for single in text.split(" ~ ")}
    options = {single: dict(option.findall(single)) for single in singles}
    told = set()
    for key in {key for own in options.values() for key in own}:
        values = [own.get(key) for own in options.values()]
        by_name: dict[str, set[str | None]] = {}
        for single, own in options.items():
            by_name.setdefault(method_name(single), set()).add(own.get(key))
        several_alike = len(values) - values.count(None) > 1 and len({*values} - {None}) == 1
        if not several_alike or any(len(found) > 1 for found in by_name.values()):
            told.add(key)

    def strip(text: str) -> str:
        return option.sub(lambda match: match[0] if match[1] in told else "", text)

    return strip(label), strip(other)


def without_T(label: str) -> str:
    """Without T and what follows it: what curves along T are of."""
    return label.split("-T=")[0]
