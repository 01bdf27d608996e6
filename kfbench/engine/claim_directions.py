"""Whose directions a claim asks for, along whose trajectory: methods as tuned, or with the followed one's step."""

from collections.abc import Mapping
from typing import Any

from kfbench.claims import ClaimFile
from kfbench.config import load_config
from kfbench.engine.sweep_plan import method_label, plan
from kfbench.errors import UsageError, unknown
from kfbench.methods import find_method, parse_spec
from kfbench.results.measures import DIRECTIONS, PAIR
from kfbench.sections import Config

# What an asked method takes from the followed one, unless its SPEC says otherwise.
_SHARED = ("lr", "damping", "T", "S")


def asked_config(file: ClaimFile, tuning: Mapping[str, Any]) -> Config:
    """The configuration of `similarity`: the followed method, then those of the claim's ``ask``.

    ``tuning`` are the methods of a sweep's summary; where there are none, methods stand as the file gives them.
    """
    settings, looks = file.settings("sweep"), file.similarity
    if tuning:
        known = {label: _entry_of(m["opt"], m["best"]) for label, m in tuning.items() if m["best"] is not None}
    else:
        known = {_label(m.opt, m.options): _entry_of(m.opt, m.options) for m in settings.methods}
    if looks.follow not in known:
        raise unknown(f"method that {file.path.name} follows,", looks.follow, known)
    followed = known[looks.follow]
    entries = {looks.follow: followed} | dict(_asked(spec, known, followed) for spec in file.claim.ask)
    run = settings.run
    seeds = {"seed": run.seed + run.seeds, "seeds": settings.sweep.final_seeds} if tuning else {}
    config = file.settings("sweep", list(entries.values()), **seeds)
    named = [m.model_copy(update={"label": label}) for m, label in zip(config.methods, entries, strict=True)]
    return config.model_copy(update={"methods": tuple(named), "similarity": looks})


def check_directions(file: ClaimFile) -> None:
    """UsageError for labels that will not be among the methods, and SPECs that do not fit, before anything runs."""
    methods = plan(file.settings("sweep")) if file.tunes() else ()
    untuned = {m.label: {"opt": m.opt, "best": m.options(m.cells()[0])} for m in methods}
    labels = [method.label for method in asked_config(file, untuned).methods]
    for part in file.claim.parts:
        for label in f"{part.of}{PAIR}{part.to}".split(PAIR) if part.measure in DIRECTIONS else ():
            if label not in labels:
                raise unknown(f"method in {file.path.name}", label, labels)
    if "cosine_distance" in file.measures and "foof" not in file.similarity.metric:
        raise UsageError(f"{file.path.name}: cosine_distance needs similarity.metric 'foof'")


def _entry_of(opt: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"opt": opt, **{k: v for k, v in options.items() if k != "alpha" and v is not None}}


def _label(opt: str, options: Mapping[str, Any]) -> str:
    """As a sweep of lr and damping calls the method."""
    return method_label(opt, {name: value for name, value in options.items() if name not in ("lr", "damping")})


def _asked(spec: Any, known: Mapping[str, Any], followed: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Label and options of one asked method."""
    if isinstance(spec, str) and spec in known:
        return spec, known[spec]
    opt, options = parse_spec(spec)
    label = _label(opt, load_config(specs=[spec]).methods[0].options)
    shared = {name: followed[name] for name in _SHARED if name in followed and find_method(opt).accepts(name)}
    return label, {"opt": opt, **shared, **options}
