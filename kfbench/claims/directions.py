"""Whose directions a claim asks for, along whose trajectory: methods as tuned, or with the followed one's step."""

from collections.abc import Mapping
from typing import Any

from kfbench.claims.file import SHARED, ClaimFile
from kfbench.claims.measures import DIRECTIONS, OF_SPECTRA, PAIR
from kfbench.config.methods import resolve_method
from kfbench.config.roles import check_metric
from kfbench.config.schema import Config
from kfbench.config.specs import find_method, parse_spec
from kfbench.errors import UsageError, unknown
from kfbench.similarity.run import check
from kfbench.sweep.plan import method_label, plan


def asked_config(file: ClaimFile, tuning: Mapping[str, Any]) -> Config:
    """The configuration of `similarity`: the followed method, then those of the claim's ``ask``.

    ``tuning`` are the methods of a sweep's summary; where there are none, methods stand as the file gives them.
    """
    settings, looks = file.config, file.similarity
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
                f"{file.path.name} asks {label!r} twice, or follows it too: they leave out lr, and a damping not given"
            )
        entries[label] = entry
    run = settings.run
    # Fresh ones, and as many, where the methods were tuned: with the seeds of tuning their best point flatters.
    seeds = {"seed": run.seed + run.seeds, "seeds": settings.sweep.final_seeds} if tuning else {}
    config = settings.with_run(**seeds).with_methods(resolve_method(e, label) for label, e in entries.items())
    return config.model_copy(update={"similarity": looks})


def check_directions(file: ClaimFile) -> None:
    """UsageError for labels that will not be among the methods, and for looks that the measures lack."""
    config = _untuned_config(file)
    labels = [method.label for method in config.methods]
    for part in file.claim.parts:
        for side in (part.of, part.to) if part.measure in DIRECTIONS else ():
            named = side.split(PAIR)
            for label in named:
                if label not in labels:
                    raise unknown(f"method in {file.path.name}", label, labels)
            wanted = 2 if part.measure == "cosine_distance" else 1
            if len(set(named)) != wanted or len(named) != wanted:
                many = f"two methods joined by {PAIR!r}" if wanted == 2 else "one method"
                raise UsageError(f"{file.path.name}: {part.measure} is of {many}, got {side!r}")
    _check_looks(file, config)


def check_followed(file: ClaimFile) -> None:
    """UsageError for whatever `similarity` would refuse, such as layers that the network does not have, or not record.

    Builds everything: after hours of tuning it would be too late.
    """
    try:
        looks = check(_untuned_config(file)).looks
    except UsageError as error:
        raise UsageError(f"{file.path.name}: {error}") from error
    pairs = [{a, b} for a, b in looks.pairs]
    tracked = looks.spectrum.tracked if looks.spectrum is not None else ()
    for part in file.claim.parts:
        for side in (part.of, part.to):
            if part.measure == "cosine_distance" and set(side.split(PAIR)) not in pairs:
                raise UsageError(
                    f"{file.path.name}: {side!r} is no pair of similarity.against {looks.settings.against!r}"
                )
            if part.measure in OF_SPECTRA and side not in tracked:
                raise unknown(f"method with an approximation of the Fisher in {file.path.name}", side, tracked)


def _untuned_config(file: ClaimFile) -> Config:
    # Any cell stands for the best one, which is not known yet: labels do not tell them apart.
    methods = plan(file.config) if file.tunes else ()
    return asked_config(file, {m.label: {"opt": m.opt, "best": m.options(m.cells()[0])} for m in methods})


def _check_looks(file: ClaimFile, config: Config) -> None:
    """That `similarity` will look at what the measures need."""
    name, looks = file.path.name, file.similarity
    for metric in {part.metric or "foof" for part in file.claim.parts if part.measure == "cosine_distance"}:
        if metric not in looks.metric:
            raise UsageError(
                f"{name}: cosine_distance needs similarity.metric {metric!r}, got {', '.join(looks.metric)}"
            )
    check_metric(looks, config.methods)
    if "progress" in file.measures and not looks.progress:
        raise UsageError(f"{name}: the measure progress needs similarity.progress true, got false")
    of_spectra = sorted(file.measures & set(OF_SPECTRA))
    if of_spectra and not looks.spectrum:
        raise UsageError(f"{name}: {', '.join(of_spectra)} needs layers in similarity.spectrum")


def _entry_of(opt: str, options: Mapping[str, Any]) -> dict[str, Any]:
    # Of a best point lr, which follows from alpha, is among the options.
    return {"opt": opt, **{k: v for k, v in options.items() if k != "alpha" and v is not None}}


def _label(opt: str, options: Mapping[str, Any]) -> str:
    """As a sweep of lr and damping calls the method."""
    return method_label(opt, {name: value for name, value in options.items() if name not in ("lr", "damping")})


def _asked(spec: Any, known: Mapping[str, Any], followed: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Label and options of one asked method."""
    if isinstance(spec, str) and spec in known:  # a bare NAME is the label of that method as tuned
        return spec, known[spec]
    opt, options = parse_spec(spec)
    label = _label(opt, resolve_method(spec).options)
    if "damping" in options:  # one method may be asked at several, which then tell its SPECs apart
        label += f"-damping={options['damping']:g}"
    shared = {name: followed[name] for name in SHARED if name in followed and find_method(opt).accepts(name)}
    return label, {"opt": opt, **shared, **options}
