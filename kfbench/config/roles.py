"""Who is followed, and who is asked beside it."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from kfbench.config.command_blocks import Similarity
from kfbench.config.methods import resolve_methods
from kfbench.config.schema import Method
from kfbench.config.section import validated
from kfbench.config.specs import find_method, parse_spec
from kfbench.errors import UsageError


def resolve_roles(
    entries: Any, block: Mapping[str, Any], flags: Mapping[str, Any], model: str = "mlp"
) -> tuple[tuple[Method, ...], Similarity]:
    """All methods of `similarity`, and its block: which of them is followed, against which the others are compared."""
    similarity = validated(Similarity, block)
    # By place: the labels are known only when all of the methods are resolved together.
    entries, roles = _with_roles(entries, similarity, flags)
    methods = resolve_methods(entries, flags, model)
    similarity = similarity.model_copy(update={role: methods[place].label for role, place in roles.items()})
    if len(methods) < 2:
        raise UsageError(
            f"similarity compares two methods or more, got {methods[0].label} alone; name others with --opt"
        )
    check_metric(similarity, methods)
    return methods, similarity


def _with_roles(entries: Any, similarity: Similarity, flags: Mapping[str, Any]) -> tuple[list[Any], dict[str, int]]:
    """The SPECs, with the followed one and the one compared against where they are not there yet; which these are."""
    listed = list(entries or [])
    roles: dict[str, int] = {}
    for role in ("follow", "against"):
        wanted = getattr(similarity, role)
        if wanted is None:
            continue
        place = _place(listed, wanted, flags)
        if place is None:
            place = len(listed)
            listed.append(wanted)
        roles[role] = place
    return listed, roles


def _place(entries: Sequence[Any], wanted: str, flags: Mapping[str, Any]) -> int | None:
    """Which entry is meant: the very SPEC, or what it is labelled; None where it is none of them."""
    parsed = [parse_spec(entry) for entry in entries]
    if not parsed:
        return None
    with suppress(UsageError, ValueError):  # a label with options is no SPEC
        return parsed.index(parse_spec(wanted))
    accepted = [find_method(opt) for opt, _ in parsed]
    # A flag that none of these has may be for the one that is still to be added.
    known = {key: value for key, value in flags.items() if any(entry.accepts(key) for entry in accepted)}
    named = [method.label for method in resolve_methods(list(entries), known)]
    return named.index(wanted) if wanted in named else None


def check_metric(similarity: Similarity, methods: Sequence[Method]) -> None:
    """UsageError where FOOF's inner product has no foof to take its curvature from."""
    named = ", ".join(method.label for method in methods)
    if "foof" in similarity.metric and not any(method.opt == "foof" for method in methods):
        raise UsageError(f"metric 'foof' takes its curvature from a foof, which is none of the methods: {named}")
