"""Whose directions a claim asks for, along whose trajectory: methods as tuned, or with the followed one's step."""

from collections.abc import Mapping
from typing import Any

import torch

from kfbench.claims.file import SHARED, ClaimFile
from kfbench.claims.measures import DIRECTIONS, PAIR
from kfbench.config.load import load_config
from kfbench.config.roles import check_metric
from kfbench.config.schema import Config
from kfbench.config.specs import find_method, parse_spec
from kfbench.curvature.layers import find_layers
from kfbench.errors import UsageError, unknown
from kfbench.sweep.plan import method_label, plan
from kfbench.updates.build import build_data, build_network

_OF_SPECTRA = ("frobenius_error", "error_growth", "spectrum_distance")


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
    entries = {looks.follow: followed}
    for label, entry in (_asked(spec, known, followed) for spec in file.claim.ask):
        if label in entries:
            raise UsageError(
                f"{file.path.name} asks {label!r} twice, or follows it too: labels leave out lr and damping"
            )
        entries[label] = entry
    run = settings.run
    seeds = {"seed": run.seed + run.seeds, "seeds": settings.sweep.final_seeds} if tuning else {}
    config = file.settings("sweep", list(entries.values()), **seeds)
    named = [m.model_copy(update={"label": label}) for m, label in zip(config.methods, entries, strict=True)]
    return config.model_copy(update={"methods": tuple(named), "similarity": looks})


def check_directions(file: ClaimFile) -> None:
    """UsageError for labels that will not be among the methods, and SPECs that do not fit, before anything runs."""
    methods = plan(file.settings("sweep")) if file.tunes() else ()
    untuned = {m.label: {"opt": m.opt, "best": m.options(m.cells()[0])} for m in methods}
    config = asked_config(file, untuned)
    labels = [method.label for method in config.methods]
    for part in file.claim.parts:
        for label in f"{part.of}{PAIR}{part.to}".split(PAIR) if part.measure in DIRECTIONS else ():
            if label not in labels:
                raise unknown(f"method in {file.path.name}", label, labels)
    _check_looks(file, config)


def _check_looks(file: ClaimFile, config: Config) -> None:
    """That `similarity` will look at what the measures need."""
    name, looks = file.path.name, file.similarity
    if "cosine_distance" in file.measures and "foof" not in looks.metric:
        raise UsageError(f"{name}: cosine_distance needs similarity.metric 'foof'")
    check_metric(looks, config.methods)
    if "progress" in file.measures and not looks.progress:
        raise UsageError(f"{name}: the measure progress needs similarity.progress true, got false")
    of_spectra = sorted(file.measures & set(_OF_SPECTRA))
    if of_spectra and not looks.spectrum:
        raise UsageError(f"{name}: {', '.join(of_spectra)} needs layers in similarity.spectrum")


def check_layers(file: ClaimFile) -> None:
    """UsageError for layers that the network does not have: after hours of tuning it would be too late."""
    wanted = file.similarity.spectrum
    if not wanted:
        return
    config, device = file.settings("sweep"), torch.device("cpu")
    network = build_network(config.problem, config.run, build_data(config, device), device, config.run.seed)
    layers, _ = find_layers(network)
    for layer in wanted:
        if layer not in layers:
            raise unknown(f"layer in {file.path.name}", layer, layers)


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
    shared = {name: followed[name] for name in SHARED if name in followed and find_method(opt).accepts(name)}
    return label, {"opt": opt, **shared, **options}
